"""What a workdir remembers of its config."""

import json

import pytest

from ladd_jax.config import base_config, typed
from ladd_jax.config.fields import to_dict
from ladd_jax.config.workdir import first_difference, keep_rates, read, settle


def fields(**changes):
    config = base_config()
    for path, value in changes.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return to_dict(typed(config))


def test_the_first_field_that_changes_the_result_is_named():
    assert first_difference(fields(), fields()) == ""
    assert first_difference(fields(), fields(seed=3)) == "seed was 0 and is 3"
    assert "distil.steps was" in first_difference(fields(), fields(distil__steps=7))


@pytest.mark.parametrize("change", [{"log__every": 7}, {"evaluate__samples": 9}])
def test_fields_that_do_not_change_what_is_computed_may_differ(change):
    assert first_difference(fields(), fields(**change)) == ""


LOWER = {"distil__optimizer__learning_rate": 1e-7, "pretrain__optimizer__clip_norm": 0.5}


def test_a_training_may_go_on_with_other_rates_and_the_workdir_says_so(tmp_path):
    settle(tmp_path, fields())
    settle(tmp_path, fields(**LOWER))
    assert read(tmp_path) == typed(base_config())
    assert "distil.optimizer.learning_rate was" in first_difference(fields(), fields(**LOWER))
    assert first_difference(fields(), fields(**LOWER), rates=False) == ""
    other = fields(**LOWER, distil__optimizer__beta1=0.5)
    with pytest.raises(ValueError, match="distil.optimizer.beta1 was 0.0 and is 0.5"):
        settle(tmp_path, other)
    keep_rates(tmp_path, fields(**LOWER))
    assert read(tmp_path).distil.optimizer.learning_rate == 1e-7


def test_a_run_of_an_older_version_goes_on_where_new_fields_are_at_their_defaults(tmp_path):
    old = fields()
    del old["distil"]["own_share"]
    assert first_difference(old, fields()) == ""
    assert "distil.own_share was 0.0 and is 0.5" in first_difference(
        old, fields(distil__own_share=0.5)
    )
    settle(tmp_path, old)
    assert read(tmp_path) == typed(base_config())


def test_a_field_that_changed_no_result_and_is_gone_does_not_matter(tmp_path):
    old = fields()
    old["evaluate"]["samples_per_prompt"] = 8
    assert first_difference(old, fields()) == ""
    settle(tmp_path, old)
    assert read(tmp_path) == typed(base_config())


def test_a_field_that_there_is_no_more_is_a_difference(tmp_path):
    old = fields()
    old["distil"]["momentum"] = 0.9
    assert "distil.momentum was 0.9" in first_difference(old, fields())
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="another version of ladd_jax"):
        read(tmp_path)


def test_a_tolerance_of_an_older_version_changes_nothing(tmp_path):
    old = fields()
    del old["data"]["max_unreadable"], old["data"]["on_corrupt"]
    old["data"]["unreadable"] = 0.5
    assert first_difference(old, fields()) == ""
    settle(tmp_path, old)
    assert read(tmp_path) == typed(base_config())
