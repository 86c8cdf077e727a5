"""Contrast, which is too high in the samples of a student that exaggerates."""

import functools
from collections.abc import Sequence

import numpy as np

from ladd_jax.evaluation.seen import Seen

LEFT_OUT = 0.04
"""Share of the reference's values that its range leaves out, half of it at each end."""


def deviation(samples: Sequence[Seen], reference: Sequence[Seen]) -> float:
    """Standard deviation of all values of all pictures; the reference is ignored."""
    del reference
    return float(np.std(_values(samples)))


def outside(samples: Sequence[Seen], reference: Sequence[Seen]) -> float:
    """Share of values outside of the range that holds all but `LEFT_OUT` of the reference's."""
    low, high = _range(tuple(reference))
    values = _values(samples)
    return float(np.mean((values < low) | (values > high)))


# Cached, since the reference stays the same while samples are resampled for intervals.
@functools.lru_cache(maxsize=1)
def _range(reference: tuple[Seen, ...]) -> tuple[float, float]:
    low, high = np.quantile(_values(reference), [LEFT_OUT / 2, 1 - LEFT_OUT / 2])
    return float(low), float(high)


def _values(parts: Sequence[Seen]) -> np.ndarray:
    return np.concatenate([np.asarray(part.images, np.float64).reshape(-1) for part in parts])
