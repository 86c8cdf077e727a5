"""How many tokens a tokenizer knows, read from its files alone.

Both of the mistakes that this catches are silent otherwise: where vocabulary files are missing,
`transformers` makes a tokenizer of the special tokens only, and a token beyond an encoder's table
reads another token's row.
"""

from pathlib import Path
from typing import Any

from ladd_jax.errors import DamagedError, NotFoundError, UserError
from ladd_jax.varint import read_varint
from ladd_jax.whole_files import read_json

_WHOLE = "tokenizer.json"
_BYTE_PAIRS = ("vocab.json", "merges.txt")
_PIECES = "spiece.model"

_UNUSED = 0.1
"""Largest share of an encoder's rows without a token that is accepted: T5 has 28 of 32,128."""


def check_vocabulary(directory: Path, rows: int) -> None:
    """Checks that a tokenizer and an encoder's table of embeddings belong together.

    Args:
      directory: the tokenizer's folder.
      rows: number of rows of the encoder's table.

    Raises:
      NotFoundError: the folder, or a file of the vocabulary, is missing.
      UserError: the files are damaged, or the vocabulary does not fit the table.
    """
    tokens = vocabulary_size(directory)
    if tokens > rows or tokens < (1 - _UNUSED) * rows:
        raise UserError(
            f"the tokenizer {directory} knows {tokens} tokens and its text encoder {rows}: take "
            f"both from one pipeline, with all of its files"
        )


def vocabulary_size(directory: Path) -> int:
    """The highest token id plus 1.

    Raises:
      NotFoundError: the folder, or a file of the vocabulary, is missing.
      DamagedError: they cannot be read.
    """
    if not directory.is_dir():
        raise NotFoundError(f"no {directory}: give the directory of a diffusers pipeline")
    whole, pieces = directory / _WHOLE, directory / _PIECES
    if whole.is_file():
        return _read(whole, _of_whole)
    if pieces.is_file():
        return max(_read(pieces, _of_pieces), _added(directory))
    absent = [name for name in _BYTE_PAIRS if not (directory / name).is_file()]
    if len(absent) == 1:
        raise NotFoundError(f"no {directory / absent[0]}: get all files of the tokenizer")
    if absent:
        raise NotFoundError(
            f"{directory} holds no vocabulary, neither {_WHOLE} nor {' and '.join(_BYTE_PAIRS)} "
            f"nor {_PIECES}: get all files of the tokenizer"
        )
    tokens = _read(directory / _BYTE_PAIRS[0], lambda file: 1 + max(read_json(file).values()))
    return max(tokens, _added(directory))


def _read(file: Path, count: Any) -> int:
    try:
        return int(count(file))
    except DamagedError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedError(
            f"{file} is damaged (it holds no vocabulary): get it again, or run `git lfs pull` "
            f"where it was cloned"
        ) from error


def _of_whole(file: Path) -> int:
    content = read_json(file)
    vocabulary = content["model"]["vocab"]
    # A dict from token to id, or a list in the order of ids.
    size = len(vocabulary)
    if isinstance(vocabulary, dict):
        size = 1 + max(vocabulary.values())
    return max([size, *(1 + token["id"] for token in content.get("added_tokens") or ())])


def _added(directory: Path) -> int:
    """The highest id of a token added to the vocabulary plus 1; 0 if there is none."""
    file = directory / "added_tokens.json"
    return _read(file, lambda file: 1 + max(read_json(file).values())) if file.is_file() else 0


def _of_pieces(file: Path) -> int:
    """The number of pieces of a SentencePiece model, a protobuf message with each in field 1."""
    data = file.read_bytes()
    place = count = 0
    while place < len(data):
        key, place = read_varint(data, place)
        kind = key & 7
        if kind == 0:
            _, place = read_varint(data, place)
        elif kind == 1:
            place += 8
        elif kind == 5:
            place += 4
        elif kind == 2:
            size, place = read_varint(data, place)
            place += size
            count += key >> 3 == 1
        else:
            raise ValueError(f"a field of kind {kind}")
    if place > len(data) or not count:
        raise ValueError("cut")
    return count
