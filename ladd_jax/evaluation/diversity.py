"""Spread of the samples of one prompt."""

import numpy as np

from ladd_jax.errors import UserError


def diversity(features: np.ndarray, groups: np.ndarray) -> float:
    """Mean distance between two samples of one prompt, averaged over prompts.

    Args:
      features: float `[n, F]`.
      groups: int `[n]`, the prompt of each sample, by number.

    Raises:
      UserError: no sample, a prompt with a single one, or not one group for each sample.
    """
    if groups.shape != features.shape[:1] or not len(groups):
        raise UserError(
            f"groups of shape {groups.shape} for features of shape {features.shape}: "
            "give one group for each sample, and 2 samples or more"
        )
    features = np.asarray(features, np.float64)
    means = []
    for group in np.unique(groups):
        members = features[groups == group]
        if len(members) < 2:
            raise UserError(
                f"prompt {group} has 1 sample and diversity needs 2: raise samples_per_prompt"
            )
        distances = np.linalg.norm(members[:, None] - members[None], axis=-1)
        means.append(np.mean(distances[np.triu_indices(len(members), 1)]))
    return float(np.mean(means))
