"""Distances between sets of features by kernels: maximum mean discrepancy (Gretton et al. 2012).

Unlike Fréchet distances they assume no Gaussian, and KID has no bias for small sets.

n, m samples of the sets, F features.
"""

from collections.abc import Sequence

import numpy as np

from ladd_jax.errors import UserError
from ladd_jax.evaluation.metrics.copies import joint_identity
from ladd_jax.evaluation.seen import Seen, joint

SUBSETS = 100
"""Number of subsets that KID is the mean over."""

SUBSET_SIZE = 1000
"""Samples of each set in a subset."""

SIGMA = 10.0
"""Width of CMMD's kernel."""

SCALE = 1000.0
"""Factor of CMMD, by definition, and of KID in tables, to make its numbers readable."""

_SEED = 2020
"""The seed of torch-fidelity, so that subsets are the same."""

_ROWS = 1024
"""Rows of a kernel's matrix that are in memory at once."""


def measure_kid(samples: Sequence[Seen], reference: Sequence[Seen]) -> float:
    """1000 times the KID of the features of samples and of the reference."""
    return SCALE * kernel_inception_distance(
        joint(samples), joint(reference), joint_identity(samples), joint_identity(reference)
    )


def measure_cmmd(samples: Sequence[Seen], reference: Sequence[Seen]) -> float:
    """CMMD of the features of samples and of the reference, each scaled to length 1."""
    return clip_mean_discrepancy(joint(samples), joint(reference))


def kernel_inception_distance(
    a: np.ndarray,
    b: np.ndarray,
    identity_a: np.ndarray | None = None,
    identity_b: np.ndarray | None = None,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
) -> float:
    """KID (Binkowski et al. 2018), with the subsets of torch-fidelity.

    It is the mean over random subsets of the unbiased estimate (Gretton et al. 2012, eq. 3) of the
    squared discrepancy under the kernel (x y / F + 1)^3. It can be negative.

    Args:
      a: float `[n, F]`.
      b: float `[m, F]`.
      identity_a: int `[n]`, equal for copies of one sample, which are not compared with each other;
        default: no sample is a copy.
      identity_b: int `[m]`, the same for `b`.
      subsets: number of subsets; only one is used if each would consist of both whole sets.
      subset_size: samples of each set in a subset, at most the size of the smaller set.

    Raises:
      UserError: a set has fewer than two samples, or widths differ.
    """
    a, b = _checked(a, b)
    ids_a = np.arange(len(a)) if identity_a is None else identity_a
    ids_b = np.arange(len(b)) if identity_b is None else identity_b
    size = min(subset_size, len(a), len(b))
    # numpy's legacy generator, since torch-fidelity draws from it.
    rng = np.random.RandomState(_SEED)
    estimates = []
    for _ in range(1 if size == len(a) == len(b) else subsets):
        i, j = (rng.choice(len(x), size, replace=False) for x in (a, b))
        within = _mean_of_pairs(a[i], ids_a[i]) + _mean_of_pairs(b[j], ids_b[j])
        estimates.append(within - 2 * np.mean(_polynomial(a[i], b[j])))
    return float(np.mean(estimates))


def clip_mean_discrepancy(a: np.ndarray, b: np.ndarray) -> float:
    """CMMD (Jayasumana et al. 2024, eq. 4), by the estimate of the authors' code.

    1000 times the squared discrepancy of vectors of length 1 under the kernel
    exp(-|x - y|^2 / (2 10^2)). Its means include the pairs of a sample with itself, so that it is
    never negative, and grows a little as sets shrink.

    Args:
      a: float `[n, F]`, n at least 2, of any lengths.
      b: float `[m, F]`, m at least 2.

    Raises:
      UserError: a set of fewer than two samples, or widths that differ.
    """
    a, b = (_unit(x) for x in _checked(a, b))
    distance = _mean_gaussian(a, a) + _mean_gaussian(b, b) - 2 * _mean_gaussian(a, b)
    # Rounding may make the distance of a set to itself slightly negative.
    return max(SCALE * distance, 0.0)


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.ndim != 2 or a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise UserError(
            f"sets of shape {a.shape} and {b.shape}: give [n, F] and [m, F], with 2 samples or more"
        )
    return np.asarray(a, np.float64), np.asarray(b, np.float64)


def _polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_pairs(x: np.ndarray, identity: np.ndarray) -> float:
    """Mean of the kernel over pairs of different samples of one set."""
    different = identity[:, None] != identity[None]
    return float(np.mean(_polynomial(x, x)[different])) if different.any() else np.nan


def _unit(x: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(lengths, np.finfo(np.float64).tiny)


def _mean_gaussian(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of the kernel over all pairs of a sample of one set and a sample of the other."""
    total, lengths = 0.0, np.sum(y * y, axis=1)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        squares = np.sum(rows * rows, axis=1)[:, None] + lengths - 2 * rows @ y.T
        total += np.exp(-squares / (2 * SIGMA**2)).sum()
    return total / (len(x) * len(y))
