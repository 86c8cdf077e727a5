"""Spread of the samples of one prompt."""

import numpy as np


def diversity(features: np.ndarray, groups: np.ndarray) -> float:
    """Mean distance between two samples of one prompt, averaged over prompts.

    Args:
      features: `[n, F]`.
      groups: int `[n]`, which prompt a sample is of.

    Raises:
      ValueError: a prompt with a single sample.
    """
    means = []
    for group in np.unique(groups):
        members = features[groups == group]
        if len(members) < 2:
            raise ValueError(
                f"prompt {group} has 1 sample and diversity needs 2: raise samples_per_prompt"
            )
        distances = np.linalg.norm(members[:, None] - members[None], axis=-1)
        means.append(np.mean(distances[np.triu_indices(len(members), 1)]))
    return float(np.mean(means))
