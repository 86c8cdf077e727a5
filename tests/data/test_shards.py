"""Shards appear whole, once each, and give back what was written."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import (
    ArraySpec,
    Layout,
    Shards,
    finalize,
    is_complete,
    missing_shards,
    write_shard,
)
from ladd_jax.errors import UserError

SMALL, WIDE = Bucket(2, 2), Bucket(2, 4)


NULL = {"context": np.zeros((2, 3)), "pooled": np.ones(4)}


def layout(sizes, records_per_shard=3, text_dtype="float32"):
    arrays = {
        "latents": ArraySpec(("H", "W", 1)),
        "context": ArraySpec((2, 3), text_dtype),
        "pooled": ArraySpec((4,), text_dtype),
    }
    return Layout(sizes, records_per_shard, arrays)


@pytest.mark.parametrize("name", ["key", "prompt"])
def test_an_array_cannot_have_the_name_of_a_text(name):
    with pytest.raises(UserError, match=f"named '{name}'.*use another name"):
        Layout({SMALL: 1}, 1, {name: ArraySpec((2,))})


def test_a_shape_has_no_sides_but_those_of_the_bucket():
    assert ArraySpec(("H", "W", 3)).shape_in(WIDE) == (2, 4, 3)
    with pytest.raises(UserError, match="names 'D'"):
        ArraySpec(("H", "D"))


def records(shard, seed=0):
    for i in range(shard.start, shard.stop):
        rng = np.random.default_rng((seed, i))
        yield {
            "latents": rng.standard_normal((shard.bucket.height, shard.bucket.width, 1), "f4"),
            # Exact in float16 too.
            "cond": {
                "context": rng.integers(-9, 9, (2, 3)) / np.float32(8),
                "pooled": rng.integers(-9, 9, 4) / np.float32(8),
            },
            "prompt": f"prompt {i}",
        }


def write_all(directory, plan):
    for shard in missing_shards(directory, plan):
        write_shard(directory, plan, shard, records(shard))
    finalize(directory, plan, NULL)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(size=st.integers(1, 11), per_shard=st.integers(1, 5))
def test_every_record_is_read_back_once_and_unchanged(tmp_path_factory, size, per_shard):
    directory = tmp_path_factory.mktemp("shards")
    plan = layout({SMALL: size}, per_shard, text_dtype="float16")
    write_all(directory, plan)
    shards = Shards(directory)
    assert shards.sizes == {SMALL: size}
    read = shards.read(SMALL, np.arange(size))
    assert read["prompt"] == [f"prompt {i}" for i in range(size)]
    assert len(set(read["key"])) == size
    for shard in plan.shards():
        for i, record in zip(range(shard.start, shard.stop), records(shard), strict=True):
            np.testing.assert_array_equal(read["latents"][i], record["latents"])
            for name in ("context", "pooled"):
                np.testing.assert_array_equal(read["cond"][name][i], record["cond"][name])


def test_a_stopped_writer_leaves_nothing_half_written_and_goes_on(tmp_path):
    plan = layout({SMALL: 7, WIDE: 4})
    first, *_ = missing_shards(tmp_path, plan)

    def interrupted():
        yield next(records(first))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, plan, first, interrupted())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    write_shard(tmp_path, plan, first, records(first))
    assert first not in missing_shards(tmp_path, plan)
    assert not is_complete(tmp_path)
    write_all(tmp_path, plan)
    assert Shards(tmp_path).sizes == {SMALL: 7, WIDE: 4}


def test_shards_of_uneven_length_repeat_no_record(tmp_path):
    plan = layout({SMALL: 7}, 3)
    assert [shard.stop - shard.start for shard in plan.shards()] == [3, 3, 1]
    write_all(tmp_path, plan)
    read = Shards(tmp_path).read(SMALL, np.arange(7))
    assert len(np.unique(read["latents"].reshape(7, -1), axis=0)) == 7


def test_tensorflow_datasets_reads_the_folder_without_this_project(tmp_path):
    write_all(tmp_path, layout({WIDE: 5}))
    builder = tfds.builder_from_directory(str(tmp_path / "2x4" / "1.0.0"))
    source = builder.as_data_source("b2x4")
    assert len(source) == 5 and source[4]["latents"].shape == (2, 4, 1)


def test_a_shard_with_too_few_records_is_refused(tmp_path):
    plan = layout({SMALL: 3})
    (shard,) = plan.shards()
    with pytest.raises(ValueError, match="given 2 records and holds 3"):
        write_shard(tmp_path, plan, shard, list(records(shard))[:2])
    assert missing_shards(tmp_path, plan) == [shard]


def test_finalizing_with_a_missing_shard_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="1 shards are missing.*00000-of-00001"):
        finalize(tmp_path, layout({SMALL: 3}), NULL)


def test_incomplete_shards_are_refused_with_the_stage_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ladd_jax\.encode.*ladd_jax\.synthesize"):
        Shards(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_file_that_was_lost_or_cut_is_found_before_it_is_read(tmp_path, damage):
    plan = layout({SMALL: 7})
    write_all(tmp_path, plan)
    path = list(plan.shards())[1].path(tmp_path)
    if damage == "missing":
        path.unlink()
        words = f"{path.name} is missing"
    else:
        path.write_bytes(path.read_bytes()[:-1])
        words = "the files of b2x2 .* remove that directory"
    with pytest.raises(ValueError, match=words):
        Shards(tmp_path)
