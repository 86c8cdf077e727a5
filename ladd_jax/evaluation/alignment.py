"""Agreement of samples with their prompts."""

import numpy as np

from ladd_jax.errors import UserError

ABSENT = -1
"""Label of a place that a prompt leaves empty, as in a single digit among pairs."""


def agreement(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Share of pictures in which every digit is the one that the prompt names.

    Args:
      predicted: int `[n, k]`, what the judge reads at each of k places.
      wanted: int `[n, k]`; -1 where the prompt names no digit, and then anything may be read.

    Raises:
      UserError: the shapes differ, or there is no picture.
    """
    if predicted.shape != wanted.shape or predicted.ndim != 2:
        raise UserError(
            f"labels of shape {predicted.shape} and wanted ones of shape {wanted.shape}: "
            "give both as [n, k]"
        )
    if not len(predicted):
        raise UserError("0 pictures have no agreement: give 1 or more")
    right = (predicted == wanted) | (wanted == ABSENT)
    return float(np.mean(np.all(right, axis=1)))
