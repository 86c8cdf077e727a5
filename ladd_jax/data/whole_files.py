"""Files that appear whole or not at all."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """A file under its final name once all of it is written, by one of several writers or more.

    Args:
      path: the file, in a folder that is there.
      write: writes its bytes.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as file:
        write(file)
    os.replace(partial, path)
