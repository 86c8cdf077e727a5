"""Precision and recall, which measure quality and coverage apart (Kynkäänniemi et al. 2019).

n, m samples of the sets, F features.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ladd_jax.errors import UserError
from ladd_jax.evaluation.metrics.copies import joint_identity
from ladd_jax.evaluation.seen import Seen, joint

NEIGHBOURS = 3
"""The ball around a sample reaches to its neighbour of this number, by distance."""

_ROWS = 1024
"""Rows of a matrix of distances that are in memory at once."""


def measure_precision(samples: Sequence[Seen], reference: Sequence[Seen]) -> float:
    """Share of samples that lie among the reference."""
    return covered(joint(samples), joint(reference), joint_identity(reference))


def measure_recall(samples: Sequence[Seen], reference: Sequence[Seen]) -> float:
    """Share of the reference that lies among the samples."""
    return covered(joint(reference), joint(samples), joint_identity(samples))


def covered(
    queries: np.ndarray,
    manifold: np.ndarray,
    identity: np.ndarray | None = None,
    neighbours: int = NEIGHBOURS,
) -> float:
    """Share of a set that lies in the manifold of another (Kynkäänniemi et al. 2019, eq. 1 and 2).

    The manifold is the union of balls around the samples, each reaching to its sample's nearest
    neighbour number `neighbours` in the same set.

    Args:
      queries: float `[n, F]`.
      manifold: float `[m, F]`.
      identity: int `[m]`, equal for copies of one sample of the manifold, which count once;
        default: no sample is a copy.
      neighbours: which nearest neighbour the balls reach to.

    Raises:
      UserError: there is no query, there are too few samples to have such a neighbour, or widths
        differ.
    """
    if manifold.ndim != 2 or queries.shape[1:] != manifold.shape[1:] or not len(queries):
        raise UserError(
            f"sets of shape {queries.shape} and {manifold.shape}: give [n, F] and [m, F], not empty"
        )
    queries, manifold = np.asarray(queries, np.float64), np.asarray(manifold, np.float64)
    if identity is not None:
        manifold = manifold[np.unique(identity, return_index=True)[1]]
    if len(manifold) <= neighbours:
        raise UserError(
            f"a set of {len(manifold)} different samples has no neighbour number {neighbours}: "
            f"give {neighbours + 1} or more"
        )
    # Index 0 is the sample itself.
    own = [np.partition(part, neighbours)[:, neighbours] for part in _squares(manifold, manifold)]
    radii = np.concatenate(own)
    inside = [np.any(part <= radii, axis=1) for part in _squares(queries, manifold)]
    return float(np.mean(np.concatenate(inside)))


def _squares(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """Yields squared distances `[n, m]`, some rows at a time."""
    lengths = np.sum(y * y, axis=1)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        squares = np.sum(rows * rows, axis=1)[:, None] + lengths - 2 * rows @ y.T
        yield np.maximum(squares, 0)
