"""Records of an image and its prompt, and those that could not be read."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ladd_jax.errors import UserError
from ladd_jax.paths import as_on_disk
from ladd_jax.whole_files import write_text_whole


@dataclasses.dataclass(frozen=True)
class Record:
    """An image with its prompt.

    Attributes:
      key: name of the record in its source.
      data: the encoded image.
      prompt: text that says what the image shows.
      held_out: whether the record is for judges; None where the source does not say.
      other: the encoded image that it was compared with, or that it is an edit of; or empty.
      preference: which of the two was preferred: 1 for `data`, -1 for `other`, 0 for neither.
    """

    key: str
    data: bytes
    prompt: str
    held_out: bool | None = None
    other: bytes = b""
    preference: float = 0.0


class Records(Protocol):
    """Records in a fixed order, each read when it is asked for."""

    @property
    def keys(self) -> Sequence[str]:
        """Names of all records, in order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """One record.

        Raises:
          UserError: it cannot be read. The other records can.
          IndexError: there is no such record.
        """
        ...


DECODE_ALL = "decode_all"
"""A file in the folder of a run's data. It says that a picture that looked whole could not be
decoded, so that from now on all are decoded when they are looked at."""


class UndecodableError(UserError):
    """A picture that looked whole cannot be decoded. The file `DECODE_ALL` has been written."""


# A folder that file systems make.
_STRAY = "lost+found"


def names_below(folder: Path) -> Iterator[str]:
    """Names, relative to a folder, of what is no folder in it and its subfolders, links included.

    Hidden files and those of the system are left out.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_stray(name)]
        inner = Path(place).relative_to(folder)
        yield from ((inner / name).as_posix() for name in files if not _is_stray(name))


def _is_stray(name: str) -> bool:
    return name.startswith(".") or name == _STRAY


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, without hidden files and those of the system."""
    return [file for file in map(folder.joinpath, names_below(folder)) if file.is_file()]


def read_inside(folder: Path, name: str) -> bytes:
    """The bytes of a file in a folder, whatever Unicode form its name has there.

    Links out of the folder are not followed, except in the hub's cache, whose snapshots are links
    to its own blobs.

    Args:
      folder: the folder.
      name: the file's path, relative to the folder or absolute.

    Raises:
      UserError: the file is outside of the folder, or a link to a file outside.
      OSError, ValueError: the file cannot be read.
    """
    file, root = as_on_disk(folder / name).resolve(), folder.resolve()
    roots = [root, *(p.parent / "blobs" for p in root.parents if p.name == "snapshots")]
    if not any(file.is_relative_to(place) for place in roots):
        named = Path(os.path.normpath(folder / name))
        what = "a link out" if named.is_relative_to(folder) else "outside"
        raise UserError(f"it is {what} of {folder}: copy the file into it")
    return file.read_bytes()


class Unreadable:
    """Records that could not be read: counted, listed and left out, up to a limit.

    Attributes:
      records: (key, reason) of each.
    """

    def __init__(self, total: int, path: str | Path, limit: float = 0.01, count: int = 0):
        """Starts without any.

        Args:
          total: number of records of the source.
          path: file that `write` puts the list into.
          limit: share of all records that may be left out.
          count: number of records that may be left out, if it is larger than the share.
        """
        self._total = total
        self._path = Path(path)
        self._limit, self._count = limit, count
        self.records: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.records)

    def add(self, key: str, reason: object) -> None:
        """Counts a record.

        Raises:
          UserError: there are more than the limit. The list so far has been written.
        """
        self.records.append((key, str(reason)))
        if len(self) > max(self._limit * self._total, self._count):
            self.write()
            first = "; ".join(f"{key} ({reason})" for key, reason in self.records[:3])
            least = f" or {self._count}" if self._count else ""
            raise UserError(
                f"{len(self)} of {self._total} records cannot be read and the limit is "
                f"{100 * self._limit:g} %{least}: repair or remove those listed in {self._path}; "
                f"the first are {first}"
            )

    def write(self) -> None:
        """Writes the list as JSON lines of `key` and `reason`; no file if it is empty."""
        if not self.records:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in self.records]
        write_text_whole(self._path, "".join(lines))
