"""Finds and reads the pictures that samples start from, and pairs them with prompts."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ladd_jax.data.images import decode_image, look_at_image
from ladd_jax.data.picture_folder import PictureFolder
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.paths import matches

Read = TypeVar("Read")
First = TypeVar("First")
Second = TypeVar("Second")


def find_starts(path: str) -> list[Path]:
    """The picture files that a path names, each of them checked.

    Args:
      path: a picture, a folder of pictures, a pattern, or several of these separated by commas.

    Raises:
      NotFoundError: there is none.
      UserError: a file is not a picture, is damaged, or is too large to decode.
    """
    files: list[Path] = []
    for place in matches(path):
        files += PictureFolder(place).files if place.is_dir() else [place]
    for file in files:
        look_at_start(file)
    return files


def pair(
    prompts: Sequence[First], files: Sequence[Second], what: str = "pictures"
) -> tuple[list[First], list[Second]]:
    """Pairs prompts with pictures; a single prompt or picture is used for all of the others.

    Args:
      prompts: prompts, and what else was paired with them before.
      files: files of pictures, or other things that go with prompts.
      what: what errors call these.

    Returns:
      prompts and pictures, equally many, without repeated pairs.

    Raises:
      UserError: there are several of both, but not equally many.
    """
    if len(prompts) != len(files) and 1 not in (len(prompts), len(files)):
        raise UserError(
            f"{len(files)} {what} for {len(prompts)} prompts: give one of either, or equally many"
        )
    count = max(len(prompts), len(files))
    pairs = dict.fromkeys((prompts[i % len(prompts)], files[i % len(files)]) for i in range(count))
    return [prompt for prompt, _ in pairs], [file for _, file in pairs]


def look_at_start(file: Path) -> tuple[int, int]:
    """Height and width, once upright, of a picture file that `read_start` will read.

    Raises:
      NotFoundError: the file is gone.
      UserError: it is not a picture, is damaged, or is too large to decode.
    """
    return told(file, look_at_image)


def read_start(file: Path) -> np.ndarray:
    """The picture in a file, uint8 `[H, W, 3]`.

    Raises:
      NotFoundError: the file is gone.
      UserError: it is not a picture, or is damaged.
    """
    return told(file, decode_image)


def name_of(file: Path) -> str:
    """An identifier of a picture: its file's name, and a digest of the bytes."""
    return f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:10]}"


def told(file: Path, read: Callable[[bytes], Read]) -> Read:
    """What is read of a file's bytes; an error of it names the file.

    Raises:
      NotFoundError: the file is gone.
      UserError: what `read` raises.
    """
    try:
        return read(file.read_bytes())
    except OSError as error:
        raise NotFoundError(f"{file} cannot be read ({error.strerror}): check the path") from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
