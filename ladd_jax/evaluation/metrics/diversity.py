"""Spread of the samples of one prompt."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.errors import UserError
from ladd_jax.evaluation.seen import Seen

# Most numbers per array while distances are computed, 128 MB.
_AT_ONCE = 2**24


def measure(samples: Sequence[Seen], reference: Sequence[Seen]) -> float | None:
    """Mean over buckets of `diversity`; the reference is ignored.

    None if a bucket has no prompt with two samples, which can happen for real pictures.
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
      identity: int `[n]`, equal for copies of one sample, whose distance does not count; default:
        no sample is a copy.

    Returns:
      the distance, in units of the features; None if no prompt has two samples.

    Raises:
      UserError: there is no sample, or not one group for each sample.
    """
    if groups.shape != features.shape[:1] or not len(groups):
        raise UserError(
            f"groups of shape {groups.shape} for features of shape {features.shape}: "
            "give one group for each sample, and 2 samples or more"
        )
    features = np.asarray(features, np.float64)
    numbers = np.arange(len(groups)) if identity is None else identity
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    means = []
    # All groups of the same size are handled at once, since most groups have the same size.
    for size in np.unique(sizes):
        begins = starts[sizes == size]
        most = max(1, _AT_ONCE // (size * max(size, features.shape[1])))
        for first in range(0, len(begins), most):
            places = order[begins[first : first + most, None] + np.arange(size)]
            own = numbers[places]
            counted = own[:, :, None] != own[:, None]
            pairs = counted.sum((1, 2))
            totals = np.sum(_distances(features[places]), axis=(1, 2), where=counted)
            means.append(totals[pairs > 0] / pairs[pairs > 0])
    found = np.concatenate(means)
    return float(np.mean(found)) if len(found) else None


def _distances(x: np.ndarray) -> np.ndarray:
    """Distances `[..., n, n]` between the rows of `[..., n, F]`.

    Computed by matrix products, which are exact enough once the rows' mean is subtracted.
    """
    x = x - x.mean(-2, keepdims=True)
    products = x @ np.swapaxes(x, -1, -2)
    squares = np.diagonal(products, axis1=-2, axis2=-1)
    return np.sqrt(np.maximum(squares[..., :, None] + squares[..., None, :] - 2 * products, 0.0))
