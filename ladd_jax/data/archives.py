"""Archives of arrays, `.npz`, that are whole or a sentence."""

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ladd_jax.errors import DamagedError, brief

# Of the format of a file, of what a header says that no memory holds, and of a kind of compression
# that there is not.
_DAMAGE = (
    OSError, ValueError, LookupError, EOFError, TypeError, zipfile.BadZipFile, zlib.error,
    tokenize.TokenError, SyntaxError, MemoryError, OverflowError, RuntimeError,
)  # fmt: skip


def read(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an archive by name.

    Args:
      path: the file, which is there.
      remedy: what to do about a damaged one, at the end of the message.

    Raises:
      PermissionError: it may not be read.
      DamagedError: it is damaged, or no archive, or holds what only a pickle can.
    """
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("it is one array and no archive")
            return dict(found.items())
    # A damaged archive raises errors of many kinds.
    except _DAMAGE as error:
        if isinstance(error, PermissionError):
            raise
        raise DamagedError(f"{path} is damaged ({brief(error)}): {remedy}") from error
