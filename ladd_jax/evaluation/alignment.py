"""Agreement of samples with their prompts."""

import numpy as np


def agreement(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Share of pictures in which every object is the wanted one: both int `[n, k]`.

    Raises:
      ValueError: the shapes differ.
    """
    if predicted.shape != wanted.shape:
        raise ValueError(f"{predicted.shape} labels can not agree with {wanted.shape} wanted ones")
    return float(np.mean(np.all(predicted == wanted, axis=1)))
