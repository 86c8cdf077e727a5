"""Spread of the samples of one prompt."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.errors import UserError
from ladd_jax.evaluation.seen import Seen


def measure(samples: Sequence[Seen], reference: Sequence[Seen]) -> float | None:
    """Mean over buckets of `diversity`; the reference does not matter.

    None where a bucket has no prompt with two samples, as real pictures may.
    """
    del reference
    values = []
    for part in samples:
        _, groups = np.unique(part.prompts, return_inverse=True)
        values.append(
            diversity(part.features.reshape(len(part.features), -1), groups, part.identity)
        )
    return None if any(value is None for value in values) else float(np.mean(np.array(values)))


def diversity(
    features: np.ndarray, groups: np.ndarray, identity: np.ndarray | None = None
) -> float | None:
    """Mean distance between two samples of one prompt, averaged over the prompts that have two.

    Args:
      features: float `[n, F]`.
      groups: int `[n]`, the prompt of each sample, by number.
      identity: int `[n]`, the same for copies of one sample, whose distance does not count;
        default: no sample is a copy.

    Returns:
      The distance, in units of the features; None where no prompt has two samples.

    Raises:
      UserError: no sample, or not one group for each.
    """
    if groups.shape != features.shape[:1] or not len(groups):
        raise UserError(
            f"groups of shape {groups.shape} for features of shape {features.shape}: "
            "give one group for each sample, and 2 samples or more"
        )
    features = np.asarray(features, np.float64)
    numbers = np.arange(len(groups)) if identity is None else identity
    means = []
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        members, own = features[places], numbers[places]
        counted = np.triu(own[:, None] != own[None], 1)
        if counted.any():
            distances = np.linalg.norm(members[:, None] - members[None], axis=-1)
            means.append(np.mean(distances[counted]))
    return float(np.mean(means)) if means else None
