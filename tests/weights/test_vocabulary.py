"""Tokenizers by their files, against the rows of their encoders."""

import json
import re

import pytest

from ladd_jax.errors import DamagedError, NotFoundError, UserError
from ladd_jax.weights.vocabulary import check_vocabulary, vocabulary_size

PIECES = ("<pad>", "</s>", "<unk>", "a")


def spiece(pieces):
    """A SentencePiece model: pieces with a text and a score, and another field of two numbers."""
    data = b""
    for piece in pieces:
        text = piece.encode()
        inner = bytes([10, len(text)]) + text + b"\x15\0\0\0\0"
        data += bytes([10, len(inner)]) + inner
    return data + b"\x12\x04\x18\xe8\x03\x20"[:5] + b"\x01"


BPE = {"a": 0, "b": 1, "c": 2, "d": 3}
WHOLE = json.dumps({"model": {"type": "BPE", "vocab": BPE}, "added_tokens": [{"id": 4}]})
LIST = json.dumps({"model": {"type": "Unigram", "vocab": [[piece, 0.0] for piece in PIECES]}})


@pytest.mark.parametrize(
    ("files", "size"),
    [
        ({"tokenizer.json": WHOLE}, 5),
        ({"tokenizer.json": LIST}, 4),
        ({"vocab.json": json.dumps(BPE), "merges.txt": ""}, 4),
        ({"vocab.json": json.dumps(BPE), "merges.txt": "", "added_tokens.json": '{"x": 7}'}, 8),
        ({"spiece.model": spiece(PIECES)}, 4),
    ],
)
def test_tokens_are_counted_in_every_form(tmp_path, files, size):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    assert vocabulary_size(tmp_path) == size


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        ({"tokenizer_config.json": "{}"}, NotFoundError, "holds no vocabulary, neither"),
        ({"vocab.json": "{}"}, NotFoundError, "merges.txt: get all files"),
        ({"vocab.json": "{}", "merges.txt": ""}, DamagedError, "it holds no vocabulary"),
        ({"tokenizer.json": '{"model": 3}'}, DamagedError, "it holds no vocabulary"),
        ({"spiece.model": "version https://git-lfs"}, DamagedError, "git lfs pull"),
        ({"spiece.model": ""}, DamagedError, "it holds no vocabulary"),
        ({"spiece.model": "\x7f" * 20}, DamagedError, "it holds no vocabulary"),
        (
            {"tokenizer.json": '{"model": {"vocab": {"a": Infinity}}}'},
            DamagedError,
            "it holds no vocabulary",
        ),
    ],
)
def test_files_that_are_missing_or_damaged_are_named(tmp_path, files, kind, words):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(kind, match=re.escape(words)) as raised:
        vocabulary_size(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_tokenizer_of_another_encoder_is_refused(tmp_path):
    vocabulary = {str(i): i for i in range(100)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    check_vocabulary(tmp_path, 100)
    # Tables are padded to round sizes.
    check_vocabulary(tmp_path, 104)
    for rows in (99, 200):
        with pytest.raises(UserError, match=f"knows 100 tokens and its text encoder {rows}"):
            check_vocabulary(tmp_path, rows)
