"""Files that appear whole or not at all, and JSON that is read whole or refused in a sentence."""

import collections
import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ladd_jax.errors import DamagedError, UserError

LFS_POINTER = b"version https://git-lfs"
"""How a file begins that git-lfs has not fetched yet."""


def refuse_pointer(data: bytes, what: str) -> None:
    """Raises DamagedError if a file is only a pointer of git-lfs.

    Args:
      data: the file, or its beginning.
      what: what the message calls it.
    """
    if data.startswith(LFS_POINTER):
        raise DamagedError(
            f"{what} is a pointer of git-lfs, and not the file: run `git lfs pull` in the folder "
            f"that it was cloned into"
        )


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder at, which gets its final name once the block has ended, or
    is removed if the block raises.

    Args:
      path: its final name, in a folder that is there.
    """
    # Without the final name, which may already be as long as names may be.
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        yield partial
        publish(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            # The block's own error is raised, and not that there is nothing to remove.
            with contextlib.suppress(OSError):
                partial.unlink()


@contextlib.contextmanager
def whole_folder(path: Path, flag: str) -> Iterator[Path]:
    """A folder to write into, which gets its final name once the block has ended, or is removed if
    the block raises.

    Args:
      path: its final name.
      flag: name of the flag that gives this path.

    Raises:
      UserError: no folder can be made there.
    """
    with whole(path.absolute()) as partial:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"{path} cannot be made ({error.strerror}): name another --{flag}"
            ) from error
        yield partial


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file that has its final name once all of it is on disk; several may write the same.

    Args:
      path: the file, in a folder that is there.
      write: function that writes its bytes.
    """
    # The file is closed before it is published.
    with whole(path) as partial, partial.open("wb") as file:
        write(file)


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` for a text, in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode()))


def publish(partial: Path, path: Path) -> None:
    """Gives a finished file or folder its final name, once a loss of power would not harm it.

    Args:
      partial: the file or folder, written and closed.
      path: its final name, in the same folder.
    """
    for part in (*partial.rglob("*"), partial) if partial.is_dir() else (partial,):
        _sync(part)
    os.replace(partial, path)
    _sync(path.parent)


REMOVED = ".removed"
"""How the names of folders end that are being removed."""


def remove_whole(folder: Path) -> None:
    """Removes a folder so that no part of it is ever seen without the rest."""
    aside = folder.with_name(f".{uuid.uuid4().hex}{REMOVED}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Mounted object stores do not support it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that someone else may have written.

    Raises:
      RepeatedFieldError: an object has a field twice, so that one of its values would be lost.
      ValueError, RecursionError: it is not JSON.
    """
    return json.loads(text, object_pairs_hook=_once)


class RepeatedFieldError(ValueError):
    """An object of a JSON text has a field twice.

    Attributes:
      field: name of the field.
    """

    def __init__(self, field: str):
        """Takes the name of the field."""
        super().__init__(f"it has {field!r} twice")
        self.field = field


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise RepeatedFieldError(counts.most_common(1)[0][0])
    return found


def read_json(path: Path, remedy: str = "get it again") -> dict[str, Any]:
    """The object of a JSON file, with or without a byte-order mark.

    Args:
      path: the file.
      remedy: what the user can do about a damaged one.

    Raises:
      DamagedError: it is missing, a folder, empty, a pointer of git-lfs, cut, holds no object, or
        an object in it has a field twice.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing: {remedy}") from error
    except IsADirectoryError as error:
        raise DamagedError(f"{path} is damaged (it is a folder): {remedy}") from error
    refuse_pointer(data, str(path))
    if not data.strip():
        raise DamagedError(f"{path} is damaged (it is empty): {remedy}")
    try:
        value = parse_json(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is damaged (it holds no JSON object): {remedy}")
    return value
