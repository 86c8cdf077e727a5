"""Shards appear whole, once each, and give back what was written."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import (
    Layout,
    Text,
    is_complete,
    read_identity,
    reopen,
    write_identity,
)
from ladd_jax.data.shard_writing import finalize, missing_shards, write_shard
from ladd_jax.data.shards import Shards
from ladd_jax.errors import DamagedError, NotFoundError, UserError

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
    builder = tfds.builder_from_directory(str(tmp_path / "2x4" / "2.0.0"))
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


@pytest.mark.parametrize(
    ("value", "dtype", "shown"),
    [(np.nan, "float32", "nan"), (-np.inf, "float32", "-inf"), (1e30, "float32", "1e.30"),
     (7e4, "float16", "inf")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["latents", "pooled"])
def test_values_that_no_training_can_use_are_refused_with_the_record(
    tmp_path, name, value, dtype, shown
):
    arrays = {**layout({SMALL: 2}).arrays, name: ArraySpec((1,), dtype)}
    plan = Layout({SMALL: 2}, 2, arrays)
    (shard,) = plan.shards()
    given = [
        {"latents": np.ones((2, 2, 1)), "cond": {"context": np.ones((2, 3)), "pooled": np.ones(4)},
         "prompt": f"prompt {i}"}
        for i in range(2)
    ]  # fmt: skip
    for i, record in enumerate(given):
        values = np.full(1, value if i else 1.0)
        if name == "latents":
            record["latents"] = values
        else:
            record["cond"]["pooled"] = values
    words = rf"record 2x2/1 \('prompt 1'\) has {shown} in {name}, .*at most 65504"
    with pytest.raises(UserError, match=words):
        write_shard(tmp_path, plan, shard, given)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_empty_prompt_that_no_training_can_use_is_refused(tmp_path):
    plan = layout({SMALL: 1})
    (shard,) = plan.shards()
    write_shard(tmp_path, plan, shard, records(shard))
    with pytest.raises(UserError, match=r"null_text\.npz .* has nan in pooled"):
        finalize(tmp_path, plan, {**NULL, "pooled": np.full(4, np.nan)})


def flip(path):
    data = bytearray(path.read_bytes())
    # Within the first record, past the header of the file.
    data[150] ^= 1
    path.write_bytes(bytes(data))


def three_files(directory):
    """A set of 7 records in 3 files, and their paths."""
    plan = layout({SMALL: 7})
    write_all(directory, plan)
    return plan, [shard.path(directory) for shard in plan.shards()]


@pytest.mark.parametrize("damage", ["empty", "cut", "fewer records"])
def test_a_damaged_shard_counts_as_missing_and_is_written_again(tmp_path, damage):
    plan, (first, second, third) = three_files(tmp_path)
    if damage == "empty":
        second.write_bytes(b"")
    elif damage == "cut":
        second.write_bytes(second.read_bytes()[:-1])
    else:
        shutil.copy(third, second)
    assert [shard.index for shard in missing_shards(tmp_path, plan)] == [1]
    with pytest.raises(NotFoundError, match="1 shards are missing or damaged.*00001-of-00003"):
        finalize(tmp_path, plan, NULL)
    write_all(tmp_path, plan)
    assert Shards(tmp_path).read(SMALL, np.arange(7))["prompt"][4] == "prompt 4"


def of_another_bucket(path):
    other = layout({WIDE: 3})
    folder = path.parents[2] / "other"
    write_all(folder, other)
    (shard,) = other.shards()
    shutil.copy(shard.path(folder), path)


def of_another_place(path):
    shutil.copy(path.with_name(path.name.replace("00001-of", "00000-of")), path)


DAMAGES = {"flipped": flip, "another bucket's": of_another_bucket, "another's": of_another_place}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_is_damaged_or_another_is_named_with_its_file(tmp_path, damage):
    _, (_, second, _) = three_files(tmp_path)
    DAMAGES[damage](second)
    shards = Shards(tmp_path)
    assert shards.read(SMALL, np.array([0, 2, 6]))["prompt"] == ["prompt 0", "prompt 2", "prompt 6"]
    with pytest.raises(DamagedError, match=rf"record 2x2/3 of .*{second.name} cannot be read .*"):
        shards.read(SMALL, np.array([0, 3]))


def test_a_file_of_the_same_prompts_and_another_seed_is_named(tmp_path):
    # Text of more bytes than are compared lies before the latents.
    arrays = {"context": ArraySpec((64, 64)), "latents": ArraySpec(("H", "W", 1))}
    plan = Layout({SMALL: 2}, 1, arrays)
    for seed, name in enumerate(("set", "other")):
        for shard in plan.shards():
            latents = np.random.default_rng((seed, shard.start)).standard_normal((2, 2, 1), "f4")
            record = {"latents": latents, "cond": {"context": np.ones((64, 64))}, "prompt": "a"}
            write_shard(tmp_path / name, plan, shard, [record])
        finalize(tmp_path / name, plan, {})
    first, second = (shard.path(tmp_path / "set") for shard in plan.shards())
    assert first.stat().st_size == second.stat().st_size
    shutil.copy(tmp_path / "other" / second.relative_to(tmp_path / "set"), second)
    shards = Shards(tmp_path / "set")
    shards.read(SMALL, np.array([0]))
    with pytest.raises(DamagedError, match=rf"2x2/1 of .*{second.name} .*the file is of another"):
        shards.read(SMALL, np.array([1]))
    # Written on, a set is what its files are then.
    reopen(tmp_path / "set")
    finalize(tmp_path / "set", plan, {})
    Shards(tmp_path / "set").read(SMALL, np.array([1]))


def test_damaged_records_are_skipped_with_a_count_up_to_the_tolerance(tmp_path, caplog):
    _, (_, second, _) = three_files(tmp_path)
    of_another_place(second)
    shards = Shards(tmp_path, (0.0, 3))
    for _ in range(2):
        read = shards.read(SMALL, np.array([2, 3, 5]))
        # The next one that can be read, in each reading the same.
        assert read["prompt"] == ["prompt 2", "prompt 6", "prompt 6"]
    assert sorted(place for _, place in shards.skipped) == [3, 4, 5]
    assert "2x2/3" in caplog.text and "3 so far" in caplog.text and len(caplog.records) == 3
    with pytest.raises(DamagedError, match="3 cannot so far and the limit is 2: .*on_corrupt"):
        # A share of 7 records: 2.1.
        Shards(tmp_path, (0.3, 0)).read(SMALL, np.array([3]))


def test_folders_that_are_no_buckets_are_ignored(tmp_path):
    three_files(tmp_path)
    for name in ("lost+found", ".ipynb_checkpoints", "0x4"):
        (tmp_path / name).mkdir()
    assert Shards(tmp_path).buckets == (SMALL,)


@pytest.mark.parametrize(
    ("name", "content"),
    [("arrays.json", ""), ("null_text.npz", "PK"), ("arrays.json", '{"latents": {"shape": 3}}'),
     ("arrays.json", '{"latents": {"shape": [2, -1], "dtype": "float32"}}'),
     ("arrays.json", '{"latents": {"shape": [2], "dtype": "float64"}}'),
     ("2x2/2.0.0/dataset_info.json", '{"splits": [{"name": "b2x2", "shardLengths": ["3"]}]}'),
     ("2x2/2.0.0/features.json", ""), ("2x2/2.0.0/dataset_info.json", "{")],
)  # fmt: skip
def test_damaged_files_beside_the_records_are_named(tmp_path, name, content):
    three_files(tmp_path)
    (tmp_path / name).write_text(content)
    named = name if "/" not in name else "2x2/2.0.0"
    with pytest.raises(DamagedError, match=rf"{named}.* damaged .*remove that directory"):
        Shards(tmp_path)


def test_an_empty_prompt_of_another_shape_than_the_records_is_refused(tmp_path):
    three_files(tmp_path)
    np.savez(tmp_path / "null_text.npz", context=np.zeros((9, 3)), pooled=np.ones(4))
    with pytest.raises(DamagedError, match=r"has context of shape \(9, 3\) and .* \(2, 3\)"):
        Shards(tmp_path)


@pytest.mark.parametrize(
    ("null", "words"),
    [
        ({"context": np.full((2, 3), np.nan), "pooled": np.ones(4)}, "has nan in context"),
        ({"context": np.ones((2, 3)), "pooled": np.full(4, 1e30)}, r"has 1e\+30 in pooled"),
    ],
)
def test_an_empty_prompt_without_use_is_damage(tmp_path, null, words):
    three_files(tmp_path)
    np.savez(tmp_path / "null_text.npz", **null)
    with pytest.raises(DamagedError, match=rf"null_text\.npz is damaged .*{words}.*remove that"):
        Shards(tmp_path)


def test_a_set_without_the_list_of_its_arrays_is_damaged(tmp_path):
    three_files(tmp_path)
    (tmp_path / "arrays.json").unlink()
    with pytest.raises(DamagedError, match=r"arrays\.json is missing: remove that directory"):
        Shards(tmp_path)


def test_arrays_that_the_records_do_not_have_are_refused(tmp_path):
    three_files(tmp_path)
    declared = json.loads((tmp_path / "arrays.json").read_text())
    # It would be filled by repeating what there is.
    declared["pooled"]["shape"] = [3, 4]
    (tmp_path / "arrays.json").write_text(json.dumps(declared))
    with pytest.raises(DamagedError, match=r"arrays.json has pooled of shape \(3, 4\) .* do not"):
        Shards(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"set": 3, "sizes": {}}', "text.json is damaged"),
        ('{"set": "encoded", "sizes": []}', "text.json is damaged"),
        ('{"set": "encoded", "sizes": {"2x2": "4"}}', "which were 4"),
        (
            '{"set": "synthesized", "sizes": {"2x2": 4}}',
            "which has no text of its own",
        ),
    ],
)
def test_damage_of_where_the_text_is_is_named(tmp_path, content, words):
    sizes = {SMALL: 4}
    write_all(tmp_path / "encoded", layout(sizes))
    write_samples(tmp_path / "synthesized", sizes)
    (tmp_path / "synthesized/text.json").write_text(content)
    with pytest.raises(DamagedError, match=words):
        Shards(tmp_path / "synthesized")


def test_a_set_says_what_it_was_made_of(tmp_path):
    assert read_identity(tmp_path) == {}
    write_identity(tmp_path / "new", {"set": "encoded"})
    assert read_identity(tmp_path / "new") == {"set": "encoded"}
    assert not is_complete(tmp_path / "new")
    (tmp_path / "new" / "identity.json").write_text("{")
    with pytest.raises(DamagedError, match="identity.json is damaged .*remove that directory"):
        read_identity(tmp_path / "new")


def test_latents_of_int8_are_read_within_half_a_level_of_their_channel(tmp_path):
    plan = layout({WIDE: 4})
    write_all(tmp_path / "whole", plan)
    plan.arrays["latents"] = ArraySpec(("H", "W", 1), "int8")
    write_all(tmp_path / "int8", plan)
    whole, small = (Shards(tmp_path / name).read(WIDE, np.arange(4)) for name in ("whole", "int8"))
    level = np.abs(whole["latents"]).max(axis=(1, 2, 3), keepdims=True) / 127
    error = np.abs(small["latents"] - whole["latents"])
    assert (0 < error.max(axis=(1, 2, 3), keepdims=True)).all() and (error <= 0.501 * level).all()
    stored = Shards(tmp_path / "int8").read_stored(WIDE, np.arange(4))["latents"]
    np.testing.assert_array_equal(stored.widen(), small["latents"])


def test_a_set_of_version_1_is_read_as_before(tmp_path, monkeypatch):
    plan = layout({SMALL: 7, WIDE: 4}, text_dtype="float16")
    write_all(tmp_path / "new", plan)

    def numbers(shape, dtype="float32"):
        return tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype).type)

    with monkeypatch.context() as older:
        older.setattr("ladd_jax.data.array_specs._tensor", numbers)
        older.setattr("ladd_jax.data.shard_sets.VERSION", "1.0.0")
        write_all(tmp_path / "old", plan)
    assert (tmp_path / "old" / "2x4" / "1.0.0").is_dir()
    old, new = (Shards(tmp_path / name).read(WIDE, np.arange(4)) for name in ("old", "new"))
    for name in ("latents", "key", "prompt"):
        np.testing.assert_array_equal(old[name], new[name])
    for name in ("context", "pooled"):
        np.testing.assert_array_equal(old["cond"][name], new["cond"][name])
    # What a stopped writer of version 1 left is no part of a set of this version.
    assert len(missing_shards(tmp_path / "old", plan)) == 5


def write_samples(directory, sizes, seed=0):
    """A set with latents of its own, whose text is in `encoded` beside it."""
    encoded = Shards(directory.parent / "encoded")
    text = Text("encoded", encoded.sizes)
    plan = Layout(sizes, 3, {"latents": ArraySpec(("H", "W", 1))}, text=text)
    for shard in missing_shards(directory, plan):
        written = []
        for place, record in zip(range(shard.start, shard.stop), records(shard, 1), strict=True):
            source = encoded.read(shard.bucket, [place % encoded.sizes[shard.bucket]])
            written.append(record | {"cond": {}, "prompt": source["prompt"][0]})
        write_shard(directory, plan, shard, written)
    finalize(directory, plan, NULL)
    return plan


def test_samples_are_read_with_the_text_of_the_encoded_records(tmp_path):
    write_all(tmp_path / "encoded", layout({SMALL: 4, WIDE: 3}))
    write_samples(tmp_path / "synthesized", {SMALL: 10})
    encoded, samples = Shards(tmp_path / "encoded"), Shards(tmp_path / "synthesized")
    assert samples.sizes == {SMALL: 10} and samples.cond_arrays == encoded.cond_arrays
    assert samples.batch_shapes(2)[SMALL] == encoded.batch_shapes(2)[SMALL]
    places = np.array([9, 0, 4, 9, 3])
    read, text = samples.read(SMALL, places), encoded.read(SMALL, places % 4)
    for name in ("context", "pooled"):
        np.testing.assert_array_equal(read["cond"][name], text["cond"][name])
    assert read["prompt"] == text["prompt"]
    assert not np.array_equal(read["latents"], text["latents"])
    assert read["key"] == [f"2x2/{place}" for place in places]


def test_text_of_another_set_is_not_read_for_the_samples(tmp_path):
    write_all(tmp_path / "encoded", layout({SMALL: 4}))
    write_samples(tmp_path / "synthesized", {SMALL: 10})
    shutil.rmtree(tmp_path / "encoded")
    with pytest.raises(NotFoundError, match="no complete latent shards in .*encoded"):
        Shards(tmp_path / "synthesized")
    write_all(tmp_path / "encoded", layout({WIDE: 4}))
    with pytest.raises(DamagedError, match="has the text of .*and 0 records of bucket 2x2, which"):
        Shards(tmp_path / "synthesized")
    shutil.rmtree(tmp_path / "encoded")
    plan = layout({SMALL: 4})
    for shard in missing_shards(tmp_path / "encoded", plan):
        other = (record | {"prompt": f"another {i}"} for i, record in enumerate(records(shard)))
        write_shard(tmp_path / "encoded", plan, shard, other)
    finalize(tmp_path / "encoded", plan, NULL)
    with pytest.raises(DamagedError, match="of the prompt 'another 1' and not 'prompt 1'"):
        Shards(tmp_path / "synthesized").read(SMALL, np.array([1]))


def test_prompts_that_are_encoded_later_leave_the_samples_as_they_were(tmp_path):
    write_all(tmp_path / "encoded", layout({SMALL: 4}))
    write_samples(tmp_path / "synthesized", {SMALL: 10})
    before = Shards(tmp_path / "synthesized").read(SMALL, np.arange(10))
    shutil.rmtree(tmp_path / "encoded")
    write_all(tmp_path / "encoded", layout({SMALL: 6, WIDE: 3}))
    after = Shards(tmp_path / "synthesized").read(SMALL, np.arange(10))
    assert after["prompt"] == before["prompt"]
    for name in ("context", "pooled"):
        np.testing.assert_array_equal(after["cond"][name], before["cond"][name])


def test_samples_whose_text_is_damaged_are_skipped_with_it(tmp_path):
    plan = layout({SMALL: 4}, 1)
    write_all(tmp_path / "encoded", plan)
    write_samples(tmp_path / "synthesized", {SMALL: 8})
    path = list(plan.shards())[2].path(tmp_path / "encoded")
    flip(path)
    with pytest.raises(DamagedError, match=f"record 2x2/2 .*its text in .*{path.name}"):
        Shards(tmp_path / "synthesized").read(SMALL, np.arange(8))
    samples = Shards(tmp_path / "synthesized", (0.0, 2))
    read = samples.read(SMALL, np.arange(8))
    # The one after stands in, with its own text.
    assert read["key"] == [f"2x2/{place}" for place in (0, 1, 3, 3, 4, 5, 7, 7)]
    assert read["prompt"] == [f"prompt {place}" for place in (0, 1, 3, 3, 0, 1, 3, 3)]
    assert set(samples.skipped) == {(SMALL, 2), (SMALL, 6)}
