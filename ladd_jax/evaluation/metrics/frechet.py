"""Distance between two sets of features."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.errors import UserError
from ladd_jax.evaluation.seen import Seen, joint


def measure(samples: Sequence[Seen], reference: Sequence[Seen]) -> float:
    """Fréchet distance of the features of samples to those of the reference."""
    return frechet_distance(joint(samples), joint(reference))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets (Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64, with unbiased covariances.
    With factors C = R^T R the trace of the root is the sum of the singular values of R_a R_b^T. So
    no matrix root is taken, and singular covariances do no harm.

    Args:
      a: float `[n, F]`, n at least 2.
      b: float `[m, F]`, m at least 2.

    Returns:
      The distance in squared units of the features, 0 or more.

    Raises:
      UserError: a set of fewer than two samples, widths that differ, or values that are not
        finite.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(f"sets of {len(a)} and {len(b)} samples: a covariance needs 2 or more")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape[1:] != b.shape[1:] or a.ndim != 2:
        raise UserError(f"sets of shape {a.shape} and {b.shape}: give [n, F] and [m, F]")
    for features in (a, b):
        broken = np.count_nonzero(~np.isfinite(features).all(axis=1))
        if broken:
            raise UserError(
                f"{broken} of {len(features)} samples have features that are not finite"
            )
    mean = np.sum(np.square(a.mean(0) - b.mean(0)))
    factors = [np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1) for x in (a, b)]
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    total = sum(np.sum(np.square(factor)) for factor in factors)
    # Rounding may make the distance of a set from itself slightly negative.
    return float(max(mean + total - 2 * cross, 0.0))
