"""The training state on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.mesh import parameter_shardings, replicated


def state_shardings(
    abstract: TrainState,
    mesh: Mesh,
    *,
    axes: Any,
    optimizer: optax.GradientTransformation,
    heads_axes: Any = None,
    heads_optimizer: optax.GradientTransformation | None = None,
) -> Any:
    """A `TrainState` of shardings: moments are placed like their parameters, counters replicated.

    Args:
      abstract: shapes of the state.
      mesh: mesh of the state.
      axes: logical axes of `params` and `ema`.
      optimizer: optimizer of `params`.
      heads_axes: logical axes of `heads`, where there are any.
      heads_optimizer: optimizer of `heads`, where a gradient moves them.
    """
    whole: Any = replicated(mesh)

    def like(transformation: Any, state: Any, shardings: Any) -> Any:
        return optax.tree_utils.tree_map_params(
            transformation,
            lambda _, sharding: sharding,
            state,
            shardings,
            transform_non_params=lambda _: whole,
        )

    params = parameter_shardings(mesh, abstract.params, axes)
    heads: Any = {}
    heads_moments: Any = ()
    if heads_axes is not None:
        heads = parameter_shardings(mesh, abstract.heads, heads_axes)
    if heads_optimizer is not None:
        heads_moments = like(heads_optimizer, abstract.heads_optimizer, heads)
    return TrainState(
        step=whole,
        key=whole,
        params=params,
        ema=params,
        heads=heads,
        optimizer=like(optimizer, abstract.optimizer, params),
        heads_optimizer=heads_moments,
    )


@jax.jit
def _finite(trees: dict[str, Any]) -> dict[str, jax.Array]:
    return {
        name: jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
        for name, tree in trees.items()
    }


def not_finite(state: TrainState) -> list[str]:
    """Names of the trees of a state that hold a number that is not finite; waits for the device."""
    trees = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    finite = _finite({name: tree for name, tree in trees.items() if jax.tree.leaves(tree)})
    return [name for name, value in jax.device_get(finite).items() if not value]


def abstract_like(shapes: Any, shardings: Any) -> Any:
    """`jax.ShapeDtypeStruct` with shardings: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def create(init: Callable[..., TrainState], shardings: Any, *args: Any) -> TrainState:
    """The state before the first step, each shard made on the device where it stays."""
    return jax.jit(init, out_shardings=shardings)(*args)
