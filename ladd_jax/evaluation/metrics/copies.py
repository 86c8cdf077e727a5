"""Tells which samples are copies of each other, since resamples can draw a picture repeatedly.

Metrics that compare the samples of one set with each other must not compare copies.
"""

from collections.abc import Sequence

import numpy as np

from ladd_jax.evaluation.seen import Seen


def joint_identity(parts: Sequence[Seen]) -> np.ndarray:
    """An identity, int64 `[N]`, of each sample that `joint` gives, equal only for copies."""
    whole = len({part.features.shape[1] for part in parts}) == 1
    numbers, start = [], 0
    for part in parts:
        index = np.unique(part.identity, return_inverse=True)[1]
        width = 1 if whole else part.features.shape[1]
        numbers.append(start + (index[:, None] * width + np.arange(width)).reshape(-1))
        start += len(index) * width
    return np.concatenate(numbers)
