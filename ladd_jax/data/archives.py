"""Reads archives of arrays, `.npz`; damage is reported in one sentence."""

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.errors import DamagedError, UserError, brief

# What NumPy and zipfile raise for a damaged format, or an unknown kind of compression.
_DAMAGE = (
    OSError, ValueError, LookupError, EOFError, TypeError, zipfile.BadZipFile, zlib.error,
    tokenize.TokenError, SyntaxError, OverflowError, RuntimeError,
)  # fmt: skip


def read(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an archive by name.

    Args:
      path: the file, which must exist.
      remedy: what to do about a damaged file, for the end of the message.

    Raises:
      PermissionError: the file may not be read.
      DamagedError: it is damaged, is not an archive, or holds what only a pickle can.
      UserError: the file is whole, but there is no memory for one of its arrays.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("it is one array and not an archive")
            for name in found.files:
                size = _size(found.zip, name)
                try:
                    arrays[name] = found[name]
                except MemoryError as error:
                    raise UserError(
                        f"{path} holds {name} of {size / 1e9:.2g} GB, for which no memory is free "
                        f"here: end what else uses it, or take a machine that has more"
                    ) from error
            return arrays
    except UserError:
        raise
    # A damaged archive raises errors of many kinds.
    except _DAMAGE as error:
        if isinstance(error, PermissionError):
            raise
        raise DamagedError(f"{path} is damaged ({brief(error)}): {remedy}") from error


def _size(archive: Any, name: str) -> int:
    """Bytes of an array; raises ValueError where its header and the archive contradict each other.

    Without this check a damaged header could ask for any amount of memory.
    """
    member = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        wanted, size = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if wanted != size:
        raise ValueError(f"{name} of shape {shape} has {size} of {wanted} bytes")
    return wanted
