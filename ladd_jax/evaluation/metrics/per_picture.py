"""Metrics that average an error of each picture, see `Seen.errors`."""

import math
from collections.abc import Sequence

import numpy as np

from ladd_jax.evaluation.metrics.base import Measure
from ladd_jax.evaluation.seen import Seen


def mean_of(name: str) -> Measure:
    """The mean of an error over the pictures of all buckets; None if they have no such error."""

    def measure(samples: Sequence[Seen], reference: Sequence[Seen]) -> float | None:
        del reference
        if any(name not in part.errors for part in samples):
            return None
        return float(np.mean(np.concatenate([part.errors[name] for part in samples])))

    return measure


def root_mean_of(name: str) -> Measure:
    """The square root of the mean, for an error that is a mean square; None as in `mean_of`."""
    mean = mean_of(name)

    def measure(samples: Sequence[Seen], reference: Sequence[Seen]) -> float | None:
        square = mean(samples, reference)
        return None if square is None else math.sqrt(square)

    return measure
