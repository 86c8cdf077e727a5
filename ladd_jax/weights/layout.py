"""How parameters lie in the files of others: tables of names, and views that lead both ways.

A layout is a table from our layers to the tensors that hold them. Everything else follows from
it: the names and shapes that a file must have, reading, and writing, which is reading backwards.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ladd_jax.models.sd3.transformer import MMDiTConfig

Keys = tuple[str, ...]
"""Keys that lead to a parameter."""

Bounds = tuple[tuple[int, int], ...]
"""First and last + 1 along each dimension of a parameter."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """The tensors of a file behind one of our layers, without `.weight` and `.bias`.

    Attributes:
      names: one, or several that our layer joins along its first output dimension.
      reverse: the chunks of the first output dimension lie in the opposite order.
      convolution: its weight is that of a convolution with the stride of its kernel.
    """

    names: tuple[str, ...]
    reverse: bool = False
    convolution: bool = False


def stored(*names: str, reverse: bool = False, convolution: bool = False) -> Stored:
    """See `Stored`."""
    return Stored(names, reverse, convolution)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family of files.

    Attributes:
      top: from our layers outside of blocks to the file's.
      block: from the layers of a block to the file's, all under `blocks`.
      last_block: what differs in the last block.
      blocks: prefix of a block's names, with `{}` for its number.
      positions: name of the position table `[1, S^2, D]`.
    """

    top: Mapping[str, Stored]
    block: Mapping[str, Stored]
    last_block: Mapping[str, Stored]
    blocks: str
    positions: str


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor of a file as a part of one of our parameters.

    Attributes:
      name: in the file.
      shape: in the file.
      at: from dimensions of the parameter to the one place there that the tensor fills: its
        layer, and which of several tensors it is. It spans the parameter's other dimensions.
      factors: the file's dimensions, split where ours are.
      order: of the factors in our parameter.
      reverse: which of our dimensions is in the opposite order.
      ours: shape of the part.
    """

    name: str
    shape: tuple[int, ...]
    at: Mapping[int, int]
    factors: tuple[int, ...]
    order: tuple[int, ...]
    reverse: int | None
    ours: tuple[int, ...]

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """The file's tensor as our part; a view, except for convolutions."""
        part = tensor.reshape(self.factors).transpose(self.order)
        return self._reversed(part).reshape(self.ours)

    def write(self, part: np.ndarray) -> np.ndarray:
        """Our part as the file's tensor."""
        permuted = part.reshape([self.factors[axis] for axis in self.order])
        return self._reversed(permuted).transpose(np.argsort(self.order)).reshape(self.shape)

    def _reversed(self, part: np.ndarray) -> np.ndarray:
        return part if self.reverse is None else np.flip(part, self.reverse)

    def overlap(self, box: Bounds) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
        """Indices of the shard and of the part where they meet, if they do."""
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


def pieces(shapes: Any, config: MMDiTConfig, layout: Layout) -> dict[Keys, list[Piece]]:
    """The tensors behind each parameter of an MMDiT.

    Args:
      shapes: tree of arrays or `jax.ShapeDtypeStruct`, as `Model.shapes`.
      config: of the network.
      layout: of the files.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(shapes)
    found = {}
    for keys, leaf in leaves:
        path = tuple(key.key for key in keys)
        found[path] = list(_pieces(path, leaf.shape, config, layout))
    return found


def _pieces(
    path: Keys, shape: tuple[int, ...], config: MMDiTConfig, layout: Layout
) -> Iterator[Piece]:
    first, kind = path[0], path[-1]
    if first == "last_block":
        source = {**layout.block, **layout.last_block}[".".join(path[1:-1])]
        prefix = layout.blocks.format(config.depth - 1)
        yield from _layer_pieces(source, kind, prefix, shape, {}, config.patch)
    elif first.startswith("blocks_"):
        source = layout.block[".".join(path[1:-1])]
        start = int(first.removeprefix("blocks_"))
        for layer in range(shape[0]):
            prefix = layout.blocks.format(start + layer)
            yield from _layer_pieces(source, kind, prefix, shape[1:], {0: layer}, config.patch)
    else:
        source = layout.top[".".join(path[:-1])]
        yield from _layer_pieces(source, kind, "", shape, {}, config.patch)


def _layer_pieces(
    source: Stored,
    kind: str,
    prefix: str,
    shape: tuple[int, ...],
    at: Mapping[int, int],
    patch: int,
) -> Iterator[Piece]:
    suffix = ".bias" if kind == "bias" else ".weight"
    names = [prefix + name + suffix for name in source.names]
    # A kernel is [I, *O] and lies in the file as [O, I]; biases and norms are the same in both.
    inputs = shape[:1] if kind == "kernel" else ()
    outputs = shape[len(inputs) :]
    if source.convolution and inputs:
        # Ours reads the pixels of a patch row by row, channels last.
        factors = (*outputs, inputs[0] // patch**2, patch, patch)
        yield Piece(names[0], factors, at, factors, (2, 3, 1, 0), None, shape)
        return
    joined = len(names) > 1
    parts_axis = len(at) + len(inputs)
    outputs = outputs[1:] if joined else outputs
    for place, name in enumerate(names):
        yield Piece(
            name=name,
            shape=(math.prod(outputs), *inputs),
            at={**at, parts_axis: place} if joined else at,
            factors=(*outputs, *inputs),
            order=(*range(len(outputs), len(outputs) + len(inputs)), *range(len(outputs))),
            reverse=len(inputs) if source.reverse else None,
            ours=(*inputs, *outputs),
        )


def bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    """A shard's index, as shardings give it, in numbers."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def read_shards(
    found: Sequence[Piece],
    boxes: Sequence[Bounds],
    tensors: Callable[[str], np.ndarray],
    dtype: Any,
) -> list[np.ndarray]:
    """Shards of one parameter, with each tensor mapped once for all of them.

    Args:
      found: the parameter's pieces.
      boxes: bounds of the shards.
      tensors: from names to arrays; the reference is dropped before the next is asked for.
      dtype: of the shards.
    """
    shards = [np.empty([stop - start for start, stop in box], dtype) for box in boxes]
    for piece in found:
        overlaps = [piece.overlap(box) for box in boxes]
        if any(overlaps):
            part = piece.read(tensors(piece.name))
            for shard, overlap in zip(shards, overlaps, strict=True):
                if overlap:
                    shard[overlap[0]] = part[overlap[1]]
            del part
    return shards


def load_sharded(
    leaf: jax.ShapeDtypeStruct,
    sharding: Any,
    read: Callable[[Sequence[Bounds]], Sequence[np.ndarray]],
) -> jax.Array:
    """A parameter on its devices, of which each process reads its own shards.

    Args:
      leaf: shape and dtype.
      sharding: of the parameter.
      read: from bounds of shards to the shards.
    """
    places = {
        device: bounds(index, leaf.shape)
        for device, index in sharding.addressable_devices_indices_map(leaf.shape).items()
    }
    # Replicas are read once.
    unique = list(dict.fromkeys(places.values()))
    shards = dict(zip(unique, read(unique), strict=True))
    arrays = [jax.device_put(shards[box], device) for device, box in places.items()]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays, dtype=leaf.dtype)


def write_tensors(
    found: Mapping[Keys, Sequence[Piece]], leaf: Callable[[Keys], np.ndarray], dtype: Any
) -> Iterator[np.ndarray]:
    """The file's tensors, in the order of the parameters and their pieces.

    Args:
      found: what `pieces` returned.
      leaf: from a parameter's path to its array, asked for once.
      dtype: of the tensors.
    """
    for path, parts in found.items():
        array = leaf(path)
        for piece in parts:
            index = tuple(piece.at.get(axis, slice(None)) for axis in range(array.ndim))
            yield np.ascontiguousarray(piece.write(array[index].astype(dtype)))
