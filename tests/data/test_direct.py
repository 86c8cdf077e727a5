"""What is read straight into a batch is what the library reads, or is not taken."""

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from ladd_jax.data import direct
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.buffers import Buffers
from ladd_jax.data.direct import DirectFiles
from ladd_jax.data.pipeline import BatchPlan, loader, put, widened
from ladd_jax.data.shard_sets import Layout
from ladd_jax.data.shard_writing import finalize, write_shard
from ladd_jax.data.shards import Shards
from ladd_jax.parallel.mesh import make_mesh

BUCKET = Bucket(4, 6)


def write(directory, arrays, prompts):
    """A set of one file, whose path it gives."""
    layout = Layout({BUCKET: len(prompts)}, len(prompts), arrays)
    (shard,) = layout.shards()
    rng = np.random.default_rng(0)
    records = []
    for prompt in prompts:
        cond = {n: rng.standard_normal(spec.shape_in(BUCKET)) for n, spec in arrays.items()}
        records.append({"prompt": prompt, "cond": cond})
    write_shard(directory, layout, shard, records)
    finalize(directory, layout, {})
    return shard.path(directory)


# Of a block of the file 65,512 bytes are its own.
sizes = st.one_of(st.integers(1, 40), st.integers(16_300, 16_400), st.just(300_000))


@settings(max_examples=15, deadline=None)
@given(sizes=st.tuples(sizes, sizes), length=st.integers(1, 300))
def test_records_of_any_size_are_those_of_the_library(tmp_path_factory, sizes, length):
    directory = tmp_path_factory.mktemp("shards")
    arrays = {name: ArraySpec((size,)) for name, size in zip("ab", sizes, strict=True)}
    prompts = ["é" * length, "cat"]
    path = write(directory, arrays, prompts)
    builder = tfds.builder_from_directory(str(path.parent))
    (split,) = builder.info.splits
    for i, theirs in enumerate(builder.as_data_source(split)):
        rows = {name: np.empty(size, "f4") for name, size in zip("ab", sizes, strict=True)}
        texts = DirectFiles().read(str(path), i, 2, rows, rows)
        assert texts == {"key": f"4x6/{i}", "prompt": prompts[i]}
        for name, row in rows.items():
            np.testing.assert_array_equal(row, theirs[name])
        alone = {"b": np.empty(sizes[1], "f4")}
        assert DirectFiles().read(str(path), i, 2, rows, alone) == texts
        np.testing.assert_array_equal(alone["b"], theirs["b"])


def test_no_bit_of_an_array_or_a_text_can_change_unnoticed(tmp_path):
    path = write(tmp_path, {"a": ArraySpec((5,)), "b": ArraySpec((3,), "float16")}, ["a cat"])
    whole = path.read_bytes()

    def read():
        rows = {"a": np.zeros(5, "f4"), "b": np.zeros(3, "f2")}
        texts = DirectFiles().read(str(path), 0, 1, rows, rows)
        return texts and (texts, *(row.tobytes() for row in rows.values()))

    right = read()
    # All of the record, and the headers before it.
    for place in range(64, 64 + 300):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        assert read() in (None, right), place


def test_another_file_and_another_record_are_left_to_the_library(tmp_path):
    path = write(tmp_path, {"a": ArraySpec((5,))}, ["a cat"])
    row = {"a": np.zeros(6, "f4")}
    assert DirectFiles().read(str(path), 0, 1, row, row) is None
    assert DirectFiles().read(str(tmp_path / "missing"), 0, 1, row, row) is None
    other = tmp_path / "other"
    other.write_bytes(b"no records")
    assert DirectFiles().read(str(other), 0, 1, row, row) is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_batch_is_widened_on_the_devices_to_the_same_bits(tmp_path, dtype):
    blocks = ((2, 3), (3, 8))
    arrays = {
        "latents": ArraySpec(("H", "W", 2), dtype),
        "context": ArraySpec((5, 8), dtype, blocks),
        "pooled": ArraySpec((4,), "float16" if dtype == "int8" else dtype),
    }
    layout = Layout({BUCKET: 8}, 8, arrays)
    (shard,) = layout.shards()
    rng = np.random.default_rng(0)
    keep = np.arange(8) < np.array([[3]] * 2 + [[8]] * 3)
    records = [
        {
            "latents": rng.standard_normal((4, 6, 2)),
            "cond": {
                "context": rng.standard_normal((5, 8)) * keep,
                "pooled": rng.standard_normal(4),
            },
            "prompt": str(i),
        }
        for i in range(8)
    ]
    write_shard(tmp_path, layout, shard, records)
    finalize(tmp_path, layout, {})
    shards = Shards(tmp_path)
    plan, mesh = BatchPlan(shards.sizes, 8, 0), make_mesh({"data": 2, "fsdp": 4})
    _, batch = next(loader(shards, plan, 0, 1))
    stored = sum(array.nbytes for array in jax.tree.leaves(batch))
    assert stored == 8 * sum(spec.bytes_in(BUCKET) for spec in arrays.values())
    whole = shards.read(BUCKET, plan[0][1])
    with jax.transfer_guard("disallow"):
        found = widened(put(batch, mesh), mesh)
    for name, array in {"latents": found["latents"], **found["cond"]}.items():
        expected = whole["latents"] if name == "latents" else whole["cond"][name]
        assert array.sharding.is_equivalent_to(put(expected, mesh).sharding, array.ndim)
        assert array.dtype == np.float32
        assert np.asarray(array).tobytes() == expected.tobytes()


def test_memory_is_used_again_when_nothing_refers_to_it():
    buffers = Buffers()
    array = buffers.empty((2, 2**20), "f4")
    place, view = array.ctypes.data, array[1:, 5:]
    del array
    view[:] = 7
    other = buffers.empty((2, 2**20), "f4")
    other[:] = 1
    assert (view == 7).all() and other.ctypes.data != place
    del view
    assert buffers.empty((2, 2**20), "f2").ctypes.data == place


def test_a_system_that_does_not_read_into_several_places_has_the_library_read(
    tmp_path, monkeypatch
):
    write(tmp_path, {"latents": ArraySpec((5,)), "b": ArraySpec((3,), "float16")}, ["a cat", "b"])
    quick = Shards(tmp_path).read(BUCKET, np.arange(2))
    monkeypatch.setattr(direct, "_READS", False)
    slow = Shards(tmp_path).read(BUCKET, np.arange(2))
    assert slow["prompt"] == quick["prompt"] == ["a cat", "b"]
    np.testing.assert_array_equal(slow["latents"], quick["latents"])
    np.testing.assert_array_equal(slow["cond"]["b"], quick["cond"]["b"])
