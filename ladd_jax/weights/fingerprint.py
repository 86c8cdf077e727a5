"""Detects whether weights are still those that something was made with, without a full read."""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ladd_jax.paths import expand

TRANSFORMER = ("transformer",)
ENCODERS = (
    "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
    "tokenizer_3",
)  # fmt: skip
"""Folders of a pipeline that hold what makes latents and text embeddings."""

# Files that count: weights, tokenizers and configs.
_SUFFIXES = (".safetensors", ".json", ".txt", ".model")

_PIECES = 64
_PIECE = 2**16


@functools.lru_cache(maxsize=32)
def fingerprint(place: str, parts: Sequence[str]) -> str:
    """A digest of the names, the sizes and a sample of the bytes of a model's files.

    Files of up to 4 MiB are read whole. Of larger ones 64 pieces of 64 KiB are read, evenly spaced
    from the first byte to the last, which is enough to tell one training from another.

    Args:
      place: a pipeline's folder, another folder of one model, or a file.
      parts: folders of the pipeline that count; in a folder without any of them, its own files
        count instead.

    Returns:
      hexadecimal digits; empty where no files are here, as with the name of a hub repository.
    """
    folder = expand(place)
    files = [folder] if folder.is_file() else sorted(_files(folder, parts))
    if not files:
        return ""
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        # Names are bytes on a disk, and need not be UTF-8.
        found.update(os.fsencode(file.relative_to(folder).as_posix()) + f" {size} ".encode())
        with file.open("rb") as stream:
            _sample(found, stream, size)
    return found.hexdigest()


def fingerprints(field: str, place: str, parts: Sequence[str]) -> dict[str, str]:
    """Maps a field to the fingerprint of the weights that it names; empty if they are not here."""
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
