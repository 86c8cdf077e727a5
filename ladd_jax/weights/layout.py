"""How our parameters map to the tensors in other libraries' files.

A layout is a tree like a network's parameters with a `Leaf` in place of each array. A leaf holds
the names of the tensors that the array is made of, and how it is made. Everything else follows from
the layout: the names and shapes that a file must have, reading, and writing, its inverse.
`weights.transfer` reads and writes, shard by shard.

I inputs and O outputs of a layer, n tensors that form one array of ours.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ladd_jax.errors import UserError

Shape = tuple[int, ...]

Tree = dict[Any, Any]
"""Nested dict like the parameters of a network; a layout has a `Leaf` in place of each array."""

Bounds = tuple[tuple[int, int], ...]
"""Start and stop (exclusive) along each dimension of a parameter."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor of a file as a part of one of our parameters.

    Attributes:
      name: the tensor's name in the file.
      shape: its shape in the file.
      at: index of the tensor along each dimension of the parameter in which it fills one place:
        its layer, and which of several tensors it is. It spans the parameter's other dimensions.
      factors: the file's dimensions, split where ours are.
      order: the permutation that takes `factors` to the order in our parameter.
      ours: shape of the part in our parameter.
      reverse: the dimension, after the permutation and before the reshape to `ours`, whose order
        is reversed in the file.
    """

    name: str
    shape: Shape
    at: Mapping[int, int]
    factors: Shape
    order: Shape
    ours: Shape
    reverse: int | None = None

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """The file's tensor as our part; a view, except for patches."""
        part = tensor.reshape(self.factors).transpose(self.order)
        return self._reversed(part).reshape(self.ours)

    def write(self, part: np.ndarray) -> np.ndarray:
        """Our part as the file's tensor."""
        permuted = part.reshape([self.factors[axis] for axis in self.order])
        return self._reversed(permuted).transpose(np.argsort(self.order)).reshape(self.shape)

    def _reversed(self, part: np.ndarray) -> np.ndarray:
        return part if self.reverse is None else np.flip(part, self.reverse)

    def overlap(self, box: Bounds) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
        """Indices of the overlap in the shard and in the part; None where they do not overlap."""
        in_shard: list[Any] = []
        in_part: list[Any] = []
        for axis, (start, stop) in enumerate(box):
            place = self.at.get(axis)
            if place is None:
                in_shard.append(slice(None))
                in_part.append(slice(start, stop))
            elif start <= place < stop:
                in_shard.append(place - start)
            else:
                return None
        return tuple(in_shard), tuple(in_part)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our arrays.

    Attributes:
      names: names of the tensors that it is made of.
      pieces: `pieces(shape)` gives these tensors as parts of an array of this shape.
    """

    names: tuple[str, ...]
    pieces: Callable[[Shape], list[Piece]]


def same(name: str) -> Leaf:
    """A tensor that has the same shape and order in the file."""
    return Leaf(
        (name,), lambda shape: [Piece(name, shape, {}, shape, tuple(range(len(shape))), shape)]
    )


def matrix(*names: str, reverse: bool = False) -> Leaf:
    """Torch's `[O, I]` as `[I, *O]`, or n of them as `[I, n, *O]`.

    Args:
      *names: names of the tensors.
      reverse: whether the file has the chunks of our first output dimension in reverse order.
    """

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
                ours=(inputs, *outputs),
                reverse=1 if reverse else None,
            )
            for i, name in enumerate(names)
        ]

    return Leaf(names, pieces)


def vector(*names: str, reverse: bool = False) -> Leaf:
    """Torch's `[O]` as `[*O]`, or n of them as `[n, *O]`; takes the arguments of `matrix`."""

    def pieces(shape: Shape) -> list[Piece]:
        joined = len(names) > 1
        outputs = shape[1:] if joined else shape
        return [
            Piece(
                name=name,
                shape=(math.prod(outputs),),
                at={0: i} if joined else {},
                factors=outputs,
                order=tuple(range(len(outputs))),
                ours=outputs,
                reverse=0 if reverse else None,
            )
            for i, name in enumerate(names)
        ]

    return Leaf(names, pieces)


def kernel(name: str) -> Leaf:
    """Torch's convolution `[O, I, h, w]` as `[h, w, I, O]`."""

    def pieces(shape: Shape) -> list[Piece]:
        h, w, inputs, outputs = shape
        theirs = (outputs, inputs, h, w)
        return [Piece(name, theirs, {}, theirs, (2, 3, 1, 0), shape)]

    return Leaf((name,), pieces)


def patch_kernel(name: str, patch: int) -> Leaf:
    """Torch's convolution `[O, I, p, p]` with a stride of p, as a matrix `[p p I, O]` on patches.

    Ours reads the pixels of a patch row by row, channels last.
    """

    def pieces(shape: Shape) -> list[Piece]:
        inputs, outputs = shape
        theirs = (outputs, inputs // patch**2, patch, patch)
        return [Piece(name, theirs, {}, theirs, (2, 3, 1, 0), shape)]

    return Leaf((name,), pieces)


def linear(*names: str, reverse: bool = False) -> Tree:
    """A dense layer made of one or several of torch's `Linear`; takes the arguments of `matrix`."""
    return {
        "kernel": matrix(*(f"{name}.weight" for name in names), reverse=reverse),
        "bias": vector(*(f"{name}.bias" for name in names), reverse=reverse),
    }


def norm(name: str) -> Tree:
    """A normalisation with scale and bias."""
    return {"scale": same(f"{name}.weight"), "bias": same(f"{name}.bias")}


def convolution(name: str) -> Tree:
    """A convolution with its bias."""
    return {"kernel": kernel(f"{name}.weight"), "bias": same(f"{name}.bias")}


def stacked(layers: Sequence[Tree]) -> Tree:
    """The layout of a stack with a leading layer axis, from the layouts of its equal layers."""

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


def only(layout: Tree, shapes: Tree) -> Tree:
    """The part of a layout that a network uses; the rest is for optional layers that it lacks.

    Args:
      layout: tree of leaves.
      shapes: tree of arrays or `jax.ShapeDtypeStruct`, as `Model.shapes`.
    """
    return {
        name: only(layout[name], inner) if isinstance(inner, dict) else layout[name]
        for name, inner in shapes.items()
    }


def tensor_shapes(layout: Tree, shapes: Tree) -> dict[str, Shape]:
    """Names and shapes of the tensors behind a network, in the order of its parameters.

    Args:
      layout: tree of leaves.
      shapes: tree of arrays or `jax.ShapeDtypeStruct`, as `Model.shapes`.
    """
    found: dict[str, Shape] = {}
    pairs = zip(jax.tree.leaves(layout), jax.tree.leaves(shapes), strict=True)
    for leaf, ours in pairs:
        found |= {piece.name: piece.shape for piece in leaf.pieces(ours.shape)}
    return found


def low_rank(kernel: Leaf, shape: Shape) -> Tree:
    """The layout of a layer's adapters, `lora_A.weight [r, I]` and `lora_B.weight [O, r]` of each
    torch `Linear`, as PEFT names them.

    Ours are `down [..., I, P, r]` and `up [..., P, r, *O]`, see `models.lora`.

    Args:
      kernel: the layer's kernel, a `matrix` or a stack of them.
      shape: its shape.

    Raises:
      UserError: the layer is not a `Linear` in torch.
    """
    given = kernel.pieces(shape)
    for piece in given:
        if len(piece.shape) != 2:
            raise UserError(
                f"{piece.name} is not a dense layer in other libraries' files, and has adapters "
                f"here: leave it out of lora.layers, or write the whole network "
                f"(--layout=diffusers)"
            )

    def stem(piece: Piece) -> str:
        return piece.name.removesuffix(".weight")

    def down(ours: Shape) -> list[Piece]:
        *_, inputs, _, rank = ours
        return [
            Piece(
                name=f"{stem(piece)}.lora_A.weight",
                shape=(rank, inputs),
                at={len(ours) - 2: 0, **piece.at},
                factors=(rank, inputs),
                order=(1, 0),
                ours=(inputs, rank),
            )
            for piece in given
        ]

    def up(ours: Shape) -> list[Piece]:
        made = []
        for piece in given:
            *outputs, _ = piece.factors
            # The layer axis comes first in both. The axis of parts is before the rank in `up`, and
            # after the inputs in the kernel.
            parts = len(ours) - len(outputs) - 2
            at = {parts: 0} | {min(axis, parts): place for axis, place in piece.at.items()}
            rank = ours[parts + 1]
            made.append(
                dataclasses.replace(
                    piece,
                    name=f"{stem(piece)}.lora_B.weight",
                    shape=(piece.shape[0], rank),
                    at=at,
                    factors=(*outputs, rank),
                    ours=(rank, *outputs),
                )
            )
        return made

    names = [stem(piece) for piece in given]
    return {
        "down": Leaf(tuple(f"{name}.lora_A.weight" for name in names), down),
        "up": Leaf(tuple(f"{name}.lora_B.weight" for name in names), up),
    }
