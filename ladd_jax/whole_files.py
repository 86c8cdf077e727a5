"""Files that appear whole or not at all, and JSON that is read whole or refused in a sentence."""

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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs; raises ValueError if it has a name twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        again = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"it has {again!r} twice")
    return found


def read_json(path: Path, remedy: str = "get it again", once: bool = False) -> dict[str, Any]:
    """The object of a JSON file, with or without a byte-order mark.

    Args:
      path: the file.
      remedy: what the user can do about a damaged one.
      once: whether a name that an object has twice counts as damage, since the first of the two
        values that someone wrote would be lost.

    Raises:
      DamagedError: it is missing, a folder, empty, a pointer of git-lfs, cut, or holds no object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing: {remedy}") from error
    except IsADirectoryError as error:
        raise DamagedError(f"{path} is damaged (it is a folder): {remedy}") from error
    if data.startswith(LFS_POINTER):
        raise DamagedError(
            f"{path} is damaged (it is a pointer of git-lfs, and not the file): run `git lfs pull` "
            f"in the folder that it was cloned into"
        )
    if not data.strip():
        raise DamagedError(f"{path} is damaged (it is empty): {remedy}")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once if once else None)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is damaged (it holds no JSON object): {remedy}")
    return value
