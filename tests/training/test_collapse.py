"""A collapse is warned of once, and stops the training where that is asked for."""

import logging

import pytest

from ladd_jax.training.collapse import CollapsedError, CollapseWatch

BANDS = dict(records=2, accuracy=0.95, lowest=0.5, highest=2.0)
HEALTHY = {"accuracy": 0.6, "x0_hat_std": 1.0, "preview/seed_spread/1": 0.2}


def see(watch, *changes):
    for step, change in enumerate(changes, 1):
        watch.see({"step": step, "loss/generator": 9.0} | HEALTHY | change)


def test_a_healthy_run_is_left_alone(caplog):
    drifting = [{"x0_hat_std": 1.9}, {"accuracy": 0.94}, {"preview/seed_spread/1": 9.0}]
    see(CollapseWatch([], **BANDS, stop=True), {}, *(3 * drifting))
    assert not caplog.records


@pytest.mark.parametrize(
    ("sick", "words"),
    [
        ({"accuracy": 0.99}, "accuracy is 0.990 and the limit is 0.95"),
        ({"x0_hat_std": 2.5}, "x0_hat_std is 2.5, more than 2 times its 1 at first"),
        ({"x0_hat_std": 0.1}, "x0_hat_std is 0.1, less than 0.5 times its 1 at first"),
        ({"preview/seed_spread/1": 0.05}, "seed_spread/1 is 0.05, less than 0.5 times its 0.2"),
    ],
)
def test_a_metric_that_stays_outside_of_its_band_is_told(caplog, sick, words):
    see(CollapseWatch([], **BANDS, stop=False), {}, sick, {}, sick)
    assert not caplog.records
    see(CollapseWatch([], **BANDS, stop=False), {}, sick, sick, sick)
    (warning,) = caplog.records
    assert words in warning.message and "up to step 3" in warning.message
    assert warning.levelno == logging.WARNING
    with pytest.raises(CollapsedError, match="goes on from the last checkpoint") as error:
        see(CollapseWatch([], **BANDS, stop=True), {}, sick, sick)
    assert words in str(error.value)


def test_a_run_that_goes_on_is_compared_with_its_first_record():
    history = [HEALTHY | {"step": 1}, HEALTHY | {"step": 2, "x0_hat_std": 0.1}]
    with pytest.raises(CollapsedError, match="0.5 times its 1 at first"):
        see(CollapseWatch(history, **BANDS, stop=True), {"x0_hat_std": 0.1})


def test_a_run_that_goes_on_sick_is_stopped_again():
    sick = {"accuracy": 0.99}
    history = [HEALTHY | {"step": step} | sick for step in (1, 2)]
    watch = CollapseWatch(history, **BANDS, stop=True)
    see(watch, sick)
    with pytest.raises(CollapsedError, match="accuracy is 0.990"):
        see(watch, sick)
