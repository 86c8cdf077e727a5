"""Weights that are others than before have another fingerprint."""

import os

import pytest

from ladd_jax.weights.fingerprint import ENCODERS, TRANSFORMER, fingerprint

LARGE = 2**23


@pytest.fixture
def pipeline(tmp_path):
    for name in ("transformer/w.safetensors", "text_encoder/model.safetensors", "vae/config.json",
                 "tokenizer/vocab.json", "README.md"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def both(folder):
    fingerprint.cache_clear()
    return fingerprint(str(folder), TRANSFORMER), fingerprint(str(folder), ENCODERS)


def test_it_is_of_the_parts_that_are_asked_for(pipeline):
    first, second = both(pipeline)
    assert first and second and first != second
    (pipeline / "README.md").write_text("x")
    (pipeline / "vae" / "notes.md").write_text("x")
    assert both(pipeline) == (first, second)
    (pipeline / "tokenizer" / "vocab.json").write_text("x")
    assert both(pipeline)[0] == first and both(pipeline)[1] != second


def test_a_name_counts_that_is_not_utf8(pipeline):
    file = pipeline / "transformer" / os.fsdecode(b"caf\xe9.json")
    file.write_text("x")
    first, _ = both(pipeline)
    file.rename(file.with_name(os.fsdecode(b"caf\xe8.json")))
    assert first and both(pipeline)[0] != first


def test_of_a_large_file_pieces_from_the_first_byte_to_the_last_count(pipeline):
    file = pipeline / "transformer" / "w.safetensors"
    found = set()
    for place in (None, 0, LARGE // 2, LARGE - 1):
        content = bytearray(LARGE)
        # As another training has others everywhere.
        if place is not None:
            content[max(place - LARGE // 50, 0) : place + LARGE // 50] = b"x" * (LARGE // 25)
        file.write_bytes(content[:LARGE])
        found.add(both(pipeline)[0])
    assert len(found) == 4


def test_it_is_of_a_file_or_a_folder_of_its_own_too_and_of_nothing_where_nothing_is(pipeline):
    assert fingerprint(str(pipeline / "transformer" / "w.safetensors"), ENCODERS)
    assert fingerprint(str(pipeline / "text_encoder"), ENCODERS)
    assert fingerprint("owner/name", TRANSFORMER) == ""
