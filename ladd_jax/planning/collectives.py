"""What the chips of a step send each other: how much, what it is, and what leaves a slice."""

import dataclasses
import math
from collections.abc import Mapping

import jax

from ladd_jax.objectives.base import Objective
from ladd_jax.parallel.mesh import SLICES

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
"""HLO's opcodes of communication among chips."""

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind and shape.

    Attributes:
      kind: `all-gather`, `all-reduce`, `reduce-scatter`, `all-to-all`, `collective-permute`.
      axes: mesh axes that it runs over.
      results: shapes of what each chip has afterwards.
      gathered: position of the dimension that an `all-gather` makes longer; -1 for other kinds.
      times: how often it runs in a step.
      bytes: what a chip sends in a step, by `ring_bytes`.
    """

    kind: str
    axes: tuple[str, ...]
    results: tuple[Shape, ...]
    gathered: int
    times: float
    bytes: float


def ring_bytes(kind: str, payload: float, chips: int) -> float:
    """Bytes that each chip of a ring sends.

    With n chips, (n - 1) / n of the whole for a gather or a scatter, twice that for an all-reduce.

    Args:
      kind: kind of the collective.
      payload: bytes that each chip starts with.
      chips: number of chips that take part.
    """
    share = (chips - 1) / chips
    return {
        "all-gather": payload * (chips - 1),
        "all-reduce": 2 * payload * share,
        "collective-permute": payload,
    }.get(kind, payload * share)


def dcn_bytes(collective: Collective, mesh: Mapping[str, int]) -> float:
    """Bytes that a chip sends to other slices in a collective, over the data-centre network (DCN).

    TPU's compiler lets the chips of a slice sum and share first, and states what each then sends
    out. In a single collective over n chips of s slices, (s - 1) / (n - 1) of what a ring sends
    leaves a slice.

    Args:
      collective: one of a compiled step.
      mesh: sizes of the axes, from `network_axes`.
    """
    if SLICES not in collective.axes:
        return 0.0
    chips = math.prod(mesh[axis] for axis in collective.axes)
    return collective.bytes * (mesh[SLICES] - 1) / (chips - 1)


def contents(
    collective: Collective, parameters: set[Shape], mesh: Mapping[str, int], images: int
) -> str:
    """What a collective moves: `parameters`, the samples of a `batch`, or `other`.

    A gather along the batch gives a chip the images of its whole group.

    Args:
      collective: one of a compiled step.
      parameters: shapes of the parameters, from `parameter_shapes`.
      mesh: sizes of the axes, from `network_axes`.
      images: number of images on one chip.
    """
    if collective.kind == "all-gather":
        if all(_squeezed(shape) in parameters for shape in collective.results):
            return "parameters"
        together = images * math.prod(mesh[axis] for axis in collective.axes)
        if any(shape[collective.gathered] == together for shape in collective.results):
            return "batch"
    # The compiler moves some parameters in another shape, and sums scalars along with gradients.
    sizes = {math.prod(shape) for shape in collective.results}
    if collective.axes == (SLICES,):  # The chips of a slice share what goes to another.
        sizes = {size * mesh["data"] * mesh["fsdp"] for size in sizes}
    known = {math.prod(shape) for shape in parameters}
    return "parameters" if sizes & known and sizes <= known | {1} else "other"


def parameter_shapes(objective: Objective) -> set[Shape]:
    """Shapes of all parameters, whole and of one layer, without dimensions of 1."""
    found = set()
    heads = () if objective.heads is None else (objective.heads,)
    for model in (objective.trained, *objective.networks.values(), *heads):
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


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)
