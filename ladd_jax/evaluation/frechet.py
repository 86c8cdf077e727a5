"""Distance between two sets of features."""

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets (Heusel et al. 2017).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64. With factors C = R^T R the
    trace of the root is the sum of the singular values of R_a R_b^T: no matrix root is taken, and
    singular covariances do no harm.

    Args:
      a: `[n, F]`, n at least 2.
      b: `[m, F]`, m at least 2.

    Raises:
      ValueError: a set of fewer than two samples, or widths that differ.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} samples have no covariance: give 2 or more")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of width {a.shape[1]} and {b.shape[1]} can not be compared")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    mean = np.sum(np.square(a.mean(0) - b.mean(0)))
    factors = [np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1) for x in (a, b)]
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    total = sum(np.sum(np.square(factor)) for factor in factors)
    return float(max(mean + total - 2 * cross, 0.0))
