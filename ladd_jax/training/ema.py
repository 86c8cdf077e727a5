"""The exponential moving average of parameters."""

from typing import Any

import jax
import jax.numpy as jnp


def update_ema(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """EMA whose decay grows as (1 + step) / (10 + step), so that it forgets the start early.

    Computed in float32 and kept in the dtype of `ema`.
    """
    rate = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def average(e: jax.Array, p: jax.Array) -> jax.Array:
        wide = e.astype(jnp.float32)
        return (wide + rate * (p.astype(jnp.float32) - wide)).astype(e.dtype)

    return jax.tree.map(average, ema, params)
