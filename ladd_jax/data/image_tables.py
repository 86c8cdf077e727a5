"""Tables with a column of encoded images: parquet, Arrow and datasets of the hub.

All are read by Hugging Face's `datasets`, which is imported only when it is used, since that takes
seconds. It keeps what it fetches and converts in its own cache (`HF_HOME`).
"""

import contextlib
import dataclasses
import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from ladd_jax.data.edit_columns import EDITED, INSTRUCTIONS, SOURCE_COLUMN, SOURCES, first
from ladd_jax.data.prompts import COLUMNS, check_prompt, choose_column
from ladd_jax.data.records import Record, read_inside
from ladd_jax.errors import NotFoundError, UserError, brief
from ladd_jax.parallel.processes import barrier, one_of_each_host_first
from ladd_jax.paths import is_pattern, matches
from ladd_jax.whole_files import whole

if TYPE_CHECKING:
    import datasets

# Types of encoded images where the library's own metadata are missing. A fixed size stands in
# brackets behind the name.
_BYTES = ("binary", "binary_view", "fixed_size_binary", "large_binary")

# Names that the library has for readers of tables.
_KINDS = ("parquet", "arrow")

# The column in which the library has the text of a tar's record.
_TEXT_OF_TARS = "txt"


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Names of the columns that are read. `other` and `preference` are empty without pairs; for
    edits only `preference` is."""

    image: str
    prompt: str
    other: str
    preference: str

    @property
    def images(self) -> list[str]:
        return [name for name in (self.image, self.other) if name]

    @property
    def names(self) -> list[str]:
        """Names of all these columns, each once."""
        return list(dict.fromkeys(filter(None, dataclasses.astuple(self))))


class ImageTable:
    """Rows with an encoded image and a prompt, with a pair of images and a preference, or with an
    edited image, the image that was edited and an instruction.

    `table[i]` reads one record. It raises UserError if the row has no image or no proper prompt, or
    a pair has no other image or no proper preference, and IndexError if there is no such record.

    Attributes:
      keys: numbers of the rows, which rows added at the end do not change.
    """

    def __init__(
        self,
        rows: "datasets.Dataset",
        where: str,
        column: str = "",
        image: str = "",
        other: str = "",
        preference: str = "",
        edits: bool = False,
        roots: Sequence[Path] = (),
    ):
        """Reads no row.

        Args:
          rows: the table.
          where: the table's name, with which error messages begin.
          column: name of the column of prompts. If empty, whichever of `prompt`, `text` and
            `caption` there is, or else `txt`. A column of class labels gives the classes' names.
          image: name of the column of images. If empty, the only column that holds images, apart
            from `other`.
          other: name of the column of images that these were compared with. If empty, records are
            not pairs.
          preference: name of the column that says how far a pair's own image was preferred: a
            number from 0 to 1 or a bool, above 0.5 if it was, below if the other image was.
          edits: whether images are edits of the images in `other`. Columns that are not named are
            then found by the names of `edit_columns`, where these exist.
          roots: folders of the files that rows may name instead of holding an image's bytes.
            Relative names are relative to the first. Files elsewhere are not read, since a table
            from somebody else could name any file.

        Raises:
          UserError: a column does not exist, or several could be meant, or there are no rows, or
            both images are in the same column.
        """
        import datasets

        self._columns = _columns(rows.features, where, column, image, other, preference, edits)
        if not len(rows):
            raise UserError(f"{where} holds no records: give data that have some")
        feature = rows.features[self._columns.prompt]
        self._names = feature.names if isinstance(feature, datasets.ClassLabel) else None
        rows = _undecoded(rows.select_columns(self._columns.names), rows.features, self._columns)
        self._rows = rows.with_format("arrow")
        self._where, self._roots = where, roots
        self.keys: Sequence[str] = [str(i) for i in range(len(rows))]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        key = self.keys[index]
        where = f"{self._where}, row {key}"
        columns, row = self._columns, self._row(index, where)
        prompt = row[columns.prompt]
        if self._names is not None and prompt is not None and 0 <= prompt < len(self._names):
            prompt = self._names[prompt]
        image = _image_bytes(row[columns.image], where, self._roots)
        record = Record(key, image, check_prompt(prompt, where))
        if not columns.other:
            return record
        place = f"{where}, column {columns.other!r}"
        other = _image_bytes(row[columns.other], place, self._roots)
        if not columns.preference:
            return dataclasses.replace(record, other=other)
        preference = _preference(row[columns.preference], where)
        return dataclasses.replace(record, other=other, preference=preference)

    def _row(self, index: int, where: str) -> dict[str, Any]:
        import pyarrow

        try:
            row = self._rows[index]
            # In a damaged file the offset of a value may point anywhere in memory.
            row.validate(full=True)
            found: dict[str, Any] = row.to_pylist()[0]
        # Dates that Python cannot represent are an OverflowError.
        except (pyarrow.ArrowException, UnicodeDecodeError, OverflowError) as error:
            raise UserError(f"{where} is damaged ({brief(error)}): write the file again") from error
        return found


def _columns(
    features: Mapping[str, Any],
    where: str,
    column: str,
    image: str,
    other: str,
    preference: str,
    edits: bool,
) -> _Columns:
    """The columns to read, from the arguments of `ImageTable`."""
    names = list(features)
    if edits:
        other = choose_column(names, other, where, SOURCES, SOURCE_COLUMN)
        image = image or first(names, EDITED)
        column = column or first(names, INSTRUCTIONS)
    for name in filter(None, (image, other, preference)):
        if name not in names:
            raise UserError(f"{where} has no column {name!r}: its columns are {', '.join(names)}")
    if not image:
        images = [name for name in names if _may_be_image(features[name]) and name != other]
        if len(images) != 1:
            has = " and ".join(images) or "no column"
            beside = f" beside {other}" if other else ""
            raise UserError(
                f"{where} has {has} of images{beside}: name one with data.image_column, of "
                f"{', '.join(names) or 'none'}"
            )
        image = images[0]
    if image == other:
        raise UserError(
            f"{where} has one column {image!r} and a pair needs two: name another with "
            f"data.image_column or {'data.source_column' if edits else 'data.other_column'}, of "
            f"{', '.join(names)}"
        )
    texts = [name for name in names if name not in (image, other)]
    if not column and _TEXT_OF_TARS in texts and not set(texts) & set(COLUMNS):
        column = _TEXT_OF_TARS
    return _Columns(image, choose_column(texts, column, where), other, preference if other else "")


def _undecoded(rows: Any, features: Mapping[str, Any], columns: _Columns) -> Any:
    """The rows of a table or a stream, with images that stay encoded."""
    import datasets

    for name in columns.images:
        if isinstance(features[name], datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _may_be_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    # Without the library's own metadata, images have the plain types that they are stored as.
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype.partition("[")[0] in _BYTES


def _image_bytes(value: Any, where: str, roots: Sequence[Path]) -> bytes:
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path") and roots:
            name = value["path"]
            try:
                own = (root for root in roots if Path(name).is_relative_to(root))
                return read_inside(next(own, roots[0]), name)
            # A name with a zero byte is a ValueError, and a loop of links is a RuntimeError.
            except (OSError, ValueError, TypeError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(
                    f"{where} names the image {name}, which cannot be read: {reason}"
                ) from error
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise UserError(f"{where} has no image")
    return value


def _preference(value: Any, where: str) -> float:
    """1, -1 or 0, from the share of people who preferred the record's own image."""
    # The comparison is written so that a NaN fails it.
    if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
        told = json.dumps(value, default=repr)[:40]
        raise UserError(
            f"{where} holds {told} as its preference: write a number from 0 to 1, or a bool"
        )
    return float((value > 0.5) - (value < 0.5))


def open_table(
    path: str | Path | Sequence[Path],
    *,
    column: str = "",
    image: str = "",
    other: str = "",
    preference: str = "",
    edits: bool = False,
    split: str = "train",
    subset: str = "",
    stream: str | Path | None = None,
    limit: int = 0,
) -> ImageTable:
    """The table of a path.

    Args:
      path: a `.parquet` or `.arrow` file, several of one kind, a folder of them or one that
        `Dataset.save_to_disk` wrote, or a dataset's name on the hub.
      column: see `ImageTable`.
      image: see `ImageTable`.
      other: see `ImageTable`.
      preference: see `ImageTable`.
      edits: see `ImageTable`.
      split: the split to read; the library's slices, such as `train[:1000]`, work too.
      subset: name of the dataset's configuration, where it has several.
      stream: file for the records of a dataset that is streamed: nothing else of the dataset is
        kept, and no more is fetched than `limit` asks for. Default: the whole dataset is fetched.
      limit: number of records to stream; 0: all.

    Raises:
      NotFoundError: the library does not find the table, or the hub does not give it.
      UserError: the table is damaged or cannot be used.
    """
    import datasets

    if isinstance(path, str | Path):
        files: Sequence[str | Path] = matches(path) if is_pattern(path) else [path]
    else:
        files = path
    named = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    where = f"{named}, split {split}"
    asked: Any = dict(column=column, image=image, other=other, preference=preference, edits=edits)
    columns = asked | {"roots": _roots(files)}
    saved = [name for name in ("dataset_dict.json", "state.json") if Path(named, name).is_file()]
    if saved:
        with _one_sentence(named, where):
            rows = datasets.load_from_disk(named)
            if isinstance(rows, datasets.DatasetDict):
                if split not in rows:
                    raise UserError(f"its splits are {', '.join(rows)}: set data.split")
                rows = rows[split]
            return ImageTable(rows, where, **columns)
    name, options = _loading(files)
    options |= dict(split=split, name=subset or None)
    if stream is None:
        # The others of a host find in its cache what the first has fetched and converted.
        with one_of_each_host_first("table"), _one_sentence(named, where):
            rows = datasets.load_dataset(name, **options)
            if Path(named).is_dir() and rows.builder_name not in _KINDS:
                raise UserError(
                    f"{named} holds more files of another kind than tables, and these are read "
                    f"instead ({rows.builder_name}): name the tables, such as {named}/*.parquet"
                )
    else:
        try:
            if jax.process_index() == 0 and not Path(stream).exists():
                with _one_sentence(named, where):
                    found = datasets.load_dataset(name, streaming=True, **options)
                    _keep(found, Path(stream), where, limit, **asked)
        finally:
            # The workdir is on a disk that all processes share. If process 0 fails, the others go
            # on all the same, and fail as they find no file.
            barrier("streamed")
        with _one_sentence(named, where):
            rows = datasets.Dataset.from_file(str(stream))
    return ImageTable(rows, where, **columns)


def _roots(files: Sequence[str | Path]) -> tuple[Path, ...]:
    """The folders whose files the rows of these tables may name."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    places = [Path(file).absolute() for file in files]
    if all(place.exists() for place in places):
        folders = [place if place.is_dir() else place.parent for place in places]
        return (Path(os.path.commonpath(folders)),)
    # A dataset of the hub: where its files are put, and the contents of its archives.
    config = datasets.config
    caches = HF_HUB_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH
    return tuple(Path(cache).absolute() for cache in caches)


@contextlib.contextmanager
def _one_sentence(path: str, where: str) -> Iterator[None]:
    """Turns errors of the library into errors of ours, in one sentence."""
    try:
        yield
    # The library raises types of its own, of pyarrow, of fsspec and of the hub.
    except Exception as error:
        if isinstance(error, UserError) and str(error).startswith(path):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, ValueError | OSError) else error
        kind = NotFoundError if isinstance(cause, OSError) else UserError
        message = brief(cause)
        raise kind(
            f"{where} cannot be read as a table of images ({message.rstrip('.')}): give a folder "
            f"or file that holds one, or owner/name of a dataset of the hub"
        ) from error


def _loading(files: Sequence[str | Path]) -> tuple[str, dict[str, Any]]:
    """The name and the arguments for `load_dataset`."""
    kinds = {Path(file).suffix.lower().removeprefix(".") for file in files}
    if kinds in ({"parquet"}, {"arrow"}):
        # The library takes some characters of names for parts of a pattern.
        names = [glob.escape(str(file)) for file in files]
        return kinds.pop(), dict(data_files={"train": names})
    if len(files) > 1:
        raise UserError(f"{files[0]} and {files[-1]} are of different kinds: name files of one")
    return str(files[0]), {}


def _keep(rows: Any, target: Path, where: str, limit: int, **asked: Any) -> None:
    """Writes the records of a stream as an Arrow file, whole or not at all.

    `asked` names the columns, as arguments of `ImageTable`.
    """
    import datasets
    import pyarrow
    from datasets.arrow_writer import ArrowWriter

    features = rows.features
    if features is None:
        # Files may not state their types: then those of the first row are taken.
        table = pyarrow.Table.from_pylist(list(rows.take(1)))
        features = datasets.Features.from_arrow_schema(table.schema)
    columns = _columns(features, where, **asked)
    rows = _undecoded(rows.select_columns(columns.names), features, columns)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A writer that was killed may have left a file as large as the table.
    for left in target.parent.glob(".*.partial"):
        left.unlink(missing_ok=True)
    with whole(target) as partial:
        with ArrowWriter(path=str(partial), features=rows.features) as writer:
            for row in rows.take(limit) if limit else rows:
                writer.write(row)
            writer.finalize()


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a parquet file, each with its place.

    Raises:
      UserError: the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    # In a damaged file names and texts may not be UTF-8, and dates may be beyond Python's.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        message = brief(error)
        raise UserError(
            f"{path} cannot be read as a parquet file ({message}): write it again"
        ) from error
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row
