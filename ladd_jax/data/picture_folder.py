"""Folders of finished pictures, with or without prompts.

n pictures, H W rows and columns.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ladd_jax.data.image_folders import ImageFolder
from ladd_jax.data.images import FORMATS, decode_image, memory_for
from ladd_jax.data.prompts import check_prompt
from ladd_jax.data.records import files_below
from ladd_jax.errors import NotFoundError, UserError, brief

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})

_LOG = logging.getLogger(__name__)

# The prefix of the names of sheets, which `ladd_jax.sample` puts beside its pictures, and the entry
# that their metadata have.
_SHEET, _SHEET_TEXT = "grid_", "prompts"


class PictureFolder:
    """The pictures below a folder, in the order of their paths, where 2 comes before 10.

    Sheets of `ladd_jax.sample` do not count as pictures.

    Attributes:
      files: files of the pictures.
      prompts: prompts of the pictures; None unless all have one.
    """

    def __init__(self, path: Path, prompts: Sequence[str] | None = None):
        """Looks for pictures and reads their prompts, but no pixels.

        Args:
          path: the folder. Prompts are read from its `metadata.jsonl`, as in an image folder, or
            from the pictures, where `ladd_jax.sample` writes them. Pictures of ComfyUI have none.
          prompts: prompts to use instead of the folder's, in the order of the pictures: one for
            each picture, or one for each group of equally many.

        Raises:
          NotFoundError: there is no such folder, or no picture in it.
          UserError: the number of pictures is not a multiple of the number of prompts, a picture
            has a prompt other than the one given for its place, or the metadata are damaged.
        """
        found = (file for file in files_below(path) if file.suffix.lower() in _SUFFIXES)
        self.files = sorted(
            (file for file in found if not _is_sheet(file)),
            key=lambda file: _natural(file.relative_to(path)),
        )
        if not self.files:
            raise NotFoundError(f"no pictures in {path}: give a folder of png, jpg or webp files")
        self.prompts: list[str] | None
        if prompts is None:
            self.prompts = _own_prompts(path, self.files)
            return
        each, rest = divmod(len(self.files), len(prompts))
        if rest:
            raise UserError(
                f"{len(prompts)} prompts for {len(self.files)} pictures in {path}: give one for "
                "each, or equally many pictures to each prompt"
            )
        self.prompts = [prompt for prompt in prompts for _ in range(each)]
        for file, prompt in zip(self.files, self.prompts, strict=True):
            own = _written(file)
            if own not in (None, prompt):
                raise UserError(
                    f"{file} carries the prompt {own!r}, and the one given for its place is "
                    f"{prompt!r}: leave --prompts out"
                )

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All pictures, those of one size together.

        Args:
          most: largest number of pictures in a batch.

        Yields:
          Pictures, float32 `[n, H, W, 3]` in [-1, 1], and their places among `files`, int `[n]`.

        Raises:
          UserError: a picture cannot be read.
        """
        sizes: dict[tuple[int, int], list[int]] = {}
        for place, file in enumerate(self.files):
            # Only the header is read. Pictures to be turned upright are set apart when decoded.
            with _opened(file) as image:
                sizes.setdefault(image.size, []).append(place)
        for places in sizes.values():
            for start in range(0, len(places), most):
                yield from self._read(places[start : start + most])

    def _read(self, places: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        read: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for place in places:
            try:
                with memory_for(str(self.files[place])):
                    pixels = decode_image(self.files[place].read_bytes())
            except (UserError, OSError, Image.DecompressionBombError) as error:
                raise UserError(f"{self.files[place]}: {error}") from error
            read.setdefault(pixels.shape, []).append((place, pixels))
        for same in read.values():
            numbers, arrays = zip(*same, strict=True)
            yield np.stack(arrays).astype(np.float32) / 127.5 - 1, np.array(numbers)


def _own_prompts(path: Path, files: Sequence[Path]) -> list[str] | None:
    if (path / "metadata.jsonl").is_file():
        records = ImageFolder(path)
        named: dict[Path, str] = {}
        for i in range(len(records)):
            file, prompt = records.file(i), records[i].prompt
            if named.setdefault(file, prompt) != prompt:
                raise UserError(
                    f"{path / 'metadata.jsonl'} has the prompts {named[file]!r} and {prompt!r} for "
                    f"{file.name}, and a picture is judged by one: remove the other row"
                )
        found = [named.get(file) for file in files]
    else:
        found = [_written(file) for file in files]
    prompts = [prompt for prompt in found if prompt is not None]
    if 0 < len(prompts) < len(files):
        _LOG.warning(
            "%s: %d of %d pictures have no prompt, so that none is read: give --prompts, or remove "
            "them, %s first",
            path, len(files) - len(prompts), len(files), files[found.index(None)].name,
        )  # fmt: skip
    return prompts if len(prompts) == len(files) else None


def _written(file: Path) -> str | None:
    """The prompt in a PNG's metadata; None without one, or with a graph of ComfyUI in its place."""
    prompt = png_text(file, "prompt")
    return None if prompt is None or _is_graph(prompt) else check_prompt(prompt, str(file))


def _is_graph(text: str) -> bool:
    """Whether a text is a graph of nodes, which ComfyUI writes under the name of the prompt."""
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(nodes, dict)
        and bool(nodes)
        and all(isinstance(node, dict) and "class_type" in node for node in nodes.values())
    )


def _is_sheet(file: Path) -> bool:
    return file.name.startswith(_SHEET) and png_text(file, _SHEET_TEXT) is not None


def png_text(file: Path, name: str) -> str | None:
    """An entry of a PNG's metadata; None if there is no such entry, or the file is not a PNG.

    Raises:
      UserError: the file is not a picture.
    """
    if file.suffix.lower() != ".png":
        return None
    with _opened(file) as image:
        found: str | None = image.info.get(name)
        return found


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """A picture whose pixels are not read yet."""
    try:
        image = Image.open(file, formats=FORMATS)
    # The library raises a ValueError for texts that are longer than it reads.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} is not a picture ({brief(error)}): remove it") from error
    with image:
        yield image


def _natural(path: Path) -> list[list[tuple[str, int]]]:
    """A key that sorts numbers in names as numbers."""
    pieces = ([*re.split(r"([0-9]+)", part), ""] for part in path.parts)
    return [
        [(text, int(number or -1)) for text, number in zip(p[::2], p[1::2], strict=True)]
        for p in pieces
    ]
