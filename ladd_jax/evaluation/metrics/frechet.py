"""Distance between two sets of features."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ladd_jax.errors import NotFiniteError, UserError
from ladd_jax.evaluation.seen import Seen, joint


def measure(samples: Sequence[Seen], reference: Sequence[Seen]) -> float:
    """Fréchet distance of the features of samples to those of the reference."""
    return _distance(_seen(tuple(samples)), _seen(tuple(reference)))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets (Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64, with unbiased covariances.
    With factors C = R^T R the trace of the root is the sum of the singular values of R_a R_b^T, so
    that no matrix root is needed and covariances may be singular.

    Args:
      a: float `[n, F]`, n at least 2.
      b: float `[m, F]`, m at least 2.

    Returns:
      the distance in squared units of the features, 0 or more.

    Raises:
      UserError: a set has fewer than two samples, widths differ, or values are not finite.
    """
    return _distance(_fit(a), _fit(b))


# Samples per feature from which on a covariance is factored without QR.
_TALL = 4


class _Gaussian(NamedTuple):
    """Mean `[F]`, and a factor R of the covariance R^T R."""

    mean: np.ndarray
    factor: np.ndarray


# Cached, since one of the two sets stays the same while the other is resampled for intervals.
@functools.lru_cache(maxsize=2)
def _seen(parts: tuple[Seen, ...]) -> _Gaussian:
    return _fit(joint(parts))


def _fit(x: np.ndarray) -> _Gaussian:
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise UserError(f"features of shape {x.shape}: give [n, F]")
    if len(x) < 2:
        raise UserError(f"a set of {len(x)} samples: a covariance needs 2 or more")
    broken = np.count_nonzero(~np.isfinite(x).all(axis=1))
    if broken:
        raise NotFiniteError(f"{broken} of {len(x)} samples have features that are not finite")
    mean = x.mean(0)
    return _Gaussian(mean, _factor(x - mean) / np.sqrt(len(x) - 1))


def _factor(x: np.ndarray) -> np.ndarray:
    """R with R^T R = X^T X, of X `[n, F]`."""
    if len(x) > _TALL * x.shape[1]:
        # Takes a tenth of QR's time. Its rounding error is 1e-8 of the largest singular value,
        # compared to 1e-16 for QR.
        values, vectors = np.linalg.eigh(x.T @ x)
        factor = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    else:
        factor = np.linalg.qr(x, mode="r")
    return np.asarray(factor)


def _distance(a: _Gaussian, b: _Gaussian) -> float:
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"features of {len(a.mean)} and {len(b.mean)} numbers: give both sets the same"
        )
    mean = np.sum(np.square(a.mean - b.mean))
    cross = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    total = np.sum(np.square(a.factor)) + np.sum(np.square(b.factor))
    # Rounding may make the distance of a set to itself slightly negative.
    return float(max(mean + total - 2 * cross, 0.0))
