"""A stage reads the shards of its run, and no others that were put in their place."""

import shutil

import numpy as np
import pytest

from configs import digits
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.identity import config_difference, identity
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import Layout, write_identity
from ladd_jax.data.shard_writing import finalize, write_shard
from ladd_jax.errors import DamagedError, UserError
from ladd_jax.stages.sets import encoded, shards_of, synthesized
from ladd_jax.stages.train import _check_cond

BUCKET = Bucket(8, 8)


def config(**changes):
    made = digits.get_config()
    for path, value in changes.items():
        made.update_from_flattened_dict({path.replace("__", "."): value})
    return typed(made)


def write(directory, settings, name, length=None):
    data = settings.data
    arrays = {
        "latents": ArraySpec(("H", "W", 1)),
        "context": ArraySpec((length or data.text_length, data.text_width)),
        "pooled": ArraySpec((data.pooled_width,)),
    }
    plan = Layout({BUCKET: 3}, 2, arrays)
    for shard in plan.shards():
        record = {key: np.ones(spec.shape_in(BUCKET)) for key, spec in arrays.items()}
        record = {"latents": record.pop("latents"), "cond": record, "prompt": "one"}
        write_shard(directory, plan, shard, [record] * (shard.stop - shard.start))
    null = {key: np.zeros(arrays[key].shape) for key in ("context", "pooled")}
    write_identity(directory, identity(to_dict(settings), name))
    finalize(directory, plan, null)


def test_a_set_of_the_run_is_read_and_one_that_another_run_made_of_the_same(tmp_path):
    write(synthesized(tmp_path), config(), "synthesized")
    # What says how records are stored, or trained on, makes no other records.
    for other in (config(), config(distil__steps=9, synthesize__batch_size=7, model__remat="full")):
        assert shards_of(other, tmp_path, "synthesized").sizes == {BUCKET: 3}


def test_another_set_in_its_place_is_refused(tmp_path):
    write(encoded(tmp_path), config(), "encoded")
    shutil.copytree(encoded(tmp_path), synthesized(tmp_path))
    with pytest.raises(UserError, match="synthesized is another set .*'encoded' and not 'synth"):
        shards_of(config(), tmp_path, "synthesized")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 3}, "seed was 3 and is 0"),
        ({"data__text_length": 9}, r"data\.text_length was 9 and is"),
        ({"model__depth": 2}, r"model\.depth was 2 and is"),
        ({"synthesize__guidance": 1.5}, r"synthesize\.guidance was 1\.5 and is"),
        ({"data__examples": 20}, r"data\.examples was 20 and is"),
        ({"synthesize__samples": 20}, r"synthesize\.samples was 20 and is"),
    ],
)
def test_a_set_of_another_config_is_refused_with_the_field(tmp_path, change, words):
    write(synthesized(tmp_path), config(**change), "synthesized")
    with pytest.raises(UserError, match=words):
        shards_of(config(), tmp_path, "synthesized")


def test_a_set_of_an_older_version_is_read_and_its_shapes_are_checked(tmp_path, caplog):
    write(synthesized(tmp_path), config(), "synthesized", length=9)
    (synthesized(tmp_path) / "identity.json").unlink()
    shards = shards_of(config(), tmp_path, "synthesized")
    assert "does not say what it was made from" in caplog.text
    words = r"has context of shape \(9, 128\) in bucket 8x8 .* \(17, 128\)"
    with pytest.raises(UserError, match=words):
        _check_cond(config(), "distil", shards)
    fitting = tmp_path / "fitting"
    write(synthesized(fitting), config(), "synthesized")
    _check_cond(config(), "distil", shards_of(config(), fitting, "synthesized"))


def test_damaged_records_stop_or_are_skipped_as_the_config_says(tmp_path):
    write(encoded(tmp_path), config(), "encoded")
    first = next(encoded(tmp_path).rglob("latents-*-00000-of-*"))
    shutil.copy(first, first.with_name(first.name.replace("00000-of", "00001-of")))
    place = np.array([2])
    with pytest.raises(DamagedError, match="record 8x8/2 of .*00001-of-00002"):
        shards_of(config(), tmp_path, "encoded").read(BUCKET, place)
    skipping = config(data__on_corrupt="skip", data__max_unreadable=(0.0, 1))
    # It changes no result of a run that is whole, and may be set when a run goes on.
    assert config_difference(to_dict(config()), to_dict(skipping)) == ""
    shards = shards_of(skipping, tmp_path, "encoded")
    assert shards.read(BUCKET, place)["key"] == ["8x8/0"] and len(shards.skipped) == 1
    # Of which place it is decides what noise it was made of.
    np.testing.assert_array_equal(shards.read_stored(BUCKET, np.array([2, 1]))["places"], [0, 1])
