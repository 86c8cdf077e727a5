"""Trees of parameters made of the tensors of files, each leaf of one tensor or of several.

A layout is a tree like the parameters of our network, with a `Leaf` in place of each array: the
names of the tensors that it is made of, and how. A leaf is read as `weights.layout` reads one:
each process touches what its shards need, a tensor at a time.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ladd_jax.errors import UserError
from ladd_jax.models.base import Params
from ladd_jax.parallel.mesh import parameter_shardings
from ladd_jax.weights.files import StoredTensor
from ladd_jax.weights.layout import Piece, load_sharded, read_shards

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of ours: the tensors that it needs, and `pieces(our shape)`."""

    names: tuple[str, ...]
    pieces: Callable[[Shape], list[Piece]]


def _piece(name: str, ours: Shape, factors: Shape, order: Shape, at: Mapping[int, int]) -> Piece:
    return Piece(name, factors, at, factors, order, None, ours)


def same(name: str) -> Leaf:
    """As it is."""
    return Leaf((name,), lambda shape: [_piece(name, shape, shape, tuple(range(len(shape))), {})])


def matrix(*names: str) -> Leaf:
    """Torch `[O, I]` to `[I, *O]`; several of them to `[I, n, *O]`."""

    def pieces(shape: Shape) -> list[Piece]:
        joined = len(names) > 1
        inputs, outputs = shape[0], shape[2:] if joined else shape[1:]
        return [
            Piece(
                name=name,
                shape=(math.prod(outputs), inputs),
                at={1: i} if joined else {},
                factors=(*outputs, inputs),
                order=(len(outputs), *range(len(outputs))),
                reverse=None,
                ours=(inputs, *outputs),
            )
            for i, name in enumerate(names)
        ]

    return Leaf(names, pieces)


def vectors(*names: str) -> Leaf:
    """Torch `[O]`, several of them, to `[n, *O]`."""

    def pieces(shape: Shape) -> list[Piece]:
        outputs = shape[1:]
        order = tuple(range(len(outputs)))
        return [
            Piece(name, (math.prod(outputs),), {0: i}, outputs, order, None, outputs)
            for i, name in enumerate(names)
        ]

    return Leaf(names, pieces)


def kernel(name: str) -> Leaf:
    """Torch `[O, I, h, w]` to `[h, w, I, O]`."""

    def pieces(shape: Shape) -> list[Piece]:
        h, w, inputs, outputs = shape
        return [_piece(name, shape, (outputs, inputs, h, w), (2, 3, 1, 0), {})]

    return Leaf((name,), pieces)


def stacked(layers: Sequence[Any]) -> Any:
    """Trees of equal layers to one tree with a leading layer axis."""

    def stack(*leaves: Leaf) -> Leaf:
        def pieces(shape: Shape) -> list[Piece]:
            return [
                dataclasses.replace(
                    piece, at={0: layer, **{axis + 1: i for axis, i in piece.at.items()}}
                )
                for layer, leaf in enumerate(leaves)
                for piece in leaf.pieces(shape[1:])
            ]

        return Leaf(tuple(name for leaf in leaves for name in leaf.names), pieces)

    return jax.tree.map(stack, *layers)


def load_leaves(
    source: Path,
    tensors: Mapping[str, StoredTensor],
    layout: Any,
    shapes: Params,
    axes: Params,
    mesh: Mesh | None = None,
    ignored: frozenset[str] = frozenset(),
) -> Params:
    """Parameters, of which a process reads what its devices keep, one tensor at a time.

    Args:
      source: of the tensors, for messages.
      tensors: by name.
      layout: tree of leaves.
      shapes: of the network.
      axes: of the network.
      mesh: to shard the parameters over; without it they are on the first device.
      ignored: names that may be there and are not needed.

    Raises:
      UserError: a tensor is missing, unknown, misshaped, or of a dtype that is not read.
    """
    wanted = {name for leaf in jax.tree.leaves(layout) for name in leaf.names}
    for kind, names in (
        ("lacks", wanted - tensors.keys()),
        ("has the unknown", tensors.keys() - wanted - ignored),
    ):
        if names:
            first = sorted(names)[0]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{source} {kind} tensor {first}{more}: use the files of one model, complete"
            )

    def load(leaf: Leaf, shape: jax.ShapeDtypeStruct, sharding: Any = None) -> jax.Array:
        found = leaf.pieces(shape.shape)
        for piece in found:
            tensor = tensors[piece.name]
            if tensor.shape != piece.shape:
                raise UserError(
                    f"tensor {piece.name} in {source} is {list(tensor.shape)} and the network "
                    f"makes it {list(piece.shape)}: use the files of one model"
                )
            tensor.check()

        def read(boxes: Any) -> Any:
            return read_shards(found, boxes, lambda name: tensors[name].map(), shape.dtype)

        if sharding is None:
            return jnp.asarray(read([tuple((0, size) for size in shape.shape)])[0])
        return load_sharded(shape, sharding, read)

    if mesh is None:
        return jax.tree.map(load, layout, shapes)
    return jax.tree.map(load, layout, shapes, parameter_shardings(mesh, shapes, axes))
