"""The arrays of a record, and the form in which they are stored.

The last axis of a text's array holds features; each of its rows is a token.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError

Blocks = tuple[tuple[int, int], ...]
"""(rows, columns) of each of several blocks, one below the other; right of a block all is zero."""


DTYPES = ("float32", "float16", "int8")
"""Dtypes of arrays on disk."""


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """An array that every record has.

    Attributes:
      shape: its dimensions; "H" and "W" are the rows and columns of the record's bucket.
      dtype: dtype on disk: float32, float16 or int8. With int8 each token of a text, or each
        channel of a latent, is stored in 255 levels with a scale of its own.
      blocks: the blocks that are stored, for an array with two dimensions; empty: all of it.

    Raises:
      UserError: a dimension is a string other than "H" and "W", or the blocks do not fit the shape.
    """

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    blocks: Blocks = ()

    def __post_init__(self) -> None:
        for size in self.shape:
            if isinstance(size, str) and size not in ("H", "W"):
                raise UserError(
                    f"an array's shape {self.shape} names {size!r}: use whole numbers, and 'H' and "
                    f"'W' for the sides of the bucket"
                )
        if self.blocks:
            rows = sum(rows for rows, _ in self.blocks)
            columns = max(columns for _, columns in self.blocks)
            if len(self.shape) != 2 or rows != self.shape[0] or columns > int(self.shape[1]):
                raise UserError(
                    f"blocks {self.blocks} do not make an array of shape {self.shape}: use blocks "
                    f"with as many rows together, and no more columns"
                )

    @classmethod
    def from_dict(cls, data: Any) -> "ArraySpec":
        """The inverse of `dataclasses.asdict`, after JSON.

        Raises:
          UserError: `data` does not describe an array.
        """
        given = data if isinstance(data, dict) else {}
        shape: Any = given.get("shape")
        blocks: Any = given.get("blocks", [])
        if not _are_sizes(shape, ("H", "W")) or given.get("dtype") not in DTYPES:
            raise UserError(
                f"{str(data)[:60]} does not describe an array: use a shape and a dtype of {DTYPES}"
            )
        if not isinstance(blocks, list) or not all(_are_sizes(b) and len(b) == 2 for b in blocks):
            raise UserError(f"blocks {str(blocks)[:60]} are not pairs: use rows and columns")
        return cls(tuple(shape), given["dtype"], tuple((rows, columns) for rows, columns in blocks))

    def shape_in(self, bucket: Bucket) -> tuple[int, ...]:
        """The dimensions in one bucket."""
        sides = {"H": bucket.height, "W": bucket.width}
        return tuple(sides[size] if isinstance(size, str) else size for size in self.shape)

    def bytes_in(self, bucket: Bucket) -> int:
        """Bytes that one array of this kind takes on disk."""
        shape = self.shape_in(bucket)
        count = sum(r * c for r, c in self.blocks) if self.blocks else math.prod(shape)
        scales = 4 * math.prod(self._scaled(shape)) if self.dtype == "int8" else 0
        return count * np.dtype(self.dtype).itemsize + scales

    def as_given(self, array: Any) -> np.ndarray:
        """The array in the dtype whose range it must fit: the one on disk, or float32 for int8."""
        return np.asarray(array, "float32" if self.dtype == "int8" else self.dtype)

    def parts(self, name: str, bucket: Bucket) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of all that is stored for the array, by the names in the record."""
        shape, dtype = self.shape_in(bucket), np.dtype(self.dtype)
        found = {name: (shape, dtype)}
        if self.blocks:
            found = {
                part: ((rows.stop - rows.start, columns), dtype)
                for part, rows, columns in self._stored(name)
            }
        scales = {_scale(name): (self._scaled(shape), np.dtype(np.float32))}
        return found | (scales if self.dtype == "int8" else {})

    def features(self, name: str, bucket: Bucket) -> dict[str, tfds.features.Tensor]:
        """The features of tfds in which the array is stored, by the names in the record."""
        parts = self.parts(name, bucket)
        return {part: _tensor(shape, dtype) for part, (shape, dtype) in parts.items()}

    def pack(self, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
        """What is stored for an array of this shape, by the names in the record.

        Raises:
          ValueError: the array is not zero outside of the blocks.
        """
        scales = {}
        if self.dtype == "int8":
            axes = tuple(range(array.ndim - 1)) if self._is_grid else -1
            scale = np.max(np.abs(array), axis=axes, initial=0) / np.float32(127)
            scales[_scale(name)] = np.asarray(scale, np.float32)
            array = np.rint(array / self._spread(np.where(scale == 0, 1, scale))).astype(np.int8)
        if not self.blocks:
            return scales | {name: array}
        left = np.array(array)
        stored = {}
        for part, rows, columns in self._stored(name):
            stored[part] = np.ascontiguousarray(array[rows, :columns])
            left[rows, :columns] = 0
        if left.any():
            raise ValueError(f"{name} is not zero outside of its blocks {self.blocks}")
        return scales | stored

    @property
    def is_plain(self) -> bool:
        """Whether what is stored is the array itself, in float32."""
        return self.dtype == "float32" and not self.blocks

    def widen(self, name: str, stored: Mapping[str, Any], xp: Any = np) -> Any:
        """Arrays from what is stored for them.

        Args:
          name: the array's name.
          stored: the arrays of `parts`, `[..., *shape]`, by the names in the record.
          xp: `numpy` or `jax.numpy`, whichever made `stored`. Both give the same bits.

        Returns:
          float32 `[..., *shape]`.
        """
        if self.blocks:
            parts = list(self._stored(name))
            # A block without columns is not stored: its rows become zeros below the block before
            # it, or above the first one.
            ends = [*(rows.start for _, rows, _ in parts[1:]), int(self.shape[0])]
            pieces, filled = [], 0
            for (part, rows, columns), end in zip(parts, ends, strict=True):
                piece = xp.asarray(stored[part], np.float32)
                around = (rows.start - filled, end - rows.stop), (0, int(self.shape[1]) - columns)
                pieces.append(xp.pad(piece, [(0, 0)] * (piece.ndim - 2) + [*around]))
                filled = end
            found = xp.concatenate(pieces, axis=-2)
        else:
            found = xp.asarray(stored[name], np.float32)
        if self.dtype == "int8":
            found = found * self._spread(stored[_scale(name)])
        return found

    @property
    def _is_grid(self) -> bool:
        return any(isinstance(size, str) for size in self.shape)

    def _scaled(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales with int8: one for each channel of a grid or token of a text."""
        return shape[-1:] if self._is_grid else shape[:-1]

    def _spread(self, scale: Any) -> Any:
        """Scales `[..., *_scaled(shape)]` as factors of arrays `[..., *shape]`."""
        if not self._is_grid:
            return scale[..., None]
        return scale[(..., *(None,) * (len(self.shape) - 1), slice(None))]

    def _stored(self, name: str) -> Iterator[tuple[str, slice, int]]:
        """Name, rows and number of columns of each block that holds something."""
        start = 0
        for i, (rows, columns) in enumerate(self.blocks):
            if rows and columns:
                yield f"{name}.{i}", slice(start, start + rows), columns
            start += rows


def text_spec(shape: tuple[int, ...], dtype: str, blocks: Blocks = ()) -> ArraySpec:
    """How an array of a prompt is stored.

    Args:
      shape: the array's dimensions.
      dtype: float32, float16 or int8. int8 applies to arrays of tokens; a single vector, which sums
        up the whole prompt, is then stored as float16.
      blocks: see `ArraySpec`.
    """
    return ArraySpec(shape, "float16" if dtype == "int8" and len(shape) == 1 else dtype, blocks)


def joined_spec(spec: ArraySpec, latents_dtype: str) -> ArraySpec:
    """How an array that is joined to the channels of x_t is stored.

    Args:
      spec: the array, as its source makes it.
      latents_dtype: dtype of latents on disk. The array is float32 if they are, and float16
        otherwise: it may hold a mask of 0 and 1, which int8 with a scale would not keep exact.
    """
    return spec if latents_dtype == "float32" else dataclasses.replace(spec, dtype="float16")


def _are_sizes(found: Any, names: tuple[str, ...] = ()) -> bool:
    return isinstance(found, list) and all(
        n in names if isinstance(n, str) else type(n) is int and 0 <= n < 2**31 for n in found
    )


def _scale(name: str) -> str:
    return f"{name}.scale"


def _tensor(shape: tuple[int, ...], dtype: np.dtype) -> tfds.features.Tensor:
    # As bytes: a list of numbers is read one by one, and takes four bytes for each float16.
    encoding = tfds.features.Encoding.BYTES
    return tfds.features.Tensor(shape=shape, dtype=dtype.type, encoding=encoding)
