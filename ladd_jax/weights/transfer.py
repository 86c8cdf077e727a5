"""Parameters read from the tensors of files, and written back, by a network's layout.

Each process reads only the parts of tensors that its own devices hold, one tensor at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ladd_jax.errors import UserError
from ladd_jax.models.base import Params
from ladd_jax.parallel.mesh import parameter_shardings
from ladd_jax.weights.files import Tensor
from ladd_jax.weights.layout import Bounds, Leaf, Piece, Shape, Tree, tensor_shapes


def bounds(index: tuple[slice, ...], shape: Shape) -> Bounds:
    """The start and stop of each slice in a shard's index, as a sharding gives it."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def read_shards(
    pieces: Sequence[Piece],
    boxes: Sequence[Bounds],
    tensors: Callable[[str], np.ndarray],
    dtype: Any,
) -> list[np.ndarray]:
    """Shards of one parameter; each tensor is mapped once for all of them.

    Args:
      pieces: the parameter's pieces.
      boxes: bounds of the shards.
      tensors: `tensors(name)` gives a tensor; it is released before the next one is requested.
      dtype: the shards' dtype.
    """
    shards = [np.empty([stop - start for start, stop in box], dtype) for box in boxes]
    for piece in pieces:
        overlaps = [piece.overlap(box) for box in boxes]
        if any(overlaps):
            part = piece.read(tensors(piece.name))
            for shard, overlap in zip(shards, overlaps, strict=True):
                if overlap:
                    shard[overlap[0]] = part[overlap[1]]
            del part
    return shards


def check_tensors(
    source: Path,
    tensors: Mapping[str, Tensor],
    layout: Tree,
    shapes: Tree,
    ignored: frozenset[str] = frozenset(),
) -> None:
    """Raises UserError if a file's tensors are not exactly those of a network.

    Args:
      source: the tensors' file or folder, for messages.
      tensors: the file's tensors by name.
      layout: the network's tree of leaves.
      shapes: the network's shapes.
      ignored: names of tensors that may be present and are not needed.
    """
    # Names come first, since they do not depend on shapes, which may not suit their leaf at all.
    wanted = {name for leaf in jax.tree.leaves(layout) for name in leaf.names}
    for kind, names in (
        ("does not have the", wanted - tensors.keys()),
        ("has the unknown", tensors.keys() - wanted - ignored),
    ):
        if names:
            first = sorted(names)[0]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{source} {kind} tensor {first}{more}: use the files of one model, complete"
            )
    for name, shape in tensor_shapes(layout, shapes).items():
        if tensors[name].shape != shape:
            raise UserError(
                f"tensor {name} in {source} is {list(tensors[name].shape)} and the network needs "
                f"{list(shape)}: use the files of one model"
            )
        tensors[name].check()


def load(
    tensors: Mapping[str, Tensor],
    layout: Tree,
    shapes: Params,
    axes: Params,
    mesh: Mesh | None = None,
) -> Params:
    """A network's parameters; each process reads only what its devices hold.

    Args:
      tensors: the file's tensors, which `check_tensors` has accepted.
      layout: the network's tree of leaves.
      shapes: the network's shapes and dtypes.
      axes: the network's logical axes.
      mesh: the mesh to shard them over; None puts them on the first device.
    """

    def read(leaf: Leaf, shape: jax.ShapeDtypeStruct, sharding: Any = None) -> jax.Array:
        pieces = leaf.pieces(shape.shape)

        def shards(boxes: Sequence[Bounds]) -> list[np.ndarray]:
            return read_shards(pieces, boxes, lambda name: tensors[name].map(), shape.dtype)

        if sharding is None:
            whole = shards([tuple((0, size) for size in shape.shape)])[0]
            # `jnp.asarray` would compile a copy for each shape. It is safe to hand over the array,
            # since nobody else holds it.
            return jax.device_put(whole)
        places = {
            device: bounds(index, shape.shape)
            for device, index in sharding.addressable_devices_indices_map(shape.shape).items()
        }
        # Replicas share bounds, so they are read only once.
        unique = list(dict.fromkeys(places.values()))
        read_once = dict(zip(unique, shards(unique), strict=True))
        arrays = [jax.device_put(read_once[box], device) for device, box in places.items()]
        return jax.make_array_from_single_device_arrays(
            shape.shape, sharding, arrays, dtype=shape.dtype
        )

    if mesh is None:
        return jax.tree.map(read, layout, shapes)
    return jax.tree.map(read, layout, shapes, parameter_shardings(mesh, shapes, axes))


def write_tensors(
    layout: Tree,
    params: Params,
    dtype: Any,
    whole: Callable[[Any], np.ndarray] = np.asarray,
) -> Iterator[np.ndarray]:
    """The tensors to write to a file, in the order of `tensor_shapes`.

    Args:
      layout: the network's tree of leaves.
      params: the network's parameters.
      dtype: the tensors' dtype.
      whole: `whole(parameter)` gives its whole array; it is called once per parameter.
    """
    for leaf, parameter in zip(jax.tree.leaves(layout), jax.tree.leaves(params), strict=True):
        array = whole(parameter)
        for piece in leaf.pieces(array.shape):
            index = tuple(piece.at.get(axis, slice(None)) for axis in range(array.ndim))
            yield np.ascontiguousarray(piece.write(array[index].astype(dtype)))
