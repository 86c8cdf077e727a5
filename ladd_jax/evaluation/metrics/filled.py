"""How far pictures that were completed are from those that they complete."""

import math
from collections.abc import Sequence

import numpy as np

from ladd_jax.evaluation.metrics.base import Measure
from ladd_jax.evaluation.seen import Seen


def _values(samples: Sequence[Seen], name: str) -> np.ndarray | None:
    """What is known of each picture of all buckets; None where nothing was completed."""
    if any(name not in part.errors for part in samples):
        return None
    return np.concatenate([part.errors[name] for part in samples])


def _root(name: str) -> Measure:
    """The root of the mean over pictures of their mean squares."""

    def measure(samples: Sequence[Seen], reference: Sequence[Seen]) -> float | None:
        del reference
        squares = _values(samples, name)
        return None if squares is None else math.sqrt(float(np.mean(squares)))

    return measure


masked_error, known_error = _root("masked"), _root("known")


def masked_distance(samples: Sequence[Seen], reference: Sequence[Seen]) -> float | None:
    """Mean distance of the features of completed pictures to those of the pictures themselves."""
    del reference
    distances = _values(samples, "distance")
    return None if distances is None else float(np.mean(distances))
