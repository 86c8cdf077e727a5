"""Images and texts that belong together by their names, in tars or in a folder.

`datasets` reads tars too, but it needs the members of a record side by side and the same kinds of
them in every record, takes a damaged header for the end of a tar, and stops at the first text that
is not one.
"""

import contextlib
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from ladd_jax.data.prompts import check_prompt, choose_column, parse_object
from ladd_jax.data.records import Record, files_below, read_inside
from ladd_jax.errors import UserError
from ladd_jax.names import counted
from ladd_jax.paths import one_form
from ladd_jax.whole_files import LFS_POINTER, refuse_pointer

_LOG = getLogger(__name__)

IMAGE_SUFFIXES = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp")
"""Suffixes of images, in small letters."""

_PLAIN = ("txt", "caption")
TEXT_SUFFIXES = (*_PLAIN, "json")
"""Suffixes of their prompts; of several the first is read."""

# First bytes of files that are packed as a whole, whose members cannot be read one by one.
_PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"PK": "zip",
}  # fmt: skip

# Where the bytes of each member are, by its suffix, in a form that the source's reader knows.
_Members = dict[str, Any]


class _Pairs:
    """Records whose image and prompt share a name and differ in the suffix."""

    def __init__(self, column: str):
        self._column = column
        self._records: list[Callable[[str], bytes]] = []
        self._members: list[_Members] = []
        self.keys: list[str] = []

    def _add(self, key: str, members: _Members, read: Callable[[str], bytes]) -> None:
        self.keys.append(key)
        self._members.append(members)
        self._records.append(read)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        key, members, read = self.keys[index], self._members[index], self._records[index]
        images = [suffix for suffix in IMAGE_SUFFIXES if suffix in members]
        if len(images) != 1:
            listed = ", ".join(IMAGE_SUFFIXES)
            raise UserError(
                f"{key} has {' and '.join(images)} and needs one image: remove all but one"
                if images
                else f"{key} has none of {listed} and needs one image: add it, or remove the text"
            )
        return Record(key, read(images[0]), self._prompt(key, members, read))

    def _prompt(self, key: str, members: _Members, read: Callable[[str], bytes]) -> str:
        asked = ("json",) if self._column else TEXT_SUFFIXES
        suffix = next((suffix for suffix in asked if suffix in members), "")
        if not suffix:
            needed = "json" if self._column else "txt or json"
            raise UserError(f"{key} has no {needed}: write the text there, or remove the image")
        where = f"{key}.{suffix}"
        try:
            text = read(suffix).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8: save the file as UTF-8") from error
        if suffix in _PLAIN:
            return check_prompt(text, where)
        record = parse_object(text, where)
        return check_prompt(record[choose_column(record, self._column, where)], where)


class ImageTars(_Pairs):
    """WebDataset tars: `x.jpg` is an image and `x.txt`, `x.caption` or `x.json` its prompt.

    `IMAGE_SUFFIXES` are the suffixes of images. `tars[i]` reads one record, in order of tar and
    then of name. It raises UserError if the image is missing, exists in two formats, is a link or
    is sparse, or if there is no proper prompt, and IndexError if there is no such record.

    Attributes:
      keys: `TAR/NAME` of all records, without suffixes.
    """

    def __init__(self, paths: Sequence[str | Path], column: str = "", tell_unread: bool = True):
        """Reads the headers of all members, but no image.

        Args:
          paths: uncompressed tars.
          column: field of `x.json` with the prompt. If empty, the prompt is all of `x.txt` or
            `x.caption` or, if there is no such file, whichever of the fields `prompt`, `text` and
            `caption` there is.
          tell_unread: whether to warn of images and texts that are not read.

        Raises:
          UserError: a tar is damaged, cut or compressed, or names a member twice; records of two
            tars would have the same keys; or there are no records.
        """
        super().__init__(column)
        # Some paths may be absolute and others not.
        files = sorted({Path(path).absolute() for path in paths})
        root = os.path.commonpath([file.parent for file in files]) if files else ""
        prefixes: dict[str, Path] = {}
        unread: list[str] = []
        for file in files:
            prefix = file.relative_to(root).with_suffix("").as_posix()
            other = prefixes.setdefault(prefix, file)
            if other is not file:
                raise UserError(
                    f"{other} and {file} differ only in their suffixes, and records are named "
                    f"without them: rename one of the two"
                )
            found, unread_here = _tar_members(file)
            unread += [f"{prefix}/{name}" for name in unread_here]
            for name, members in sorted(found.items()):
                key = f"{prefix}/{name}"
                self._add(key, members, _tar_reader(file, key, members))
        if tell_unread:
            _tell_hidden(unread)
        if not self.keys:
            raise UserError(
                f"{len(files)} tars hold no records: name members such as cat.jpg and cat.txt"
            )


class CaptionedFolder(_Pairs):
    """A folder, with subfolders, of images `x.png` and prompts `x.txt`.

    Other formats of images, `x.caption` and `x.json` work as in tars. `folder[i]` reads one record,
    in order of name. It raises UserError if a file cannot be read, if the image exists in two
    formats or if there is no proper prompt, and IndexError if there is no such record.

    Attributes:
      keys: names of all records relative to the folder, without suffixes.
    """

    def __init__(self, directory: str | Path, column: str = "", tell_unread: bool = True):
        """Lists the files, and reads none.

        Args:
          directory: the folder. Texts without an image are not records; a warning counts them.
          column: see `ImageTars`.
          tell_unread: see `ImageTars`.

        Raises:
          UserError: there are no images, or an image or text exists twice.
        """
        super().__init__(column)
        root = Path(directory)
        files = {file.relative_to(root).as_posix(): file for file in files_below(root)}
        alone = []
        found, unread = _grouped(files, str(root))
        if tell_unread:
            _tell_hidden(unread)
        for name, members in sorted(found.items()):
            if _has(members, IMAGE_SUFFIXES):
                self._add(name, members, _file_reader(root, name, members))
            else:
                alone.append(name)
        if alone and tell_unread:
            _LOG.warning("%d texts have no image beside them, such as %s", len(alone), alone[0])
        if not self.keys:
            raise UserError(f"{root} holds no images: name files such as cat.jpg and cat.txt")


def _tell_hidden(names: Sequence[str]) -> None:
    """Warns of images and texts that are ignored because of their names."""
    if names:
        _LOG.warning(
            "not read: %s with an image or text, such as %s, whose name up to the first dot is "
            "that of a record; for a record of its own, write its other dots as underscores",
            counted(len(names), "file"), names[0],
        )  # fmt: skip


def _grouped(places: Mapping[str, Any], where: str) -> tuple[dict[str, _Members], list[str]]:
    """Images and texts by the name that they share and then by suffix, as WebDataset reads names.

    A suffix begins at the first dot of a name. If that is not the suffix of an image or text, as in
    `v1.5_cat.png`, it begins at the last dot, unless the name up to the first dot is another
    record's: `cat.mask.png` beside `cat.png` is ignored. `cat.png.txt` is the text of `cat.png`. An
    image without a text and a text without an image also belong together if their names differ only
    in their Unicode form.

    Returns:
      the groups, and the names of ignored images and texts.

    Raises:
      UserError: a name exists twice.
    """
    groups: dict[str, _Members] = {}
    dotted: list[tuple[str, str, str, Any]] = []
    for path, place in places.items():
        folder, _, base = path.removeprefix("./").rpartition("/")
        prefix = f"{folder}/" if folder else ""
        stem, _, suffix = base.partition(".")
        if not stem:
            continue
        if _is_known(suffix):
            _put(groups, f"{prefix}{stem}", suffix, place, f"{where} holds {path}")
            continue
        longer, _, last = base.rpartition(".")
        if _is_known(last):
            dotted.append((f"{prefix}{stem}", f"{prefix}{longer}", last, (path, place)))
    shorter = {name for name, members in groups.items() if _has(members, IMAGE_SUFFIXES)}
    unread = []
    # Images before the texts that are named after them.
    for first, name, suffix, (path, place) in sorted(dotted, key=lambda each: _is_text(each[2])):
        stem, _, image = name.rpartition(".")
        members = groups.get(stem, {})
        if _is_text(suffix) and image.lower() in members and suffix.lower() not in members:
            members[suffix.lower()] = place
        elif first in shorter:
            unread.append(path)
        else:
            _put(groups, name, suffix, place, f"{where} holds {path}")
    return _joined_forms(groups), unread


def _joined_forms(groups: dict[str, _Members]) -> dict[str, _Members]:
    """The groups, with each image without a text joined to the text whose name looks the same."""
    images: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    for name, members in groups.items():
        has_image, has_text = (_has(members, kind) for kind in (IMAGE_SUFFIXES, TEXT_SUFFIXES))
        if has_image != has_text:
            (images if has_image else texts).setdefault(one_form(name), []).append(name)
    found = dict(groups)
    for form in images.keys() & texts.keys():
        # With more than two, which of them belong together is not known.
        if len(images[form]) == len(texts[form]) == 1:
            (image,), (text,) = images[form], texts[form]
            found[image] = found[image] | found.pop(text)
    return found


def _has(members: _Members, suffixes: Sequence[str]) -> bool:
    return not members.keys().isdisjoint(suffixes)


def _is_known(suffix: str) -> bool:
    return suffix.lower() in IMAGE_SUFFIXES or _is_text(suffix)


def _is_text(suffix: str) -> bool:
    return suffix.lower() in TEXT_SUFFIXES


def _put(groups: dict[str, _Members], name: str, suffix: str, place: Any, held: str) -> None:
    group = groups.setdefault(name, {})
    if suffix.lower() in group:
        raise UserError(f"{held} twice, capitals of the suffix aside: remove one of them")
    group[suffix.lower()] = place


def _tar_members(path: Path) -> tuple[dict[str, _Members], list[str]]:
    """Images and texts of a tar.

    Returns:
      the groups and ignored names, as `_grouped`; of each member, where its bytes start, how many
      there are, and its fault or an empty string.
    """
    try:
        places: dict[str, tuple[int, int, str]] = {}
        with tarfile.open(path, "r:") as tar:
            last = -1
            for member in tar:
                # A negative size would lead back to members that were read already.
                if member.offset <= last or member.size < 0:
                    raise tarfile.ReadError(f"the header at byte {member.offset} is damaged")
                last = member.offset
                if not member.isdir():
                    name = member.name.removeprefix("./")
                    if name in places and _is_known(name.rpartition(".")[2]):
                        raise UserError(f"{path} holds {name} twice: remove one of them")
                    places[name] = (member.offset_data, member.size, _fault(member))
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            # A tar ends with a block of zeros; the library takes a damaged header for the end, too.
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"the header at byte {end} is damaged")
        return _grouped(places, str(path))
    except UserError:
        raise
    # A damaged header can make the library read a name of any size, hence the MemoryError.
    except (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError) as error:
        start = _start(path)
        refuse_pointer(start, str(path))
        packed = next((name for mark, name in _PACKED.items() if start.startswith(mark)), "")
        reason, remedy = str(error), "write or fetch it again"
        if packed:
            reason, remedy = f"it is packed by {packed}", "unpack it"
        raise UserError(
            f"{path} cannot be read as an uncompressed tar ({reason}): {remedy}"
        ) from error


def _fault(member: tarfile.TarInfo) -> str:
    """Why the bytes of a member are not those of its file; empty where they are."""
    if member.issparse():
        return "is sparse: pack the tar without --sparse"
    if member.islnk() or member.issym():
        return "is a link: pack the tar with --dereference and --hard-dereference"
    return "" if member.isfile() else "is not a file: leave it out of the tar"


def _start(path: Path) -> bytes:
    """The first bytes of a file, which tell its format; none where it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(LFS_POINTER))
    return b""


def _tar_reader(path: Path, key: str, members: _Members) -> Callable[[str], bytes]:
    def read(suffix: str) -> bytes:
        start, size, fault = members[suffix]
        if fault:
            raise UserError(f"{key}.{suffix} {fault}")
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    return read


def _file_reader(root: Path, name: str, members: _Members) -> Callable[[str], bytes]:
    def read(suffix: str) -> bytes:
        try:
            return read_inside(root, members[suffix].relative_to(root).as_posix())
        except (OSError, UserError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{name}.{suffix} cannot be read: {reason}") from error

    return read


def has_pairs(names: Sequence[str]) -> bool:
    """Whether any image and text belong together; the names of files include their folders."""
    names = [one_form(name) for name in names]
    images, texts = (_stems(names, suffixes) for suffixes in (IMAGE_SUFFIXES, TEXT_SUFFIXES))
    return not images.isdisjoint(texts)


def image_count(names: Iterable[str]) -> int:
    """Number of images among the names, without counting other formats of the same one."""
    return len(_stems(names, IMAGE_SUFFIXES))


def _stems(names: Iterable[str], suffixes: Sequence[str]) -> set[str]:
    split = (name.rpartition(".") for name in names)
    return {stem for stem, _, suffix in split if suffix.lower() in suffixes}
