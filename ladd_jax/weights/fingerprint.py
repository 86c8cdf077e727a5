"""Whether weights are still those that something was made with, without reading all of them."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ladd_jax.paths import expand

TRANSFORMER = ("transformer",)
ENCODERS = (
    "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
    "tokenizer_3",
)  # fmt: skip
"""Folders of a pipeline with what makes latents and text."""

# Of what is read: weights, and all that tokenizers and architectures are made of.
_SUFFIXES = (".safetensors", ".json", ".txt", ".model")

_PIECES = 64
_PIECE = 2**16


@functools.lru_cache(maxsize=32)
def fingerprint(place: str, parts: Sequence[str]) -> str:
    """A digest of names, sizes and samples of the files of some weights.

    Of files of more than 4 MiB 64 pieces of 64 KiB count, evenly spaced from the first to the last,
    which tell one training from another; of others all bytes.

    Args:
      place: a pipeline's folder, another folder of one model, or a file.
      parts: folders of the pipeline that count; of a folder that has none of them its own files do.

    Returns:
      hexadecimal digits; empty where nothing is there, as with a name of the hub.
    """
    folder = expand(place)
    files = [folder] if folder.is_file() else sorted(_files(folder, parts))
    if not files:
        return ""
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.relative_to(folder).as_posix()} {size} ".encode())
        with file.open("rb") as stream:
            _sample(found, stream, size)
    return found.hexdigest()


def fingerprints(field: str, place: str, parts: Sequence[str]) -> dict[str, str]:
    """The fingerprint of the weights that a field names, by its name; none where none are here."""
    found = fingerprint(place, parts) if place else ""
    return {field: found} if found else {}


def _files(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    found = [folder / part for part in parts if (folder / part).is_dir()]
    for directory in found or [folder]:
        if directory.is_dir():
            yield from (file for file in directory.iterdir() if file.suffix in _SUFFIXES)


def _sample(digest: Any, stream: Any, size: int) -> None:
    if size <= _PIECES * _PIECE:
        digest.update(stream.read())
        return
    for i in range(_PIECES):
        stream.seek((size - _PIECE) * i // (_PIECES - 1))
        digest.update(stream.read(_PIECE))
