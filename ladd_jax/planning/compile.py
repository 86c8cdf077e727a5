"""What a distillation step needs on chips that are not here, read from the compiled program."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from ladd_jax.objectives.ladd import LADD
from ladd_jax.parallel.chips import Chip
from ladd_jax.parallel.mesh import HOST, SLICES, network_axes, parameter_shardings
from ladd_jax.planning.hlo import Collective, Cost, program_cost
from ladd_jax.planning.products import kernel_flops
from ladd_jax.training.program import batch_like, distillation_layout, step_program
from ladd_jax.training.state import abstract_like

Shapes = Any
"""A global batch as `jax.ShapeDtypeStruct`."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip: what the step is given, and the most that it needs besides at one time.

    Its code counts as well. `capacity` is what a program may have of the chip's memory, by the
    compiler's own word where the step did not fit. `host` lies in the memory of the chip's host and
    counts for nothing else.
    """

    arguments: float
    temporaries: float
    capacity: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """Arguments and temporaries."""
        return self.arguments + self.temporaries

    @property
    def free_fraction(self) -> float:
        """Negative where it does not fit."""
        return 1 - self.total / self.capacity


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step compiled for one bucket: `cost` is None where it did not fit."""

    memory: Memory
    cost: Cost | None
    seconds: float


def step_arguments(objective: LADD, mesh: Mesh, batch: Shapes) -> tuple[Any, tuple[Any, Any, Any]]:
    """Shardings of the state; and state, teacher and batch without their contents."""
    shapes, shardings = distillation_layout(objective, mesh)
    frozen = {
        name: abstract_like(network.shapes, parameter_shardings(mesh, network.shapes, network.axes))
        for name, network in objective.critic.networks.items()
    }
    return shardings, (
        abstract_like(shapes, shardings),
        frozen,
        batch_like(batch, mesh),
    )


def compile_step(objective: LADD, mesh: Mesh, chip: Chip, batch: Shapes) -> Compiled:
    """Compiles the step for a batch and reads its cost; it takes minutes."""
    start = time.monotonic()
    shardings, arguments = step_arguments(objective, mesh, batch)
    with jax.set_mesh(mesh):  # The mesh in use belongs to a thread.
        traced = step_program(objective, shardings, mesh).trace(*arguments)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            refused = memory_refused(str(error))
            if refused is None:
                raise
            (needed, capacity), given = refused, shard_bytes(arguments)
            memory = Memory(given, needed - given, capacity, shard_bytes(arguments, HOST))
            return Compiled(memory, None, time.monotonic() - start)
    sizes = compiled.memory_analysis()
    if mesh.devices.flat[0].platform == "tpu":
        # The peak is what the compiler compares with HBM before it refuses. `temp_size_in_bytes` is
        # the extent of its heap, which has gaps as long as there is room for them.
        needed = sizes.peak_memory_in_bytes
    else:
        # Of a GPU the heap is taken as a whole.
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
        shard_bytes(arguments, HOST),
    )
    cost = program_cost(compiled.as_text(), network_axes(mesh), kernel_flops(traced.jaxpr.jaxpr))
    return Compiled(memory, cost, time.monotonic() - start)


def memory_refused(message: str) -> tuple[float, float] | None:
    """Bytes that a program needs, its arguments too, and has, from the compiler's message."""
    found = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMGT])\D+([\d.]+)([KMGT])", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    needed, available = (
        float(number) * 1024 ** " KMGT".index(unit)
        for number, unit in (found.group(1, 2), found.group(3, 4))
    )
    return needed, available


def shard_bytes(tree: Any, kind: str | None = None) -> int:
    """Of the part of a tree of `jax.ShapeDtypeStruct` with shardings that one chip has.

    Args:
      tree: of the arrays.
      kind: of the memory that they lie in; default: the chip's own.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if (leaf.sharding.memory_kind == HOST) == (kind == HOST)
    )


def parameter_shapes(objective: LADD) -> set[tuple[int, ...]]:
    """Shapes of all parameters, whole and of one layer, without dimensions of 1."""
    found = set()
    for model in (objective.student, *objective.critic.networks.values(), objective.critic.heads):
        leaves = zip(
            jax.tree.leaves(model.shapes),
            jax.tree.leaves(model.axes, is_leaf=lambda node: isinstance(node, tuple)),
            strict=True,
        )
        for leaf, axes in leaves:
            found.add(_squeezed(leaf.shape))
            if axes[0] == "layers":
                found.add(_squeezed(leaf.shape[1:]))
    return found


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def contents(
    collective: Collective, parameters: set[tuple[int, ...]], mesh: Mapping[str, int], images: int
) -> str:
    """What a collective moves: `parameters`, the samples of a `batch`, or `other`.

    A gather along the batch makes a chip's images those of its group.

    Args:
      collective: of a compiled step.
      parameters: their shapes, of `parameter_shapes`.
      mesh: sizes of its axes, of `network_axes`.
      images: of one chip.
    """
    if collective.kind == "all-gather":
        if all(_squeezed(shape) in parameters for shape in collective.results):
            return "parameters"
        together = images * math.prod(mesh[axis] for axis in collective.axes)
        if any(shape[collective.gathered] == together for shape in collective.results):
            return "batch"
    # The compiler moves some in another shape, and sums scalars along with gradients.
    sizes = {math.prod(shape) for shape in collective.results}
    if collective.axes == (SLICES,):  # The chips of a slice share what goes to another.
        sizes = {size * mesh["data"] * mesh["fsdp"] for size in sizes}
    known = {math.prod(shape) for shape in parameters}
    return "parameters" if sizes & known and sizes <= known | {1} else "other"


def dcn_bytes(collective: Collective, mesh: Mapping[str, int]) -> float:
    """Of what a chip sends in a collective, the part that goes to other slices.

    TPU's compiler has the chips of a slice sum and share first, and tells what each sends out. Of
    a collective over n chips of s slices that is one, it is (s - 1) / (n - 1) of a ring's.

    Args:
      collective: of a compiled step.
      mesh: sizes of its axes, of `network_axes`.
    """
    if SLICES not in collective.axes:
        return 0.0
    chips = math.prod(mesh[axis] for axis in collective.axes)
    return collective.bytes * (mesh[SLICES] - 1) / (chips - 1)


def largest_batch(points: dict[int, float], capacity: float, divisor: int) -> int:
    """The largest global batch that fits, by a line through the memory of two batches.

    Args:
      points: bytes of a chip by global batch.
      capacity: bytes of a chip.
      divisor: what a batch is a multiple of.
    """
    (a, low), (b, high) = sorted(points.items())
    slope = (high - low) / (b - a)
    if slope <= 0:
        return b
    return max(math.floor((capacity - low) / slope + a) // divisor * divisor, 0)
