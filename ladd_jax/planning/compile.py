"""Compiles a training step for chips that are not here: its memory and its cost."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from ladd_jax.models.base import CHANNELS, GUIDANCE, OTHER, PREFERENCE
from ladd_jax.objectives.base import Objective
from ladd_jax.parallel.chips import Chip
from ladd_jax.parallel.mesh import network_axes, parameter_shardings, replicated
from ladd_jax.planning.hlo_cost import Cost, program_cost
from ladd_jax.planning.jaxpr_flops import kernel_flops
from ladd_jax.training.program import batch_like, state_layout, step_program
from ladd_jax.training.state import abstract_like


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one chip, in bytes.

    Attributes:
      arguments: size of what the step is given.
      temporaries: the most that it needs at one time besides that, its code included.
      capacity: what a program may use of the chip's memory; where the step did not fit, the
        compiler's own figure.
    """

    arguments: float
    temporaries: float
    capacity: float

    @property
    def total(self) -> float:
        """Arguments and temporaries together."""
        return self.arguments + self.temporaries

    @property
    def free_fraction(self) -> float:
        """Share of the capacity that is left; negative if the step does not fit."""
        return 1 - self.total / self.capacity


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step compiled for one bucket.

    Attributes:
      memory: what it needs of a chip.
      cost: what one step costs a chip; None if it did not fit.
      seconds: how long the compiler took.
    """

    memory: Memory
    cost: Cost | None
    seconds: float


def step_arguments(
    objective: Objective, mesh: Mesh, batch: dict[str, Any]
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Shardings of the state; and state, frozen networks and batch as `jax.ShapeDtypeStruct`.

    Args:
      objective: the step's objective.
      mesh: devices that the arguments are sharded over.
      batch: a global batch as `jax.ShapeDtypeStruct`.
    """
    shapes, shardings = state_layout(objective, mesh)
    frozen: dict[str, Any] = {
        name: abstract_like(network.shapes, parameter_shardings(mesh, network.shapes, network.axes))
        for name, network in objective.networks.items()
    }
    frozen["null"] = {
        name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype, sharding=replicated(mesh))
        for name, array in batch["cond"].items()
        if name not in (CHANNELS, GUIDANCE, OTHER, PREFERENCE)
    }
    return shardings, (
        abstract_like(shapes, shardings),
        frozen,
        batch_like(batch, mesh),
    )


def compile_step(objective: Objective, mesh: Mesh, chip: Chip, batch: dict[str, Any]) -> Compiled:
    """Compiles the step for a batch and reads its memory and cost; takes minutes for SD3.

    Args:
      objective: the step's objective.
      mesh: mesh to compile for, made of the devices of `find_target`.
      chip: the chip that each of these devices is.
      batch: a global batch as `jax.ShapeDtypeStruct`.
    """
    start = time.monotonic()
    shardings, arguments = step_arguments(objective, mesh, batch)
    with jax.set_mesh(mesh):  # The mesh in use is set per thread.
        traced = step_program(objective, shardings, mesh).trace(*arguments)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            refused = memory_refused(str(error))
            if refused is None:
                raise
            (needed, capacity), given = refused, shard_bytes(arguments)
            memory = Memory(given, needed - given, capacity)
            return Compiled(memory, None, time.monotonic() - start)
    sizes = compiled.memory_analysis()
    if mesh.devices.flat[0].platform == "tpu":
        # The peak is what the compiler compares with HBM before it refuses. `temp_size_in_bytes` is
        # the extent of its heap, which has gaps as long as there is room for them.
        needed = sizes.peak_memory_in_bytes
    else:
        # A GPU's program allocates its heap as a whole.
        needed = (
            sizes.argument_size_in_bytes
            + sizes.temp_size_in_bytes
            + sizes.output_size_in_bytes
            - sizes.alias_size_in_bytes
        )
    memory = Memory(
        sizes.argument_size_in_bytes,
        needed - sizes.argument_size_in_bytes + sizes.generated_code_size_in_bytes,
        chip.usable_bytes,
    )
    cost = program_cost(compiled.as_text(), network_axes(mesh), kernel_flops(traced.jaxpr.jaxpr))
    return Compiled(memory, cost, time.monotonic() - start)


def memory_refused(message: str) -> tuple[float, float] | None:
    """Bytes that a program needs, arguments included, and bytes that there are; else None.

    Args:
      message: the compiler's error; the result is None if it is not about memory.
    """
    found = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMGT])\D+([\d.]+)([KMGT])", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    needed, available = (
        float(number) * 1024 ** " KMGT".index(unit)
        for number, unit in (found.group(1, 2), found.group(3, 4))
    )
    return needed, available


def shard_bytes(tree: Any) -> int:
    """Bytes on one chip of a tree of `jax.ShapeDtypeStruct` with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
