"""Image folders: pictures, and a file of metadata that names each with its prompt.

`datasets` reads such folders too, but a missing picture, a caption that is not text or a damaged
line stops it, without saying where. Here each affects only its own record, or is named with its
line.
"""

import itertools
from collections.abc import Iterator, Sequence
from logging import getLogger
from pathlib import Path, PurePosixPath
from typing import Any

from ladd_jax.data.edit_columns import INSTRUCTIONS, SOURCE_COLUMN, SOURCES, first
from ladd_jax.data.image_tables import table_rows
from ladd_jax.data.prompts import (
    COLUMNS,
    check_prompt,
    choose_column,
    objects_or_faults,
    table_objects,
)
from ladd_jax.data.records import Record, read_inside
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.paths import as_on_disk

_LOG = getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names that the file of metadata may have."""

_FILE = "file_name"

_SOURCE_FILES = tuple(f"{name}_{_FILE}" for name in ("source", *SOURCES))

HELD_OUT = "held_out"
"""Field that says which records are for judges, instead of a draw."""

# JSON and parquet have bools, and csv has text.
_BOOLEANS = {True: True, False: False, "true": True, "false": False, None: None, "": None}


class ImageFolder:
    """A Hugging Face image folder: images, and a file of metadata with their prompts.

    `folder[i]` reads one record, in order of file name. It raises UserError if the file cannot be
    read or the prompt is not one, and IndexError if there is no such record.

    Attributes:
      keys: file names of all records. If several rows name a file, such as one with several
        captions, its records after the first have `:2`, `:3` and so on behind the name. The key of
        a damaged row is its place in the metadata.
    """

    def __init__(
        self,
        directory: str | Path,
        column: str = "",
        *,
        strict: bool = True,
        source: str = "",
        edits: bool = False,
    ):
        """Reads the metadata, but no image.

        Args:
          directory: folder with one of `METADATA`. Its rows have the field `file_name`, relative to
            the folder, and a field with the prompt. A row may also have `held_out`, true or false,
            which says whether it is for judges.
          column: name of the field with the prompt. If empty, whichever of `prompt`, `text` and
            `caption` there is.
          strict: whether a row that is damaged, has no such field or names a file outside the
            folder is an error here. Otherwise reading its record raises the error, and such
            records come last.
          source: for edits, name of the field with the file of the picture that was edited. If
            empty, the first that exists of `source_file_name` and the names of `edit_columns` with
            `_file_name` after them, or else whichever of these names exists.
          edits: whether images are edits of others. The prompt is then the field that has one of
            the names of `edit_columns`, if there is one.

        Raises:
          NotFoundError: there is no file of metadata.
          UserError: there are several such files, one of the rows is damaged, has no such field or
            names a file outside the folder, or there are no rows.
        """
        self._directory = Path(directory)
        self._metadata = _metadata(self._directory)
        entries = []
        faults = []
        for where, record in _rows(self._metadata):
            try:
                if isinstance(record, UserError):
                    raise record
                name = self._name(record, where, _FILE)
                # The columns that the first record has hold for all.
                if edits:
                    column = column or first(record, INSTRUCTIONS)
                    source = source or first(record, _SOURCE_FILES)
                usual = (*COLUMNS, *INSTRUCTIONS) if edits else COLUMNS
                column = choose_column(record, column, where, usual)
                other = ""
                if edits:
                    usual = (_SOURCE_FILES[0], *SOURCES)
                    source = choose_column(record, source, where, usual, SOURCE_COLUMN)
                    other = self._name(record, where, source)
                entries.append((name, where, record[column], _held_out(record, where), other))
            except UserError as error:
                if strict:
                    raise
                faults.append((where, error))
        if not entries and not faults:
            raise UserError(f"{self._metadata} holds no records: write at least one")
        entries.sort(key=lambda entry: entry[0])
        self._names = [name for name, *_ in entries]
        self.keys = _distinct(self._names) + [where for where, _ in faults]
        repeated = len(entries) - len(set(self._names))
        if repeated:
            again = next(a for a, b in itertools.pairwise(self._names) if a == b)
            _LOG.info(
                "%d rows of %s name a picture that an earlier row names, such as %s: each is a "
                "record of its own", repeated, self._metadata, again,
            )  # fmt: skip
        self._rest = [rest for _, *rest in entries]
        self._faults = [error for _, error in faults]

    def _name(self, record: dict[str, Any], where: str, field: str) -> str:
        """The name of a row's file, from the field that holds it."""
        name = record.get(field)
        if not isinstance(name, str) or not name:
            raise UserError(f"{where} has no {field}: name the image there")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{where} names {name!r} outside {self._directory}: name files inside it, relative "
                f"to it"
            )
        return name

    def file(self, index: int) -> Path:
        """The file of a record whose row is not damaged, in the Unicode form it has on disk."""
        return as_on_disk(self._directory / self._names[index])

    @property
    def files(self) -> Iterator[str]:
        """Names of the files of all records whose rows are not damaged, relative to the folder."""
        others = (other for _, _, _, other in self._rest if other)
        return (PurePosixPath(name).as_posix() for name in (*self._names, *others))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        if index >= len(self._rest):
            raise self._faults[index - len(self._rest)]
        name, (where, value, held_out, other) = self._names[index], self._rest[index]
        prompt = check_prompt(value, where)
        source = self._read(other) if other else b""
        return Record(self.keys[index], self._read(name), prompt, held_out, source)

    def _read(self, name: str) -> bytes:
        try:
            return read_inside(self._directory, name)
        # A loop of links has an error of its own.
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            named = self._metadata.name
            raise UserError(f"{name}, named in {named}, cannot be read: {reason}") from error


def _distinct(names: Sequence[str]) -> list[str]:
    """A key for each name, in a list where equal names follow each other."""
    taken, keys = set(names), []
    for name, same in itertools.groupby(names):
        numbered = (f"{name}:{number}" for number in itertools.count(2))
        free = (key for key in numbered if key not in taken)
        keys += [name, *itertools.islice(free, sum(1 for _ in same) - 1)]
    return keys


def _held_out(record: dict[str, Any], where: str) -> bool | None:
    value = record.get(HELD_OUT)
    value = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(value, bool | str | None) or value not in _BOOLEANS:
        raise UserError(f"{where} has {value!r} as {HELD_OUT}: write true or false")
    return _BOOLEANS[value]


def _metadata(directory: Path) -> Path:
    found = [directory / name for name in METADATA if (directory / name).is_file()]
    if not found:
        raise NotFoundError(f"no {METADATA[0]} in {directory}: write one, or give another folder")
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise UserError(f"{directory} has {names}: keep one of them")
    return found[0]


def _rows(metadata: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """The rows of a file of metadata, each with its place; for a damaged row, its error."""
    if metadata.suffix == ".jsonl":
        return objects_or_faults(metadata)
    if metadata.suffix == ".csv":
        return table_objects(metadata)
    return table_rows(metadata)
