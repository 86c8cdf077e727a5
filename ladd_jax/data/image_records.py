"""Opens the records of images and prompts that a path names, of whatever kind they are."""

import functools
import re
from collections.abc import Callable, Iterable
from logging import getLogger
from pathlib import Path

from ladd_jax.data.image_folders import METADATA, ImageFolder
from ladd_jax.data.image_pairs import (
    IMAGE_SUFFIXES,
    CaptionedFolder,
    ImageTars,
    has_pairs,
    image_count,
)
from ladd_jax.data.image_tables import open_table
from ladd_jax.data.records import Records, files_below, names_below
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.names import counted
from ladd_jax.paths import expand, is_there, matches, near, one_form

_LOG = getLogger(__name__)

_TABLES = (".parquet", ".arrow")
_PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

# What a folder may hold besides that which is read of it, by the suffixes of its files.
_OTHERS = {
    "tar": (".tar",),
    "compressed tar": _PACKED_TARS,
    "table": _TABLES,
    "picture": tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES),
}


def open_images(
    path: str | Path,
    column: str = "",
    *,
    image_column: str = "",
    other_column: str = "",
    preference_column: str = "",
    edits: bool = False,
    split: str = "train",
    subset: str = "",
    stream: Path | None = None,
    limit: int = 0,
    strict: bool = True,
    tell_unread: bool = False,
) -> Records:
    """The images of a path.

    Args:
      path: a directory with `metadata.jsonl`, `metadata.csv` or `metadata.parquet`; a directory of
        `*.tar`, or tars themselves; a directory with `x.txt` beside `x.png`; a directory of
        `.parquet` or `.arrow`, such files, or what `Dataset.save_to_disk` wrote; or, if the path
        does not exist, a dataset's name on the hub. The first of these that a directory has is
        read. Tars and tables may be named by a pattern or a list, as `paths.matches` reads it.
      column: name of the field with the prompt.
      image_column: for tables, name of the column with the image.
      other_column: for tables, name of the column with the image that it was compared with; empty:
        records are not pairs.
      preference_column: for tables of pairs, name of the column that says which was preferred.
      edits: whether images are edits of others, in a table or a directory with metadata. Then
        `other_column` names the column of the others; empty: found by the usual names.
      split: for tables, the split to read.
      subset: for the hub, name of the dataset's configuration.
      stream: for the hub, a file for the records of a dataset that is streamed.
      limit: for the hub, number of records to stream; 0: all.
      strict: see `ImageFolder`.
      tell_unread: whether to look through a folder for tars, tables and pictures that are not read.

    Raises:
      NotFoundError: there are no images.
      UserError: pairs or edits are asked for where the path cannot hold any; see also
        `ImageFolder`, `ImageTars`, `CaptionedFolder` and `open_table`.
    """
    folder, here = expand(path), is_there(path)
    if here and any((folder / name).is_file() for name in METADATA):
        if not edits:
            _refuse_pairs(folder, other_column)
        source = other_column if edits else ""
        rows = ImageFolder(folder, column, strict=strict, source=source, edits=edits)
        if tell_unread:
            named = {one_form(name) for name in (*rows.files, *METADATA)}
            _tell_unread(folder, (n for n in names_below(folder) if one_form(n) not in named))
        return rows
    table = functools.partial(
        open_table,
        column=column,
        image=image_column,
        other=other_column,
        preference=preference_column,
        edits=edits,
        split=split,
    )
    if here and folder.is_dir():
        return _of_folder(folder, column, table, other_column, edits, tell_unread)
    if not here and names_dataset(path):
        try:
            return table(path, subset=subset, stream=stream, limit=limit)
        except NotFoundError as error:
            raise NotFoundError(f"{error}{near(path)}") from error
    found = matches(path)
    if stream is not None:
        raise UserError(f"data.stream is set and {path} is here: streams come from the hub")
    if all(file.suffix.lower() in _TABLES for file in found):
        return table(found if len(found) > 1 else found[0])
    others = [file for file in found if file.is_dir() or file.suffix.lower() in _TABLES]
    if others:
        raise UserError(
            f"{path} names {others[0]} beside {found[0] if found[0] != others[0] else found[-1]}: "
            f"name one folder, or files of one kind, tars or tables"
        )
    _refuse_pairs(path, other_column, edits)
    return ImageTars(found, column, tell_unread)


def names_dataset(path: str | Path) -> bool:
    """Whether a path has the form of a dataset's name on the hub, which a folder's may have too."""
    return bool(re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+", str(path)))


def _of_folder(
    folder: Path,
    column: str,
    table: Callable[[Path], Records],
    other_column: str,
    edits: bool,
    tell_unread: bool,
) -> Records:
    def tell(names: Iterable[str]) -> None:
        if tell_unread:
            _tell_unread(folder, names)

    # Systems put hidden files beside a user's, with the same suffix.
    visible = [file for file in folder.iterdir() if not file.name.startswith(".")]
    tars = [file for file in visible if file.suffix.lower() == ".tar"]
    if tars:
        _refuse_pairs(folder, other_column, edits)
        read = {file.name for file in tars}
        tell(name for name in names_below(folder) if name not in read)
        return ImageTars(tars, column, tell_unread)
    files = [file.relative_to(folder) for file in files_below(folder)]
    names = [file.as_posix() for file in files]
    if has_pairs(names):
        _refuse_pairs(folder, other_column, edits)
        tell(name for name in names if not _is_one_of(name, "picture"))
        return CaptionedFolder(folder, column, tell_unread)
    tables = [file for file in files if file.suffix.lower() in _TABLES]
    count = image_count(names)
    deeper = [file for file in files if file.name in METADATA]
    if count and deeper and all(file in deeper for file in tables):
        raise UserError(
            f"{folder} holds {counted(count, 'picture')} and the texts of pictures in {deeper[0]}: "
            f"give {folder / deeper[0].parent}, since only one folder's metadata are read"
        )
    # The library that reads the splits of a folder finds only suffixes in small letters.
    unseen = [folder / file for file in tables if file.suffix not in _TABLES]
    if unseen:
        raise UserError(
            f"{unseen[0]} is a table whose suffix is not in small letters, and the splits of a "
            f"folder are found only by such suffixes: rename it, or name the files of one split, "
            f"such as {unseen[0].with_stem('*')}"
        )
    kinds = sorted({file.suffix for file in tables})
    if len(kinds) > 1:
        counts = " and ".join(f"{sum(t.suffix == kind for t in tables)} {kind}" for kind in kinds)
        one = folder / next(file for file in tables if file.suffix == kinds[-1])
        raise UserError(
            f"{folder} holds {counts} files, of which only one kind is read: name the files of "
            f"one, such as {one.with_stem('*')}"
        )
    if tables:
        tell(name for name in names if not _is_one_of(name, "table"))
        return table(folder)
    packed = [file for file in visible if file.name.lower().endswith(_PACKED_TARS)]
    if packed:
        raise UserError(
            f"{packed[0]} is a compressed tar, which cannot be read in places: unpack it to a .tar"
        )
    if count:
        raise UserError(
            f"{folder} holds {counted(count, 'picture')} and no text beside any: "
            f"write the text of x.png into x.txt, or those of all into {METADATA[0]}"
        )
    raise _nothing(folder)


def _is_one_of(name: str, kind: str) -> bool:
    return name.lower().endswith(_OTHERS[kind])


def _tell_unread(folder: Path, names: Iterable[str]) -> None:
    """Warns of the tars, tables and pictures among the names, which are not read of a folder."""
    found: dict[str, list[str]] = {}
    for name in names:
        for kind in _OTHERS:
            if _is_one_of(name, kind):
                found.setdefault(kind, []).append(name)
    for kind, of_kind in found.items():
        _LOG.warning(
            "%s also holds what is not read: %s, such as %s; to read it, give its own path as data",
            folder, counted(len(of_kind), kind), min(of_kind),
        )  # fmt: skip


def _refuse_pairs(path: str | Path, other_column: str, edits: bool = False) -> None:
    """Raises UserError where pairs or edits are asked for of a path that holds no table."""
    if edits:
        raise UserError(
            f"{path} is neither a table nor a folder with {METADATA[0]}, and data.joined is edit: "
            f"give edits as one of these, or as a dataset of the hub, or leave data.joined empty"
        )
    if other_column:
        raise UserError(
            f"{path} is not a table and data.other_column is {other_column!r}: give pairs as "
            f".parquet or .arrow files, as what Dataset.save_to_disk wrote or as a dataset of the "
            f"hub, or leave data.other_column and data.preference_column empty"
        )


def _nothing(path: str | Path) -> NotFoundError:
    return NotFoundError(
        f"no images in {path}: give a directory with {METADATA[0]}, or one of *.tar, *.parquet or "
        f"*.arrow files, or of pictures with a .txt beside each, or a pattern that matches tars or "
        f"tables, or a dataset's owner/name on the hub"
    )
