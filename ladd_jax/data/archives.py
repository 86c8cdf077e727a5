"""Archives of arrays, `.npz`, that are whole or a sentence."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.errors import DamagedError


@contextlib.contextmanager
def opened(path: Path, remedy: str) -> Iterator[Any]:
    """An archive, whose arrays are read in a block.

    Args:
      path: the file, which is there.
      remedy: what to do about a damaged one, at the end of the message.

    Raises:
      PermissionError: it may not be read.
      DamagedError: it is damaged, or does not hold what the block looks for.
    """
    try:
        with np.load(path) as found:
            yield found
    # A damaged archive raises errors of several kinds.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, PermissionError):
            raise
        raise DamagedError(f"{path} is damaged ({error}): {remedy}") from error
