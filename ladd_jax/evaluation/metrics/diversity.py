"""Spread of the samples of one prompt."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.errors import UserError
from ladd_jax.evaluation.seen import Seen


def measure(samples: Sequence[Seen], reference: Sequence[Seen]) -> float:
    """Mean over buckets of `diversity`; the reference does not matter."""
    del reference
    values = []
    for part in samples:
        _, groups = np.unique(part.prompts, return_inverse=True)
        values.append(
            diversity(part.features.reshape(len(part.features), -1), groups, part.identity)
        )
    return float(np.mean(values))


def diversity(
    features: np.ndarray, groups: np.ndarray, identity: np.ndarray | None = None
) -> float:
    """Mean distance between two samples of one prompt, averaged over prompts.

    Args:
      features: float `[n, F]`.
      groups: int `[n]`, the prompt of each sample, by number.
      identity: int `[n]`, the same for copies of one sample, whose distance does not count, nor do
        prompts of which nothing else is left; default: no sample is a copy.

    Raises:
      UserError: no sample, a prompt with a single one, or not one group for each sample.
    """
    if groups.shape != features.shape[:1] or not len(groups):
        raise UserError(
            f"groups of shape {groups.shape} for features of shape {features.shape}: "
            "give one group for each sample, and 2 samples or more"
        )
    features = np.asarray(features, np.float64)
    copies = identity is not None and len(np.unique(identity)) < len(identity)
    numbers = np.arange(len(groups)) if identity is None else identity
    means = []
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        members, own = features[places], numbers[places]
        counted = np.triu(own[:, None] != own[None], 1)
        if not counted.any():
            if copies:
                continue
            raise UserError(
                f"prompt {group} has 1 sample and diversity needs 2: raise evaluate.per_prompt"
            )
        distances = np.linalg.norm(members[:, None] - members[None], axis=-1)
        means.append(np.mean(distances[counted]))
    return float(np.mean(means))
