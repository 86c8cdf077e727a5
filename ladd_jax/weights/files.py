"""Safetensors files: headers checked whole, tensors mapped one at a time, files written as streams.

The format is 8 bytes with the length of the header, the header (JSON), and the tensors' bytes. The
`safetensors` package keeps a whole file mapped, so that every page ever touched counts as memory
of the process, and it has no numpy dtype for bfloat16.

Weights in float8 may have scales, as ComfyUI writes them: the tensors `NAME.scale_weight` or
`NAME.weight_scale`, by which `NAME.weight` is multiplied. They are no tensors of their own here.
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from ladd_jax.errors import DamagedError, UserError
from ladd_jax.whole_files import LFS_POINTER

_WRITTEN = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _WRITTEN.items()}
_DTYPES = _WRITTEN | {
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}

_SCALES = ("scale_weight", "weight_scale")
# What says how ComfyUI computes with float8, which we do not.
_OF_COMPUTATION = ("scaled_fp8", "scale_input", "input_scale", "comfy_quant")


class Tensor(Protocol):
    """A tensor of a file, wherever its values are."""

    @property
    def name(self) -> str:
        """The tensor's name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def check(self) -> None:
        """Raises UserError where the tensor cannot be read."""

    def map(self) -> np.ndarray:
        """Its values, which leave the process together with the last reference to them."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
      name: the tensor's name.
      file: the file.
      shape: its shape.
      dtype_name: its dtype as the format writes it.
      start: place of its first byte in the file.
      size: its size in bytes.
      scale: what its values are multiplied by: one number, or one for each row; None for nothing.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype_name: str
    start: int
    size: int
    scale: "StoredTensor | None" = None

    @property
    def dtype(self) -> np.dtype:
        """The dtype in the file, of a tensor that `check` has passed."""
        return _DTYPES[self.dtype_name]

    def check(self) -> None:
        """Raises UserError where the tensor cannot be read: its dtype, its size."""
        dtype = _DTYPES.get(self.dtype_name)
        if dtype is None:
            raise UserError(
                f"tensor {self.name} in {self.file} has dtype {self.dtype_name!r}, which is none "
                f"of {', '.join(_DTYPES)}: convert the file to one of these"
            )
        if self.size != dtype.itemsize * math.prod(self.shape):
            raise UserError(
                f"tensor {self.name} in {self.file} has {self.size} bytes, which do not fit "
                f"{self.dtype_name} {list(self.shape)}: the file is damaged, get it again"
            )
        if self.scale is None:
            return
        self.scale.check()
        if math.prod(self.scale.shape) not in (1, *self.shape[:1]):
            raise UserError(
                f"tensor {self.scale.name} in {self.scale.file} has shape "
                f"{list(self.scale.shape)} and scales {list(self.shape)}: only one scale, or one "
                f"for each row, is read; convert the file to bfloat16"
            )

    def map(self) -> np.ndarray:
        """The tensor as a view of the file; what is not touched is not read.

        Each call maps again: the pages leave the process together with the last view of them. With
        a scale it is no view, and float32.
        """
        if not self.size:
            return np.empty(self.shape, self.dtype)
        data = np.memmap(self.file, np.uint8, "r", offset=self.start, shape=(self.size,))
        values = data.view(self.dtype).reshape(self.shape)
        if self.scale is None:
            return values
        scale = self.scale.map().astype(np.float32).reshape(-1, *[1] * max(0, values.ndim - 1))
        return values.astype(np.float32) * scale


def read_headers(files: Sequence[Path]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """All tensors of some files by name, each with its scale, and the files' metadata.

    Raises:
      DamagedError: a file is no file, truncated or not in the format, or two have a tensor of one
        name.
    """
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        if not file.is_file():
            # The hub's cache, copied without the folder of its files, is one of links to nothing.
            what = "a link to nothing" if file.is_symlink() else "no file"
            raise DamagedError(f"{file} is {what}: get it again, with all that links lead to")
        size = file.stat().st_size
        try:
            header, start = _read_header(file, size)
            metadata |= _metadata(header.pop("__metadata__", {}))
            own = [_tensor(name, entry, file, start) for name, entry in header.items()]
            end = _end(own, start)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(
                f"{file} of {size} bytes is truncated or no safetensors file ({error}): "
                f"get it again, or give another path"
            ) from error
        if size < end:
            raise DamagedError(
                f"{file} is truncated: its header promises {end} bytes and it has {size}; "
                f"get it again"
            )
        if size > end:
            raise DamagedError(
                f"{file} has {size} bytes and its header promises {end}, as after a download that "
                f"went on at a wrong place: get it again"
            )
        for tensor in own:
            other = tensors.setdefault(tensor.name, tensor)
            if other is not tensor:
                raise DamagedError(
                    f"{other.file} and {file} both have {tensor.name}: the index names parts of "
                    f"two models, get the folder again"
                )
    return _with_scales(tensors), metadata


def _end(tensors: Iterable[StoredTensor], start: int) -> int:
    """Where the last of a file's tensors ends; raises where they do not follow each other."""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.size)):
        if tensor.start != start:
            raise UserError(
                f"{tensor.name} begins at byte {tensor.start} and the tensor before it ends at "
                f"{start}"
            )
        start += tensor.size
    return start


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise UserError("its metadata are no texts by name")
    return found


def _tensor(name: str, entry: Any, file: Path, start: int) -> StoredTensor:
    """A tensor as a header describes it, of a file whose tensors begin at a place."""
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or not isinstance(entry["dtype"], str):
        raise UserError(f"its header says of {name} what is no dtype, shape or place")
    first, last = offsets
    if first > last:
        raise UserError(f"its header says that {name} ends before it begins")
    return StoredTensor(name, file, tuple(shape), entry["dtype"], start + first, last - first)


def _are_counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**63 for n in found)


def _with_scales(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a network, without those that only say how others are stored."""
    found = dict(tensors)
    for name in tensors:
        stem, _, last = name.rpartition(".")
        weight = f"{stem}.weight"
        if last in _SCALES and weight in found:
            found[weight] = dataclasses.replace(found[weight], scale=found.pop(name))
        elif last in _OF_COMPUTATION:
            del found[name]
    return found


def _read_header(file: Path, size: int) -> tuple[dict[str, Any], int]:
    with file.open("rb") as stream:
        first = stream.read(8)
        if len(first) == 8 and LFS_POINTER.startswith(first):
            raise UserError("it is a pointer of git-lfs, and not the file: run `git lfs pull`")
        if len(first) < 8:
            raise UserError("it has no header")
        (length,) = struct.unpack("<Q", first)
        if 8 + length > size:
            raise UserError("its header would be longer than the file")
        header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise UserError("its header is no JSON object")
        return header, 8 + length


def weight_dtype(dtype: Any) -> np.dtype:
    """The dtype of weights that a name or a scalar type stands for.

    Raises:
      UserError: weights are not kept so.
    """
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in _NAMES:
        raise UserError(
            f"weights cannot be of dtype {getattr(dtype, '__name__', dtype)}: "
            f"use {', '.join(dtype.name for dtype in _NAMES)}"
        )
    return found


def dtype_name(dtype: Any) -> str:
    """The format's name of a dtype.

    Raises:
      UserError: weights are not stored so.
    """
    return _NAMES[weight_dtype(dtype)]


def make_header(
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Any,
    metadata: Mapping[str, str],
    numbers: Iterable[str] = (),
) -> bytes:
    """What a file begins with; without gaps the `numbers` follow, single ones of float32, then the
    tensors in the order of `shapes`.

    Raises:
      UserError: a dtype in which weights are not stored.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    single: dict[str, tuple[tuple[int, ...], Any]] = {name: ((), np.float32) for name in numbers}
    for name, (shape, kind) in (single | {n: (s, dtype) for n, s in shapes.items()}).items():
        start, end = end, end + math.prod(shape) * np.dtype(kind).itemsize
        header[name] = {
            "dtype": dtype_name(kind),
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Any,
    tensors: Iterable[np.ndarray],
    metadata: Mapping[str, str],
    numbers: Mapping[str, float] | None = None,
) -> None:
    """Writes a file tensor by tensor, so that one of them is in memory.

    Args:
      path: the file to write.
      shapes: the tensors' shapes by name, in the order of `tensors`.
      dtype: dtype of all tensors.
      tensors: their values.
      metadata: kept in the header.
      numbers: single numbers by name, of float32 whatever `dtype` is.

    Raises:
      UserError: a dtype in which weights are not stored.
    """
    numbers = numbers or {}
    with path.open("wb") as stream:
        stream.write(make_header(shapes, dtype, metadata, numbers))
        stream.write(np.array(list(numbers.values()), "<f4").tobytes())
        for _, tensor in zip(shapes, tensors, strict=True):
            stream.write(np.ascontiguousarray(tensor).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
