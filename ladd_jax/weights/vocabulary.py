"""How many tokens a tokenizer knows, by its files alone.

`transformers` makes a tokenizer of its special tokens where the files of the vocabulary are
missing, and a token beyond an encoder's table reads another one's row: neither says a word.
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
"""Largest share of an encoder's rows that no token has: T5 has 28 of 32,128."""


def check_vocabulary(directory: Path, rows: int) -> None:
    """Checks that a tokenizer and an encoder's table of embeddings belong together.

    Args:
      directory: the tokenizer's folder.
      rows: of the table.

    Raises:
      NotFoundError: there is no such folder, or not all files of the vocabulary.
      UserError: they are damaged, or of another size than the table.
    """
    tokens = vocabulary_size(directory)
    if tokens > rows or tokens < (1 - _UNUSED) * rows:
        raise UserError(
            f"the tokenizer {directory} knows {tokens} tokens and its text encoder {rows}: take "
            f"both from one pipeline, with all of its files"
        )


def vocabulary_size(directory: Path) -> int:
    """The highest number of a token, and 1.

    Raises:
      NotFoundError: there is no such folder, or not all files of the vocabulary.
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
    # A dict of the tokens' numbers, or a list in their order.
    size = len(vocabulary)
    if isinstance(vocabulary, dict):
        size = 1 + max(vocabulary.values())
    return max([size, *(1 + token["id"] for token in content.get("added_tokens") or ())])


def _added(directory: Path) -> int:
    """The same of tokens that were added to a vocabulary; 0 for none."""
    file = directory / "added_tokens.json"
    return _read(file, lambda file: 1 + max(read_json(file).values())) if file.is_file() else 0


def _of_pieces(file: Path) -> int:
    """Pieces of a SentencePiece model: a message of protobuf, each piece a field 1 of bytes."""
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
