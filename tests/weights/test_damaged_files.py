"""Files of others that are empty, cut or pointers of git-lfs are named, whoever reads them."""

import json
import struct

import pipelines
import pytest

from ladd_jax.errors import DamagedError, UserError
from ladd_jax.models.sd3.text import PromptTokenizer
from ladd_jax.weights.files import read_headers
from ladd_jax.weights.pretrained import read_pretrained

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 886\n"


def safetensors(header):
    data = json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data


def tensor(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes is truncated .*it has no header"),
        (POINTER, " is a pointer of git-lfs, and not the file: run `git lfs pull`"),
        (safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "truncated"),
        (b"GGUF\3" + bytes(40), r"not a safetensors file \(it is a GGUF file\)"),
        (b"PK\3\4" + b"\0\0\x08\x08" * 9, "it is a zip file, as PyTorch writes pickled weights"),
        (b"\x80\2\x8a\nl\xfc\x9cF\xf9 j", "it holds pickled weights"),
        # The length of a header may begin with the byte of a pickle.
        (struct.pack("<Q", 0x1080) + b"{", "its header would be longer than the file"),
        (b" \n" * 30, "its header would be longer than the file"),
        (b"<!DOCTYPE html>\n<html>" * 9, "begins with the text '<!DOCTYPE html> <html><!DOCTYPE"),
        (safetensors({"a": None}), "not a safetensors file"),
        (safetensors({"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 8]}}), "truncated"),
        (safetensors([]), "not a safetensors file"),
        (struct.pack("<Q", 16) + b'{"a": 1, "a": 1}', "it has 'a' twice"),
        (safetensors({"a": tensor()}) + bytes(9), r"its header promises \d+, as after a download"),
        (
            safetensors({"a": tensor(), "b": tensor(data_offsets=[4, 12])}) + bytes(12),
            "b begins at byte .* and the tensor before it ends at",
        ),
        (safetensors({"a": tensor(data_offsets=[8, 16])}) + bytes(16), "a begins at byte"),
        (safetensors({"a": tensor(shape=[-1, -2])}), "invalid dtype, shape or offset"),
        (safetensors({"a": tensor(shape=[True])}), "invalid dtype, shape or offset"),
        (safetensors({"a": tensor(dtype=["F32"])}), "invalid dtype, shape or offset"),
        (safetensors({"a": tensor(data_offsets=[8, 0])}), "ends before it begins"),
        (safetensors({"a": tensor(data_offsets=[0.0, 8])}), "invalid dtype, shape or offset"),
        (
            safetensors({"__metadata__": {"heads": 3}}),
            "metadata is not a mapping of names to strings",
        ),
        (
            safetensors({"__metadata__": [["a", "b"]]}),
            "metadata is not a mapping of names to strings",
        ),
    ],
)
def test_damaged_weights_are_named(tmp_path, data, words):
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(DamagedError, match=rf"model\.safetensors.*{words}"):
        read_headers([file])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("a.weight.absmax", "bitsandbytes"),
        ("a.SCB", "bitsandbytes"),
        ("a.qweight", "GPTQ, AWQ or Nunchaku"),
        ("a.weight._data", "quanto"),
        ("a.weight_scale_2", "NVFP4"),
    ],
)
def test_weights_in_a_form_that_is_not_read_are_said_to_be(tmp_path, name, method):
    file = tmp_path / "model.safetensors"
    entries = {
        "a.weight": tensor(dtype="U8", shape=[8]),
        name: tensor(data_offsets=[8, 16]),
    }
    file.write_bytes(safetensors(entries) + bytes(16))
    with pytest.raises(UserError, match=rf"model.* in the form of {method}, .*{name}\): get"):
        read_headers([file])


def test_a_file_that_the_hubs_cache_has_lost_is_named(tmp_path):
    link = tmp_path / "model.safetensors"
    link.symlink_to("../../blobs/1f")
    with pytest.raises(
        DamagedError, match=r"model\.safetensors is a link to nothing: get it again"
    ):
        read_headers([link])
    with pytest.raises(DamagedError, match="is not a file"):
        read_headers([tmp_path])


def test_a_tensor_that_two_files_have_is_named(tmp_path):
    files = [tmp_path / name for name in ("1.safetensors", "2.safetensors")]
    for file in files:
        file.write_bytes(safetensors({"a": tensor()}) + bytes(8))
    with pytest.raises(
        DamagedError, match=r"1\.safetensors and .*2\.safetensors both have a: the index"
    ):
        read_headers(files)


@pytest.mark.parametrize("data", [b"", POINTER, b'{"version": '])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, data):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedError, match=rf"AutoTokenizer cannot read {tmp_path}"):
        read_pretrained("AutoTokenizer", tmp_path)


def test_a_tokenizer_that_loads_and_fails_in_use_is_named_before_it_is_used(tmp_path):
    pipelines.t5_tokenizer().save_pretrained(tmp_path)
    assert PromptTokenizer(tmp_path, 8)(["the cat"]).shape == (1, 8)
    # It says which token pads.
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(DamagedError, match=f"the tokenizer in {tmp_path} fails .Asking to pad"):
        PromptTokenizer(tmp_path, 8)
