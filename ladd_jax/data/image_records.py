"""Records of an image and its prompt, from an image folder or WebDataset tars."""

import dataclasses
import glob
import json
import os
import tarfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from ladd_jax.data.prompts import check_prompt, choose_column, objects, parse_object
from ladd_jax.errors import NotFoundError, UserError

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_TEXT_SUFFIXES = ("txt", "json")
_METADATA = "metadata.jsonl"


@dataclasses.dataclass(frozen=True)
class Record:
    """An image with its prompt.

    Attributes:
      key: name of the record in its source.
      data: the encoded image.
      prompt: text that says what it shows.
    """

    key: str
    data: bytes
    prompt: str


class ImageFolder:
    """A Hugging Face image folder: images, and a `metadata.jsonl` with their prompts.

    `folder[i]` reads one record, in order of file name. It raises UserError if the file cannot be
    read, and IndexError if there is no such record.

    Attributes:
      keys: file names of all records.
    """

    def __init__(self, directory: str | Path, column: str = ""):
        """Reads the metadata, but no image.

        Args:
          directory: folder with `metadata.jsonl`. Its lines have the field `file_name`, relative to
            the folder, and one with the prompt.
          column: name of the field with the prompt. If empty, whichever of `prompt`, `text` and
            `caption` there is.

        Raises:
          NotFoundError: there is no `metadata.jsonl`.
          UserError: one of its lines is damaged, has no such field or names a file outside the
            folder, or it has no lines.
        """
        self._directory = Path(directory)
        entries = []
        for where, record in objects(self._directory / _METADATA):
            name = record.get("file_name")
            if not isinstance(name, str) or not name:
                raise UserError(f"{where} has no file_name: name the image there")
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(
                    f"{where} names {name!r} outside {directory}: name files inside it, "
                    f"relative to it"
                )
            # What the first record settles holds for all.
            column = choose_column(record, column, where)
            entries.append((name, check_prompt(record[column], where)))
        if not entries:
            raise UserError(f"{self._directory / _METADATA} holds no records: write at least one")
        entries.sort()
        self.keys = [name for name, _ in entries]
        self._prompts = [prompt for _, prompt in entries]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        name = self.keys[index]
        try:
            data = (self._directory / name).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{name}, named in {_METADATA}, cannot be read: {reason}") from error
        return Record(name, data, self._prompts[index])


# Of each member: the place where its bytes start in the tar, and their number.
_Members = dict[str, tuple[int, int]]


class ImageTars:
    """WebDataset tars: `x.jpg` (or jpeg, png, webp) is an image and `x.txt` or `x.json` its prompt.

    `tars[i]` reads one record, in order of tar and then of name. It raises UserError if the
    image is missing or is there in two formats, or if there is no proper prompt, and IndexError if
    there is no such record.

    Attributes:
      keys: `TAR/NAME` of all records, without suffixes.
    """

    def __init__(self, paths: Sequence[str | Path], column: str = ""):
        """Reads the headers of all members, but no image.

        Args:
          paths: uncompressed tars.
          column: field of `x.json` with the prompt. If empty, the prompt is all of `x.txt` or, if
            there is none, whichever of the fields `prompt`, `text` and `caption` there is.

        Raises:
          UserError: a tar is damaged, cut or compressed, or names a member twice; or there are no
            records.
        """
        self._column = column
        self._records: list[tuple[Path, _Members]] = []
        self.keys: list[str] = []
        files = sorted(Path(path) for path in paths)
        root = os.path.commonpath([file.parent for file in files]) if files else ""
        for file in files:
            prefix = file.relative_to(root).with_suffix("").as_posix()
            for name, members in sorted(_members(file).items()):
                self.keys.append(f"{prefix}/{name}")
                self._records.append((file, members))
        if not self.keys:
            raise UserError(
                f"{len(files)} tars hold no records: name members such as cat.jpg and cat.txt"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        key, (path, members) = self.keys[index], self._records[index]
        images = [suffix for suffix in _IMAGE_SUFFIXES if suffix in members]
        if len(images) != 1:
            found = " and ".join(images) or f"none of {', '.join(_IMAGE_SUFFIXES)}"
            raise UserError(f"{key} has {found} and needs one image")
        with path.open("rb") as file:

            def read(suffix: str) -> bytes:
                start, size = members[suffix]
                file.seek(start)
                return file.read(size)

            return Record(key, read(images[0]), self._prompt(key, members, read))

    def _prompt(self, key: str, members: _Members, read: Callable[[str], bytes]) -> str:
        suffix = "txt" if "txt" in members and not self._column else "json"
        if suffix not in members:
            raise UserError(f"{key} has no {'json' if self._column else 'txt or json'}")
        where = f"{key}.{suffix}"
        try:
            text = read(suffix).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8") from error
        if suffix == "txt":
            return check_prompt(text, where)
        record = parse_object(text, where)
        return check_prompt(record[choose_column(record, self._column, where)], where)


def _members(path: Path) -> dict[str, _Members]:
    """Images and texts of a tar, by the name that they share and then by suffix."""
    groups: dict[str, _Members] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                suffix = suffix.lower()
                known = suffix in _IMAGE_SUFFIXES or suffix in _TEXT_SUFFIXES
                if not member.isfile() or not stem or not known:
                    continue
                group = groups.setdefault(f"{folder}/{stem}" if folder else stem, {})
                if suffix in group:
                    raise tarfile.ReadError(f"{member.name} is in it twice")
                group[suffix] = (member.offset_data, member.size)
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            # The library takes a damaged header for the end of the tar, which is a block of zeros.
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"the header at byte {end} is damaged")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as an uncompressed tar ({error}): write or fetch it again"
        ) from error
    return groups


def open_images(path: str | Path, column: str = "") -> ImageFolder | ImageTars:
    """The images of a path.

    Args:
      path: a directory with `metadata.jsonl`, a directory of `*.tar`, one tar, or a pattern of tars
        such as `data/*.tar`.
      column: name of the field with the prompt.

    Raises:
      NotFoundError: there are neither.
      UserError: see `ImageFolder` and `ImageTars`.
    """
    folder = Path(path)
    if (folder / _METADATA).is_file():
        return ImageFolder(folder, column)
    if folder.is_dir():
        tars = list(folder.glob("*.tar"))
    elif folder.is_file():
        tars = [folder]
    else:
        tars = [Path(found) for found in glob.glob(str(path), recursive=True)]
    if not tars:
        raise NotFoundError(
            f"no images in {path}: give a directory with {_METADATA}, or one of *.tar files, or a "
            f"pattern that matches tars"
        )
    return ImageTars(tars, column)


class Unreadable:
    """Records that could not be read: counted, listed and left out, up to a limit.

    Attributes:
      records: (key, reason) of each.
    """

    def __init__(self, total: int, path: str | Path, limit: float = 0.01):
        """Starts without any.

        Args:
          total: number of records of the source.
          path: file that `write` puts the list into.
          limit: share of all records that may be left out.
        """
        self._total = total
        self._path = Path(path)
        self._limit = limit
        self.records: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.records)

    def add(self, key: str, reason: object) -> None:
        """Counts a record.

        Raises:
          UserError: there are more than the limit. The list so far has been written.
        """
        self.records.append((key, str(reason)))
        if len(self) > self._limit * self._total:
            self.write()
            first = "; ".join(f"{key} ({reason})" for key, reason in self.records[:3])
            raise UserError(
                f"{len(self)} of {self._total} records cannot be read and the limit is "
                f"{100 * self._limit:g} %: repair or remove those listed in {self._path}; "
                f"the first are {first}"
            )

    def write(self) -> None:
        """Writes the list as JSON lines of `key` and `reason`; no file if it is empty."""
        if not self.records:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.partial")
        with partial.open("w") as file:
            for key, reason in self.records:
                file.write(json.dumps({"key": key, "reason": reason}) + "\n")
        os.replace(partial, self._path)
