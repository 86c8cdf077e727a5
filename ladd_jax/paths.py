"""Paths as users write them: `~`, patterns, lists, and what was meant by one that is not there.

A path is relative to where the user stands, on the command line and in a config file alike. What
an address (`gs://...`) names is copied here, and its path is that of the copy.
"""

import difflib
import errno
import glob
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ladd_jax import object_store
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.object_store import is_address

_PATTERN = frozenset("*?[")

# Of one name with accents, as keyboards write it and as archives from macOS have it.
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")

COPY_LATER = "name a folder or file on a disk, and copy that with `gcloud storage cp`"
"""A remedy for `expand_local`."""


def expand(path: str | Path) -> Path:
    """A path with the user's own folder in the place of `~`; of an address, that of its copy.

    Raises:
      UserError: there is no such user; or the bucket cannot be read.
    """
    if is_address(path):
        return object_store.fetch(str(path))
    try:
        return as_on_disk(Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(f"{path} begins with a user who is not known here: write it out") from error


def is_there(path: str | Path) -> bool:
    """Whether what a user gave is one path, and something has it.

    Raises:
      UserError: as `expand`.
      OSError: nobody may see it.
    """
    try:
        return expand(path).exists()
    except OSError as error:
        # A list of many files is longer than a path may be.
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def as_on_disk(path: Path) -> Path:
    """A path whose names have the Unicode forms in which they are on disk, where they are there.

    Accents are characters of their own in one form (NFD) and parts of letters in the other (NFC);
    file systems tell both apart, and people cannot.
    """
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.relative_to(found).parts:
        names = (part, *(unicodedata.normalize(form, part) for form in _FORMS))
        found /= next((name for name in names if os.path.lexists(found / name)), part)
    return found


def one_form(name: str) -> str:
    """A name in the form that all have which look like it."""
    return unicodedata.normalize(_FORMS[0], name)


def expand_local(path: str, flag: str, remedy: str) -> Path:
    """`expand`, of what is written to and has to be on a disk.

    Args:
      path: the path.
      flag: the flag that names it.
      remedy: what the user can do.

    Raises:
      UserError: it is an address; or there is no such user.
    """
    if is_address(path):
        raise UserError(f"--{flag}={path} cannot be an address of a bucket: {remedy}")
    return expand(path)


def expand_file(path: str, flag: str, remedy: str) -> Path:
    """`expand_local`, of a file that is written once all else is done.

    Raises:
      UserError: as `expand_local`; or there is a folder of that name, or none to write it into.
    """
    file = expand_local(path, flag, remedy)
    if file.is_dir():
        raise UserError(f"--{flag}={path} is a folder: name a file")
    if not os.access(file.parent, os.W_OK | os.X_OK) or not file.parent.is_dir():
        raise UserError(
            f"--{flag}={path} is in no folder where you may write{near(file.parent)}: name a file "
            f"in one"
        )
    return file


def near(path: str | Path) -> str:
    """What there is near a path that does not exist, to stand behind it in a message.

    Returns:
      `, and X is there`, of the path that may have been meant; else of the last folder on the way,
      where the path has one; `, and X is a link to nothing` of one that is; else nothing.
    """
    if is_address(path):
        return ""
    wanted = expand(path)
    parent, name = wanted.parent, wanted.name
    while not parent.exists() and parent != parent.parent:
        parent, name = parent.parent, parent.name
    if (parent / name).is_symlink():
        return f", and {parent / name} is a link to nothing"
    try:
        close = difflib.get_close_matches(name, os.listdir(parent), 1, 0.6)
    except OSError:
        close = []
    if close:
        meant = parent / close[0] / wanted.relative_to(parent / name)
        return f", and {meant if meant.exists() else parent / close[0]} is there"
    # That where the user stands is there needs no telling.
    return "" if parent == Path() else f", and of its folders {parent} is there"


def is_pattern(path: str | Path) -> bool:
    """Whether a path that does not exist is a pattern such as `data/*.tar`."""
    return not _PATTERN.isdisjoint(str(path)) and not is_there(path)


def matches(path: str | Path) -> list[Path]:
    """The files and folders that a path names.

    Args:
      path: one path, a pattern such as `data/*.tar` (`**` is for folders at any depth), or several
        of these with commas between them. A path that exists is meant as it stands, whatever
        characters it has.

    Returns:
      Each once, in the order of the list, and those of a pattern in that of their names.

    Raises:
      NotFoundError: there is none of a part, which is named with what is near; or no part.
    """
    found: dict[Path, None] = {}
    for part in _parts(str(path)):
        if is_there(part):
            some: Sequence[Path] = [expand(part)]
        elif is_pattern(part) and is_address(part):
            some = [expand(address) for address in object_store.find(part)]
            if not some:
                raise NotFoundError(f"no file matches {part}: check the pattern")
        elif is_pattern(part):
            some = [Path(name) for name in sorted(glob.glob(str(expand(part)), recursive=True))]
            if not some:
                folder = _folder(part)
                gone = "" if folder.is_dir() else f"; {folder} does not exist{near(folder)}"
                raise NotFoundError(f"no file matches {part}{gone}: check the pattern")
        else:
            raise NotFoundError(f"no file {part}{near(part)}: check the path")
        found |= dict.fromkeys(some)
    if not found:
        raise NotFoundError(f"{str(path)!r} names no file: check the path")
    return list(found)


def _parts(path: str) -> list[str]:
    if "," not in path or is_there(path):
        return [path]
    return [part.strip() for part in path.split(",") if part.strip()]


def _folder(pattern: str) -> Path:
    """The last folder that a pattern names before its first character of one."""
    parts = expand(pattern).parts
    count = next(i for i, part in enumerate(parts) if not _PATTERN.isdisjoint(part))
    return Path(*parts[:count])
