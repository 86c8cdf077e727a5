"""What a workdir remembers of its config."""

import json
import shutil

import pytest

from ladd_jax.config import base_config, typed
from ladd_jax.config.fields import to_dict
from ladd_jax.config.identity import config_difference, difference, identity
from ladd_jax.config.workdir import (
    Places,
    data_directory,
    data_named,
    folder,
    places,
    read,
    settle,
)
from ladd_jax.errors import DamagedError, NotFoundError


def fields(**changes):
    config = base_config()
    for path, value in changes.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return to_dict(typed(config))


def test_the_first_field_that_changes_the_result_is_named():
    assert config_difference(fields(), fields()) == ""
    assert config_difference(fields(), fields(seed=3)) == "seed was 0 and is 3"
    assert "distil.steps was" in config_difference(fields(), fields(distil__steps=7))


@pytest.mark.parametrize(
    ("follows", "found"),
    [
        ({}, ""),
        ({"distil__objective": "lcm"}, "synthesize.guidance was 5.0 and is 2.0"),
        ({"distil__consistency_weight": 0.5}, "synthesize.guidance was 5.0 and is 2.0"),
    ],
    ids=["neither", "lcm", "consistency"],
)
def test_a_student_of_real_pictures_depends_on_the_guidance_of_paths_that_it_follows(
    follows, found
):
    config = fields(distil__data="encoded", **follows)
    guided = fields(distil__data="encoded", synthesize__guidance=2.0, **follows)
    assert difference(identity(config, "distil"), identity(guided, "distil")) == found
    # What is trained before it follows none.
    assert not difference(identity(config, "finetune"), identity(guided, "finetune"))


@pytest.mark.parametrize("change", [{"log__every": 7}, {"evaluate__samples": 9}])
def test_fields_that_do_not_change_what_is_computed_may_differ(change):
    assert config_difference(fields(), fields(**change)) == ""


def test_a_workdir_keeps_the_config_that_it_was_last_used_with(tmp_path):
    settle(tmp_path, fields())
    before = (tmp_path / "config.json").stat().st_mtime_ns
    settle(tmp_path, fields(log__every=7))
    assert (tmp_path / "config.json").stat().st_mtime_ns == before
    settle(tmp_path, fields(distil__steps=7))
    assert read(tmp_path).distil.steps == 7


def test_a_workdir_finds_its_places_also_where_both_are_moved(tmp_path):
    own = Places(tmp_path / "data", tmp_path / "first", 7)
    settle(tmp_path / "run", fields(), own)
    assert places(tmp_path / "run") == own
    (tmp_path / "other").mkdir()
    (tmp_path / "run").rename(tmp_path / "other" / "run")
    moved = places(tmp_path / "other" / "run")
    assert moved.data == tmp_path / "other" / "data" and moved.step == 7
    assert folder(tmp_path / "other" / "run", "encoded") == moved.data / "encoded"
    assert folder(tmp_path / "other" / "run", "distil") == tmp_path / "other" / "run" / "distil"


@pytest.mark.parametrize(
    "content",
    [
        {"data": 3},
        {"data": {"a": 1}},
        {"data": "a\0b"},
        {"from": "loop"},
        {"step": "4"},
        {"step": -1},
    ],
)
def test_damaged_places_are_named(tmp_path, content):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "places.json").write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=r"places\.json is damaged .*name them again by --data"):
        places(tmp_path)


def test_where_the_data_will_be_is_known_before_a_workdir_is_there(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    assert data_named(run, "", "") == run
    assert data_named(run, str(other), "") == other
    assert data_named(run, "", str(other)) == other
    # It has data of its own.
    (run / "encoded").mkdir(parents=True)
    assert data_named(run, "", str(other)) == run


def test_data_that_are_gone_are_not_made_again_in_their_place(tmp_path):
    run, data = tmp_path / "runs" / "a", tmp_path / "runs" / "data"
    data.mkdir(parents=True)
    settle(run, {}, Places(data))
    (run / "distil").mkdir()
    copy = tmp_path / "copies" / "a"
    shutil.copytree(run, copy)
    words = f"made with data in {tmp_path / 'copies' / 'data'}, which does not exist.* by --data"
    for names in ((copy, "", ""), (tmp_path / "b", str(copy), ""), (tmp_path / "b", "", str(copy))):
        with pytest.raises(NotFoundError, match=words):
            data_named(*names)
    assert data_named(run, "", "") == data_named(copy, str(data), "") == data


def test_a_workdir_that_names_no_places_has_its_own_data(tmp_path):
    settle(tmp_path, fields(), Places(tmp_path))
    assert data_directory(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_of_an_older_version_goes_on_where_new_fields_are_at_their_defaults(tmp_path):
    old = fields()
    del old["distil"]["own_share"]
    assert config_difference(old, fields()) == ""
    assert "distil.own_share was 0.0 and is 0.5" in config_difference(
        old, fields(distil__own_share=0.5)
    )
    settle(tmp_path, old)
    assert read(tmp_path) == typed(base_config())


def test_samples_of_a_version_without_other_samplers_were_made_by_euler(tmp_path):
    old = fields()
    del old["synthesize"]["sampler"]
    assert "synthesize.sampler was 'euler' and is 'dpmpp_2m'" in config_difference(old, fields())
    assert config_difference(old, fields(synthesize__sampler="euler")) == ""
    settle(tmp_path, old)
    assert read(tmp_path).synthesize.sampler == "euler"
    ours, theirs = identity(old, "synthesized"), identity(fields(), "synthesized")
    assert "synthesize.sampler" in difference(ours, theirs)


def test_a_field_that_changed_no_result_and_is_gone_does_not_matter(tmp_path):
    old = fields()
    old["evaluate"]["samples_per_prompt"] = 8
    assert config_difference(old, fields()) == ""
    settle(tmp_path, old)
    assert read(tmp_path) == typed(base_config())


def test_a_field_that_there_is_no_more_is_a_difference(tmp_path):
    old = fields()
    old["distil"]["momentum"] = 0.9
    assert "distil.momentum was 0.9" in config_difference(old, fields())
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="another version of ladd_jax"):
        read(tmp_path)


def test_a_tolerance_of_an_older_version_changes_nothing(tmp_path):
    old = fields()
    del old["data"]["max_unreadable"], old["data"]["on_corrupt"]
    old["data"]["unreadable"] = 0.5
    assert config_difference(old, fields()) == ""
    settle(tmp_path, old)
    assert read(tmp_path) == typed(base_config())


def test_a_damaged_config_is_written_again_once_it_is_removed(tmp_path):
    settle(tmp_path, to_dict(typed(base_config())))
    (tmp_path / "config.json").write_text("")
    with pytest.raises(DamagedError, match=r"json is damaged .*: remove it, and this command wri"):
        settle(tmp_path, to_dict(typed(base_config())))
    with pytest.raises(DamagedError, match="remove it, and the command main with the run's --conf"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"json is damaged \(it has no fields\): remove it, and"):
        read(tmp_path)
    (tmp_path / "config.json").unlink()
    settle(tmp_path, to_dict(typed(base_config())))
    assert read(tmp_path) == typed(base_config())
