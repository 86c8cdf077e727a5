"""Distributions of the time t in [0, 1], 1 being pure noise."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Times = TypeVar("Times", jax.Array, np.ndarray)


def discrete(
    key: jax.Array, batch: int, times: Sequence[float], probabilities: jax.Array
) -> jax.Array:
    """Draws from a finite set: float32 `[batch]`."""
    index = jax.random.choice(key, len(times), (batch,), p=probabilities)
    return jnp.asarray(times, jnp.float32)[index]


def logit_normal(key: jax.Array, batch: int, mean: float | jax.Array, std: float) -> jax.Array:
    """sigmoid(mean + std u) with u ~ N(0, 1): float32 `[batch]`; the mean may be `[batch]`, too."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch,)))


def shift(t: Times, factor: float) -> Times:
    """Moves times towards noise for larger images (Esser et al. 2024, eq. 23)."""
    return factor * t / (1 + (factor - 1) * t)
