"""Gradient accumulation: the micro-batches of a batch one after another, inside one program.

A micro-batches, B samples of the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ladd_jax.errors import UserError
from ladd_jax.parallel.mesh import constrain, scatter

Part = Callable[[Any], tuple[Any, Any, Any]]
"""`(samples) -> (gradient, means over samples, values of each sample [B, ...])`."""


def split(batch: Any, count: int) -> Any:
    """Arrays `[B, ...]` as micro-batches `[A, B/A, ...]`.

    Micro-batch a has the samples a, a + A, a + 2 A, ...: equally many rows of each device, so that
    no row moves, and the same samples on every mesh.

    Raises:
      UserError: B is not divisible by the count.
    """

    def cut(x: jax.Array) -> jax.Array:
        if len(x) % count:
            raise UserError(
                f"a batch of {len(x)} is not divisible by accumulation {count}: "
                f"use a multiple, such as {-(-len(x) // count) * count}"
            )
        x = x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    return jax.tree.map(cut, batch)


def join(micro_batches: Any) -> Any:
    """The inverse of `split`."""

    def paste(x: jax.Array) -> jax.Array:
        x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
        return constrain(x, "batch", *(None,) * (x.ndim - 1))

    return jax.tree.map(paste, micro_batches)


def accumulate(part: Part, batch: Any, count: int, networks: Any) -> tuple[Any, Any, Any]:
    """What `part` gives for a batch, computed in micro-batches; a count of 1 just calls `part`.

    Args:
      part: function to call on each micro-batch; its losses must be means over samples, so that
        gradients and means of equal parts can be averaged.
      batch: tree of arrays `[B, ...]`.
      count: A, the number of micro-batches.
      networks: the `Model` that the gradient belongs to, or a tuple of them for a tuple of
        gradients.

    Returns:
      Gradient, summed in float32 and sharded as parameters are kept; means; values `[B, ...]`.
    """
    if count == 1:
        return part(batch)
    axes = jax.tree.map(lambda network: network.axes, networks)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.float32),
        jax.tree.map(lambda network: network.shapes, networks),
    )

    def add(total: Any, samples: Any) -> tuple[Any, Any]:
        gradient, means, values = part(samples)
        total = jax.tree.map(
            lambda t, g, names: scatter(t + g.astype(jnp.float32), names), total, gradient, axes
        )
        return total, (means, values)

    total, (means, values) = jax.lax.scan(add, zeros, split(batch, count))
    gradient = jax.tree.map(lambda t: t / count, total)
    return gradient, jax.tree.map(lambda m: jnp.mean(m, axis=0), means), join(values)
