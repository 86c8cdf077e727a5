"""The program of a step: what the loop runs and `plan` compiles."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ladd_jax.objectives.base import Objective, TrainState
from ladd_jax.parallel.compiler_options import compiler_options
from ladd_jax.parallel.mesh import batch_sharding, replicated
from ladd_jax.training.state import state_shardings


def step_program(objective: Objective, shardings: TrainState, mesh: Mesh) -> Any:
    """The jitted `step(state, frozen, batch)`.

    The state is donated and stays where it is; metrics are whole on each device.
    """
    metrics = replicated(mesh)
    return jax.jit(
        objective.step,
        donate_argnums=0,
        out_shardings=(shardings, metrics),
        compiler_options=compiler_options(mesh.devices.flat[0].device_kind),
    )


def state_shapes(objective: Objective) -> TrainState:
    """The state of an objective, as `jax.ShapeDtypeStruct`."""
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    return jax.eval_shape(objective.init, key, objective.trained.shapes)


def state_layout(objective: Objective, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of the state of an objective."""
    shapes = state_shapes(objective)
    shardings = state_shardings(
        shapes,
        mesh,
        axes=objective.trained.axes,
        optimizer=objective.optimizer.build(),
        heads_axes=None if objective.heads is None else objective.heads.axes,
        heads_optimizer=(
            None if objective.heads_optimizer is None else objective.heads_optimizer.build()
        ),
    )
    return shapes, shardings


def batch_like(shapes: Any, mesh: Mesh) -> Any:
    """A global batch as the loader puts it on the mesh, without its contents.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct`.
      mesh: the batch's devices.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
