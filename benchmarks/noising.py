"""Noise on samples, and between the steps of a student's chain."""

import numpy as np

from ladd_jax.stages.judging import Samples


def noised(samples: Samples, t: float, seed: int) -> Samples:
    """x_t of samples, with separate noise for each bucket."""
    found = {}
    for bucket, x_0 in samples.items():
        rng = np.random.default_rng((seed, bucket.height, bucket.width))
        found[bucket] = ((1 - t) * x_0 + t * rng.normal(size=x_0.shape)).astype(np.float32)
    return found


def renoised(x: Samples, x0_hat: Samples, t: float, s: float, fresh: float, seed: int) -> Samples:
    """x_s of predictions from x_t, with `fresh` times new noise and the rest, in variance, old."""
    eps = noised(x0_hat, 1.0, seed)
    found = {}
    for bucket, x_t in x.items():
        kept = (x_t - (1 - t) * x0_hat[bucket]) / t
        mixed = np.sqrt(1 - fresh**2) * kept + fresh * eps[bucket]
        found[bucket] = ((1 - s) * x0_hat[bucket] + s * mixed).astype(np.float32)
    return found
