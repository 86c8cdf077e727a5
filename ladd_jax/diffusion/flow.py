"""Rectified flow between data and noise (Liu et al. 2022), in the convention of SD3.

x_t = (1 - t) x_0 + t eps, t in [0, 1]; the network predicts v = eps - x_0.
Arrays are `[B, ...]` and times `[B]`.
"""

import jax


def expand(t: jax.Array, x: jax.Array) -> jax.Array:
    """Times `[B]` with trailing axes of one, to broadcast against `x [B, ...]`."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def interpolate(x_0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """Point x_t on the straight path from data (t=0) to noise (t=1)."""
    t = expand(t, x_0)
    return (1 - t) * x_0 + t * eps


def velocity(x_0: jax.Array, eps: jax.Array) -> jax.Array:
    """dx_t/dt of the path, the target of flow matching."""
    return eps - x_0


def predict_x0(x_t: jax.Array, v: jax.Array, t: jax.Array) -> jax.Array:
    """Data predicted from a point and its velocity: x_t - t v."""
    return x_t - expand(t, x_t) * v
