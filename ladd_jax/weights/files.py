"""Safetensors files: headers are fully checked, tensors mapped one by one, and files streamed out.

The format is 8 bytes with the length of the header, the header (JSON), and the tensors' bytes. The
`safetensors` package is not used because it keeps a whole file mapped, so that every page ever
touched counts as memory of the process, and because it has no numpy dtype for bfloat16.

Weights in float8 may have scales, as ComfyUI writes them: tensors `NAME.scale_weight` or
`NAME.weight_scale`, by which `NAME.weight` is multiplied. Here a scale is part of its weight's
`StoredTensor` and is not listed as a tensor of its own.
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
from ladd_jax.whole_files import parse_json, refuse_pointer

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
# Tensors that tell ComfyUI how to compute in float8; we do not compute in float8.
_OF_COMPUTATION = ("scaled_fp8", "scale_input", "input_scale", "comfy_quant")

# How the names of tensors end that describe weights in forms that are not read.
_PACKED = {
    "bitsandbytes": (".absmax", ".quant_map", ".SCB"),
    "GPTQ, AWQ or Nunchaku": (".qweight", ".qzeros"),
    "quanto": (".weight._data", ".weight._scale"),
    "NVFP4": (".weight_scale_2",),
}

# How files begin that are taken for safetensors.
_OTHER_KINDS = {
    b"GGUF": "it is a GGUF file",
    b"PK\3\4": "it is a zip file, as PyTorch writes pickled weights",
    b"\x80": "it holds pickled weights",
}
_SHOWN = 40
"""Bytes at the start of a file by which its kind is told, and that are shown."""

_LONGEST_HEADER = 100_000_000
"""Bytes of the longest header that safetensors' own reader accepts."""


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
        """Its values; their memory is freed with the last reference to them."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, described by its header.

    Attributes:
      name: the tensor's name.
      file: the file that holds it.
      shape: its shape.
      dtype_name: its dtype as the format spells it.
      start: offset of its first byte in the file.
      size: its size in bytes.
      scale: factor of its values, a single number or one per row; None for no scale.
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
        """The dtype in the file; only valid once `check` has passed."""
        return _DTYPES[self.dtype_name]

    def check(self) -> None:
        """Raises UserError where the tensor's dtype, size or scale makes it unreadable."""
        dtype = _DTYPES.get(self.dtype_name)
        if dtype is None:
            raise UserError(
                f"tensor {self.name} in {self.file} has dtype {self.dtype_name!r}, which is not "
                f"one of {', '.join(_DTYPES)}: convert the file to one of these"
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
        """The tensor as a view of the file, whose bytes are only read when they are accessed.

        Each call maps the file again, so that the memory is freed with the last view. A tensor with
        a scale is returned as a float32 copy instead of a view.
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
      DamagedError: a path is not a file, a file is truncated, a pointer of git-lfs or not in the
        format, or two files have a tensor of the same name.
      UserError: weights are in a form that is not read.
    """
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        if not file.is_file():
            # A copy of the hub's cache without its folder of blobs holds only dangling links.
            what = "a link to nothing" if file.is_symlink() else "not a file"
            raise DamagedError(f"{file} is {what}: get it again, with the targets of links")
        size = file.stat().st_size
        try:
            header, start = _read_header(file, size)
            metadata |= _metadata(header.pop("__metadata__", {}))
            own = [_tensor(name, entry, file, start) for name, entry in header.items()]
            end = _end(own, start)
        except DamagedError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(
                f"{file} of {size} bytes is truncated or not a safetensors file ({error}): "
                f"get it again, or give another path"
            ) from error
        if size < end:
            raise DamagedError(
                f"{file} is truncated: its header promises {end} bytes and it has {size}; "
                f"get it again"
            )
        if size > end:
            raise DamagedError(
                f"{file} has {size} bytes and its header promises {end}, as after a download "
                f"resumed at the wrong offset: get it again"
            )
        for tensor in own:
            other = tensors.setdefault(tensor.name, tensor)
            if other is not tensor:
                raise DamagedError(
                    f"{other.file} and {file} both have {tensor.name}: the index names parts of "
                    f"two models, get the folder again"
                )
    _refuse_packed(tensors)
    return _with_scales(tensors), metadata


def _refuse_packed(tensors: Mapping[str, StoredTensor]) -> None:
    for name, tensor in tensors.items():
        for method, ends in _PACKED.items():
            if name.endswith(ends):
                raise UserError(
                    f"{tensor.file} holds weights in the form of {method}, which is not read "
                    f"(tensor {name}): get them in float32, float16, bfloat16 or float8"
                )


def _end(tensors: Iterable[StoredTensor], start: int) -> int:
    """Where the last of a file's tensors ends; raises where there are gaps or overlaps."""
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
        raise UserError("its metadata is not a mapping of names to strings")
    return found


def _tensor(name: str, entry: Any, file: Path, start: int) -> StoredTensor:
    """A tensor as a header describes it, in a file whose tensor data begins at byte `start`."""
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or not isinstance(entry["dtype"], str):
        raise UserError(f"its header has an invalid dtype, shape or offset for {name}")
    first, last = offsets
    if first > last:
        raise UserError(f"its header says that {name} ends before it begins")
    return StoredTensor(name, file, tuple(shape), entry["dtype"], start + first, last - first)


def _are_counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**63 for n in found)


def _with_scales(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a network, with scales attached to their weights and not listed themselves."""
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
        start = stream.read(_SHOWN)
        refuse_pointer(start, str(file))
        if len(start) < 8:
            raise UserError("it has no header")
        (length,) = struct.unpack_from("<Q", start)
        if length > min(size - 8, _LONGEST_HEADER):
            raise UserError(_other_kind(start))
        stream.seek(8)
        header = parse_json(stream.read(length))
        if not isinstance(header, dict):
            raise UserError("its header is not a JSON object")
        return header, 8 + length


def _other_kind(start: bytes) -> str:
    """What a file without a header is, by its first bytes."""
    # The upper half of a header's length, which is zero unless this is something else.
    if start[4:8] == bytes(4):
        return "its header would be longer than the file"
    for mark, what in _OTHER_KINDS.items():
        if start.startswith(mark):
            return what
    text = " ".join(start.decode("ascii", "replace").split())
    if text and start.isascii() and text.isprintable():
        # What a server sends in place of a file that it does not give.
        return f"it begins with the text {text!r}"
    return "its header would be longer than the file"


def weight_dtype(dtype: Any) -> np.dtype:
    """The dtype that a name or a scalar type stands for.

    Raises:
      UserError: it is not a dtype that weights can have.
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
      UserError: it is not a dtype in which weights are stored.
    """
    return _NAMES[weight_dtype(dtype)]


def make_header(
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Any,
    metadata: Mapping[str, str],
    numbers: Iterable[str] = (),
) -> bytes:
    """The bytes that a file begins with.

    They must be followed, without gaps, by the `numbers`, each a single float32, and then by the
    tensors in the order of `shapes`.

    Raises:
      UserError: it is not a dtype in which weights are stored.
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
    """Writes a file tensor by tensor, so that only one of them is in memory at a time.

    Args:
      path: the file to write.
      shapes: the tensors' shapes by name, in the order of `tensors`.
      dtype: dtype of all tensors.
      tensors: the tensors' values.
      metadata: names and strings to keep in the header.
      numbers: single numbers by name, stored in float32 whatever `dtype` is.

    Raises:
      UserError: it is not a dtype in which weights are stored.
    """
    numbers = numbers or {}
    with path.open("wb") as stream:
        stream.write(make_header(shapes, dtype, metadata, numbers))
        stream.write(np.array(list(numbers.values()), "<f4").tobytes())
        for _, tensor in zip(shapes, tensors, strict=True):
            stream.write(np.ascontiguousarray(tensor).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
