"""Tables with a column of encoded images: parquet, Arrow and datasets of the hub.

All are read by Hugging Face's `datasets`, which takes seconds to import and is imported when it is
used. It keeps what it fetches and converts in its own cache (`HF_HOME`).
"""

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from ladd_jax.data.prompts import COLUMNS, check_prompt, choose_column
from ladd_jax.data.records import Record
from ladd_jax.errors import NotFoundError, UserError, brief
from ladd_jax.parallel.processes import barrier, one_of_each_host_first
from ladd_jax.paths import is_pattern, matches
from ladd_jax.whole_files import publish

if TYPE_CHECKING:
    import datasets

# The name that the text of a tar's record has as a column of the library.
_TEXT_OF_TARS = "txt"


class ImageTable:
    """Rows with an encoded image and a prompt.

    `table[i]` reads one record. It raises UserError if the row has no image or no proper prompt,
    and IndexError if there is no such record.

    Attributes:
      keys: numbers of the rows. Rows that are added at the end change none.
    """

    def __init__(self, rows: "datasets.Dataset", where: str, column: str = "", image: str = ""):
        """Reads no row.

        Args:
          rows: the table.
          where: its name, with which messages of errors begin.
          column: name of the column of prompts. If empty, whichever of `prompt`, `text` and
            `caption` there is, or else `txt`. One of class labels gives the names of the classes.
          image: name of the column of images. If empty, the only one that holds images.

        Raises:
          UserError: there is no such column, or several, or there are no rows.
        """
        import datasets

        image, column = _columns(rows.features, where, column, image)
        if not len(rows):
            raise UserError(f"{where} holds no records: give data that have some")
        feature = rows.features[column]
        self._names = feature.names if isinstance(feature, datasets.ClassLabel) else None
        if isinstance(rows.features[image], datasets.Image):
            rows = rows.cast_column(image, datasets.Image(decode=False))
        self._rows = rows.select_columns([image, column]).with_format("arrow")
        self._where = where
        self._image, self._column = image, column
        self.keys: Sequence[str] = [str(i) for i in range(len(rows))]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        key = self.keys[index]
        where = f"{self._where}, row {key}"
        row = self._row(index, where)
        prompt = row[self._column]
        if self._names is not None and prompt is not None and 0 <= prompt < len(self._names):
            prompt = self._names[prompt]
        return Record(key, _image_bytes(row[self._image], where), check_prompt(prompt, where))

    def _row(self, index: int, where: str) -> dict[str, Any]:
        import pyarrow

        try:
            row = self._rows[index]
            # What a damaged file has for the place of a value may be anywhere in memory.
            row.validate(full=True)
            found: dict[str, Any] = row.to_pylist()[0]
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{where} is damaged ({brief(error)}): write the file again") from error
        return found


def _columns(features: Mapping[str, Any], where: str, column: str, image: str) -> tuple[str, str]:
    """Names of the columns of images and of prompts."""
    names = list(features)
    images = [name for name in names if _may_be_image(features[name])]
    if image and image not in names:
        raise UserError(f"{where} has no column {image!r}: its columns are {', '.join(names)}")
    if not image:
        if len(images) != 1:
            has = " and ".join(images) or "no column"
            raise UserError(
                f"{where} has {has} of images: name one with data.image_column, of "
                f"{', '.join(names) or 'none'}"
            )
        image = images[0]
    texts = [name for name in names if name != image]
    if not column and _TEXT_OF_TARS in texts and not set(texts) & set(COLUMNS):
        column = _TEXT_OF_TARS
    return image, choose_column(texts, column, where)


def _may_be_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    # Without the library's own metadata a file has the plain types that images are stored as.
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _image_bytes(value: Any, where: str) -> bytes:
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            try:
                return Path(value["path"]).read_bytes()
            # A name with a zero byte has an error of its own.
            except (OSError, ValueError, TypeError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(
                    f"{where} names the image {value['path']}, which cannot be read: {reason}"
                ) from error
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise UserError(f"{where} has no image")
    return value


def open_table(
    path: str | Path | Sequence[Path],
    *,
    column: str = "",
    image: str = "",
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
      split: the split to read; the library's slices, such as `train[:1000]`, serve too.
      subset: name of the dataset's configuration, where it has several.
      stream: file for the records of a dataset that is streamed: nothing else of it is kept, and
        no more is fetched than `limit` asks for. Default: all of it is fetched.
      limit: number of records to stream; 0: all.

    Raises:
      NotFoundError: the library does not find it, or the hub does not give it.
      UserError: it is damaged or of no use.
    """
    import datasets

    if isinstance(path, str | Path):
        files: Sequence[str | Path] = matches(path) if is_pattern(path) else [path]
    else:
        files = path
    named = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    where = f"{named}, split {split}"
    saved = [name for name in ("dataset_dict.json", "state.json") if Path(named, name).is_file()]
    if saved:
        with _one_sentence(named, where):
            rows = datasets.load_from_disk(named)
            if isinstance(rows, datasets.DatasetDict):
                if split not in rows:
                    raise UserError(f"its splits are {', '.join(rows)}: set data.split")
                rows = rows[split]
            return ImageTable(rows, where, column, image)
    name, options = _loading(files)
    options |= dict(split=split, name=subset or None)
    if stream is None:
        # What one has fetched and converted is in the cache of its host.
        with one_of_each_host_first("table"), _one_sentence(named, where):
            rows = datasets.load_dataset(name, **options)
    else:
        try:
            if jax.process_index() == 0 and not Path(stream).exists():
                with _one_sentence(named, where):
                    found = datasets.load_dataset(name, streaming=True, **options)
                    _keep(found, Path(stream), where, column, image, limit)
        finally:
            # The workdir is on a disk that all processes share. Where process 0 fails the others
            # follow all the same, and find that there is no file.
            barrier("streamed")
        with _one_sentence(named, where):
            rows = datasets.Dataset.from_file(str(stream))
    return ImageTable(rows, where, column, image)


@contextlib.contextmanager
def _one_sentence(path: str, where: str) -> Iterator[None]:
    """Turns errors of the library into ours."""
    try:
        yield
    # Of whatever fails the library tells in types of its own, of pyarrow, of fsspec and of the hub.
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
    """Name and arguments for `load_dataset`."""
    kinds = {Path(file).suffix.removeprefix(".") for file in files}
    if kinds in ({"parquet"}, {"arrow"}):
        # The library takes some characters of names for those of a pattern.
        names = [glob.escape(str(file)) for file in files]
        return kinds.pop(), dict(data_files={"train": names})
    if len(files) > 1:
        raise UserError(f"{files[0]} and {files[-1]} are of different kinds: name files of one")
    return str(files[0]), {}


def _keep(rows: Any, target: Path, where: str, column: str, image: str, limit: int) -> None:
    """Writes the records of a stream as an Arrow file, whole or not at all."""
    import datasets
    import pyarrow
    from datasets.arrow_writer import ArrowWriter

    features = rows.features
    if features is None:
        # Files that do not state their types: those of the first row.
        table = pyarrow.Table.from_pylist(list(rows.take(1)))
        features = datasets.Features.from_arrow_schema(table.schema)
    names = _columns(features, where, column, image)
    rows = rows.select_columns(list(names))
    if isinstance(features[names[0]], datasets.Image):
        rows = rows.cast_column(names[0], datasets.Image(decode=False))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with ArrowWriter(path=str(partial), features=rows.features) as writer:
        for row in rows.take(limit) if limit else rows:
            writer.write(row)
        writer.finalize()
    publish(partial, target)


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a parquet file, each with its place.

    Raises:
      UserError: it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    # Names and texts of a damaged file may be no UTF-8.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = brief(error)
        raise UserError(f"{path} is not a parquet file ({message}): write it again") from error
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row
