"""Prompts from text files, tables and JSON lines."""

import codecs
import csv
import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.paths import expand, matches, near
from ladd_jax.whole_files import LFS_POINTER, RepeatedFieldError, parse_json, refuse_pointer

MAX_CHARACTERS = 10_000
"""Longest prompt. Text encoders read a few hundred tokens: longer text was not meant as one."""

COLUMNS = ("prompt", "text", "caption")
"""Columns in which prompts are looked for when none is named."""

_TABLES = (".csv", ".tsv")

SUFFIXES = (".txt", ".tsv", ".csv", ".jsonl")
"""Suffixes of files that hold prompts, in small letters."""


def read_prompts(path: str | Path, column: str = "") -> list[str]:
    """All of `stream_prompts`, with the same arguments and errors."""
    return list(stream_prompts(path, column))


def stream_prompts(path: str | Path, column: str = "") -> Iterator[str]:
    """The prompts of files, in order and without white space around them, read a line at a time.

    Args:
      path: a file, a pattern or a list of files, as `paths.matches` reads it: `.txt`, one prompt a
        line; `.tsv` or `.csv`, whose first row names the columns; or `.jsonl`, one JSON object a
        line. Files are UTF-8. In a `.tsv` each line is a row, whatever quotes there are. Quotes
        belong to the prompt, unless they enclose a field that is empty or has commas or doubled
        quotes, or enclose every field.
      column: column of a table, or field of the objects. If empty, whichever of `prompt`, `text`
        and `caption` there is.

    Raises:
      NotFoundError: there is no such file.
      UserError: a line is damaged, or has no prompt of 1 to 10,000 characters; the column is
        missing or ambiguous; or the file is empty, of another kind or not UTF-8.
    """
    for file in matches(path):
        yield from _of_file(file, column)


def _of_file(path: Path, column: str) -> Iterator[str]:
    suffix = path.suffix.lower()
    values: Iterator[tuple[str, object]]
    if suffix == ".txt":
        if column:
            raise UserError(
                f"{path} is a text file without columns, and column {column!r} was named: "
                f"leave the column empty or give a .tsv, .csv or .jsonl file"
            )
        values = lines(path)
    elif suffix in _TABLES:
        values = _table(path, column)
    elif suffix == ".jsonl":
        values = _fields(path, column)
    elif path.is_dir():
        raise UserError(
            f"{path} is a folder and not a file of prompts: name a .txt, .tsv, .csv or .jsonl file"
        )
    else:
        raise UserError(f"{path} is not a .txt, .tsv, .csv or .jsonl file: use one of these")
    where = ""
    for where, value in values:
        yield check_prompt(value, where)
    if not where:
        raise UserError(f"{path} holds no prompts: write at least one")


# A byte-order mark, which editors put at the start of a file; joined files have it inside.
_MARK = "\ufeff"

# Unicode's categories of characters that show nothing: controls, format characters and separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})


def check_prompt(value: object, where: str) -> str:
    """The prompt without byte-order marks, and without white space around it.

    Args:
      value: value that a file holds.
      where: place of the value, with which an error message begins.

    Raises:
      UserError: the value is not text, is empty, has no visible character or more than 10,000
        characters, holds zero bytes or is not Unicode.
    """
    if not isinstance(value, str):
        # Tables hold values that JSON cannot express.
        told = json.dumps(value, default=repr)[:40]
        raise UserError(f"{where} holds {told} as its prompt: write a string")
    prompt = value.replace(_MARK, "").strip()
    if not prompt:
        raise UserError(f"{where} is empty: write a prompt or remove it")
    if len(prompt) > MAX_CHARACTERS:
        raise UserError(
            f"{where} has a prompt of {len(prompt)} characters and the limit is {MAX_CHARACTERS}: "
            f"shorten or remove it"
        )
    # UTF-16 without its byte-order mark passes as UTF-8, with a zero byte beside each letter.
    if "\0" in prompt:
        raise UserError(f"{where} holds zero bytes, as UTF-16 does: save the file as UTF-8")
    if all(unicodedata.category(character) in _INVISIBLE for character in prompt):
        raise UserError(
            f"{where} holds only invisible characters ({ascii(prompt[:10])}): write a prompt or "
            f"remove it"
        )
    # JSON can escape half of a surrogate pair, which no UTF-8 file could hold later.
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} has a prompt with half a surrogate pair: write it as UTF-8"
        ) from error
    return prompt


def choose_column(
    names: Iterable[str],
    column: str,
    where: str,
    usual: Sequence[str] = COLUMNS,
    wanted: str = "the column of the prompts",
) -> str:
    """The column with the prompts, or with something else.

    Args:
      names: names of the existing columns.
      column: the column asked for, or empty for whichever of the usual ones exists.
      where: place of the columns, with which an error message begins.
      usual: the usual columns.
      wanted: what an error asks the user to name.

    Raises:
      UserError: the column is missing or exists twice, or no column was named and none or several
        of the usual ones exist.
    """
    names = list(names)
    listed = ", ".join(names) or "none"
    if not column:
        found = [name for name in usual if name in names]
        if len(found) != 1:
            has = " and ".join(found) or f"none of {', '.join(usual)}"
            raise UserError(f"{where} has {has}: name {wanted}, of {listed}")
        column = found[0]
    if names.count(column) != 1:
        if column in names:
            raise UserError(
                f"{where} has {names.count(column)} columns {column!r}: its columns are {listed}"
            )
        close = difflib.get_close_matches(column, names, 1, 0.5)
        meant = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{where} has no column {column!r}: its columns are {listed}{meant}")
    return column


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file, each with its place, such as `prompts.txt, line 3`.

    Raises:
      NotFoundError: there is no such file.
      UserError: the file is not UTF-8, or has a carriage return inside a line.
    """
    for where, data in _lines_of_bytes(path):
        yield where, _line(data, where)


def _lines_of_bytes(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file, each with its place, and without byte-order marks before them."""
    path = _existing(path)
    # Read as bytes: in text Python takes more characters, which a prompt may hold, for line ends.
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            yield _place(path, number), data.removeprefix(codecs.BOM_UTF8)


def _line(data: bytes, where: str) -> str:
    """A line as text, without its end."""
    try:
        line = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8: save the file as UTF-8") from error
    if "\r" in line:
        raise UserError(
            f"{where} holds carriage returns, which would make one line of several: end lines with "
            f"a line feed"
        )
    return line


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: the text is not a JSON object, or has a field twice.
    """
    try:
        value = parse_json(text)
    except RepeatedFieldError as error:
        raise UserError(f"{where} has the field {error.field!r} twice: keep one") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): repair or remove it") from error
    if not isinstance(value, dict):
        raise UserError(f'{where} is not a JSON object, such as {{"prompt": "a cat"}}')
    return value


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, one a line, each with its place.

    Raises:
      NotFoundError: there is no such file.
      UserError: a line is empty or damaged.
    """
    for where, found in objects_or_faults(path):
        if isinstance(found, UserError):
            raise found
        yield where, found


def objects_or_faults(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """As `objects`, but a damaged line gives its error instead of an object.

    Raises:
      NotFoundError: there is no such file.
    """
    for where, data in _lines_of_bytes(path):
        try:
            line = _line(data, where)
            if not line.strip():
                raise UserError(f"{where} is empty: write a record or remove it")
            yield where, parse_object(line, where)
        except UserError as error:
            yield where, error


def read_text(path: Path) -> str:
    """A UTF-8 file without its byte-order mark.

    Raises:
      NotFoundError: there is no such file.
      UserError: it is not UTF-8.
    """
    path = _existing(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The place counts from behind the byte-order mark, which holds no line end.
        where = _place(path, error.object.count(b"\n", 0, error.start) + 1)
        raise UserError(f"{where} is not UTF-8: save the file as UTF-8") from error


def _existing(path: Path) -> Path:
    """The path of an existing file; raises an error for anything else, or a pointer of git-lfs."""
    path = expand(path)
    if path.is_dir():
        raise NotFoundError(f"no file {path}, which is a folder: name a file")
    if not path.is_file():
        raise NotFoundError(f"no file {path}{'' if path.exists() else near(path)}: check the path")
    with path.open("rb") as file:
        # The lines of a pointer would pass as prompts.
        refuse_pointer(file.read(len(LFS_POINTER)), str(path))
    return path


def _place(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def _fields(path: Path, column: str) -> Iterator[tuple[str, object]]:
    for where, record in objects(path):
        # The column that the first record has holds for all.
        column = choose_column(record, column, where)
        yield where, record[column]


def table_objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """The rows of a `.tsv` or `.csv`, with values by the names in its first row, and their places.

    An empty row, or one with more or fewer fields, gives its error instead of an object.

    Raises:
      NotFoundError: there is no such file.
      UserError: it is not UTF-8, quotes are damaged, or two columns have one name.
    """
    names: list[str] = []
    for where, row in _rows(path):
        if isinstance(row, UserError):
            yield where, row
            continue
        if names:
            yield where, dict(zip(names, row, strict=True))
            continue
        names = [name.strip() for name in row]
        for name in names:
            choose_column(names, name, where)


def _table(path: Path, column: str) -> Iterator[tuple[str, str]]:
    names: list[str] = []
    for where, row in _rows(path):
        if isinstance(row, UserError):
            raise row
        if names:
            yield where, row[names.index(column)]
            continue
        names = [name.strip() for name in row]
        column = choose_column(names, column, where)


def _rows(path: Path) -> Iterator[tuple[str, list[str] | UserError]]:
    """The rows of a table, each with its place; the first names the columns, and a later one that
    does not fit them is an error."""
    has_tabs = path.suffix.lower() == ".tsv"
    remedy = "leave tabs out of fields" if has_tabs else "quote fields that hold the delimiter"
    columns = 0
    for where, row in _tab_separated(path) if has_tabs else _comma_separated(path):
        if not row:
            fault = UserError(f"{where} is empty: write a row or remove it")
            if not columns:
                raise fault
            yield where, fault
            continue
        columns = columns or len(row)
        if len(row) == columns:
            yield where, row
        else:
            yield (
                where,
                UserError(
                    f"{where} has {len(row)} fields and the first row names {columns} columns: "
                    f"fill in what is missing, and {remedy}"
                ),
            )


def _comma_separated(path: Path) -> Iterator[tuple[str, list[str]]]:
    path = _existing(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        # A quote that is never closed would swallow the rest; strict makes it an error.
        rows = csv.reader(file, strict=True)
        while True:
            where = _place(path, rows.line_num + 1)
            try:
                row = next(rows, None)
            except UnicodeDecodeError:
                # This error knows its place only within a part of the file; `read_text` finds it.
                read_text(path)
                raise
            except csv.Error as error:
                raise UserError(
                    f"{where} has a quoted field that is not valid ({error}): quote fields whole, "
                    f"and write a quote inside them twice"
                ) from error
            if row is None:
                return
            yield where, row


def _tab_separated(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Lines, split into fields. A quote is an ordinary character, so lines are never merged."""
    quoted: bool | None = None
    for where, line in lines(path):
        fields = line.split("\t") if line else []
        if quoted is None:
            quoted = all(_QUOTED.fullmatch(field) for field in fields)
        if len(fields) == 1 and line.startswith('"') and line.count('"') % 2:
            # If the row has several fields, the line has too few of them and is refused anyway.
            raise UserError(
                f"{where} opens a quote that the line does not close, and in a .tsv a line is a "
                f"row: leave line ends out of fields, or that quote"
            )
        yield where, [_unquoted(field, quoted) for field in fields]


# A quoted field. Spreadsheets and pandas quote fields that hold a quote or a comma, or all fields.
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def _unquoted(field: str, quoted: bool) -> str:
    """A field without the quotes that a writer put around it.

    Args:
      field: the field as it is in the file.
      quoted: whether the writer quotes all fields.
    """
    inner = field[1:-1]
    if _QUOTED.fullmatch(field) and (quoted or not inner or '""' in inner or "," in inner):
        return inner.replace('""', '"')
    return field
