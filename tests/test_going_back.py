"""A distillation that collapsed goes back to where it was healthy, with a lower rate."""

import json
import logging

import pytest
from test_stages import images, settings, write_generator  # noqa: F401

from ladd_jax.config.fields import typed
from ladd_jax.errors import DamagedError
from ladd_jax.stages.distil import distil
from ladd_jax.stages.going_back import go_back, lowered
from ladd_jax.training.collapse import CollapsedError
from ladd_jax.training.metrics import read_history


def rates(config):
    return config.distil.optimizer.learning_rate, config.distil.heads_optimizer.learning_rate


def collapse(since, of_heads=False):
    return CollapsedError("contrast is lost", since, of_heads, end="it stops")


def sick_run(directory, steps):
    for step in steps:
        (directory / "checkpoints" / str(step) / "state").mkdir(parents=True)
    config = settings()
    config.watch.update(dict(collapse="back", returns=2, lower=0.1))
    return typed(config)


def steps_of(directory):
    return sorted(folder.name for folder in (directory / "checkpoints").iterdir())


def test_checkpoints_of_the_collapse_are_gone_and_the_students_rate_is_lower(tmp_path, caplog):
    config = sick_run(tmp_path, (100, 200, 300))
    student, heads = rates(config)
    go_back(config, tmp_path, collapse(since=200))
    assert steps_of(tmp_path) == ["100"]
    assert rates(lowered(config, tmp_path)) == pytest.approx((0.1 * student, heads))
    (warning,) = caplog.records
    assert (
        "contrast is lost; training goes back to step 100, with a learning rate" in warning.message
    )


def test_a_checkpoint_that_leads_to_a_collapse_again_is_gone_too(tmp_path):
    config = sick_run(tmp_path, (100, 200))
    go_back(config, tmp_path, collapse(since=250))
    assert steps_of(tmp_path) == ["100", "200"]
    go_back(config, tmp_path, collapse(since=230))
    assert steps_of(tmp_path) == ["100"]


def test_heads_that_always_win_lower_their_own_rate(tmp_path, caplog):
    config = sick_run(tmp_path, (100,))
    student, heads = rates(config)
    go_back(config, tmp_path, collapse(since=50, of_heads=True))
    # All checkpoints are of the collapse: the oldest stays.
    assert steps_of(tmp_path) == ["100"]
    assert rates(lowered(config, tmp_path)) == pytest.approx((student, 0.1 * heads))
    assert "training goes back to step 100" in caplog.records[-1].message


def test_after_so_many_returns_it_stops_and_keeps_what_is_there(tmp_path):
    config = sick_run(tmp_path, (100, 200))
    for since, of_heads in ((250, False), (150, True)):
        go_back(config, tmp_path, collapse(since, of_heads))
    with pytest.raises(CollapsedError, match=r"contrast is lost; it went back 2 times already"):
        go_back(config, tmp_path, collapse(since=50))
    assert steps_of(tmp_path) == ["100"]


@pytest.mark.parametrize("content", ["", "{}", '{"optimizer": 1, "heads_optimizer": "x"}'])
def test_a_damaged_count_is_named(tmp_path, content):
    (tmp_path / "lowered.json").write_text(content)
    with pytest.raises(DamagedError, match=r"lowered\.json"):
        lowered(typed(settings()), tmp_path)


@pytest.mark.slow
def test_a_rate_that_is_too_high_is_lowered_until_it_trains(images, tmp_path, caplog):  # noqa: F811
    config = settings(steps=4)
    config.checkpoint.every = 1
    config.log.samples_every = 0
    # The first update has a rate of 0, the second one of a half.
    config.distil.optimizer.update(dict(learning_rate=1.0, warmup_steps=2))
    config.watch.update(
        dict(collapse="back", records=1, accuracy=1.0, lowest=0.01, highest=1.5, lower=1e-3)
    )
    (tmp_path / "encoded").symlink_to(images)
    write_generator(typed(config), tmp_path)
    with caplog.at_level(logging.WARNING):
        distil(typed(config), tmp_path)
    told = [record.message for record in caplog.records if "training goes back" in record.message]
    # The record of a step is of the state before its update, and the checkpoint of that after it:
    # the second record is healthy, and what was saved with it is not.
    assert ["to step 2," in told[0], "to step 1," in told[1], len(told)] == [True, True, 2]
    assert json.loads((tmp_path / "distil" / "lowered.json").read_text())["optimizer"] == 2
    history = read_history(tmp_path / "distil")
    assert [record["step"] for record in history] == [1, 2, 3, 4]
    contrast = [record["x0_hat_std"] for record in history]
    assert max(contrast) < 1.5 * contrast[0]
    assert rates(lowered(typed(config), tmp_path / "distil"))[0] == pytest.approx(1e-6)
