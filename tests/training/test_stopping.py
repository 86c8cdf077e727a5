"""Whatever ends a training, what it has done is on disk."""

import os
import signal
import time

import jax.numpy as jnp
import pytest
from counting import Counting, go
from runs import batches

from ladd_jax.objectives.base import unless_skipped
from ladd_jax.parallel import stopping
from ladd_jax.parallel.stopping import Stopped
from ladd_jax.training.metrics import DivergedError, MetricWriter, read_history


def steps_on_disk(directory):
    return sorted(
        int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit()
    )


def batches_with(event, at, stop):
    """Batches, before one of which something happens."""
    for number, batch in enumerate(batches(0, stop), 1):
        if number == at:
            event()
        yield batch


def signals(*numbers):
    def send():
        for number in numbers:
            os.kill(os.getpid(), number)

    return send


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]]
)
def test_a_signal_ends_training_after_the_step_with_a_checkpoint_of_it(tmp_path, numbers):
    name, before = numbers[0].name, signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match=f"stopped by {name}: .* from step 4 of test"):
        with stopping.handled():
            go(tmp_path, data=batches_with(signals(*numbers), 4, 9), steps=9)
    assert steps_on_disk(tmp_path) == [4]
    assert [record["step"] for record in read_history(tmp_path)] == [3, 4]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_makes_no_samples(tmp_path):
    def sample(state, step):
        raise AssertionError("samples are made")

    with pytest.raises(Stopped), stopping.handled():
        data = batches_with(signals(signal.SIGTERM), 4, 9)
        go(tmp_path, data=data, steps=9, sample=sample, sample_every=4)


def test_a_user_who_insists_is_obeyed_at_once(tmp_path):
    data = batches_with(signals(signal.SIGINT, signal.SIGINT), 4, 9)
    with pytest.raises(Stopped, match="stopped by SIGINT"), stopping.handled():
        go(tmp_path, data=data, steps=9)
    assert steps_on_disk(tmp_path) == []


def test_a_signal_that_comes_in_a_finalizer_stops_a_moment_later(capsys):
    class Finalized:
        def __del__(self):
            # Python drops what this raises.
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped by SIGTERM"), stopping.handled():
        Finalized()
        time.sleep(10)
    assert "Traceback" not in capsys.readouterr().err


def test_outside_of_training_a_signal_stops_at_once():
    with pytest.raises(Stopped, match="stopped by SIGTERM"), stopping.handled():
        signals(signal.SIGTERM)()
        raise AssertionError("goes on")


class Diverging(Counting):
    """Its loss is no number from the fifth step on."""

    def more(self, state):
        return {"loss": jnp.where(state.step < 4, 1.0, jnp.nan)}


@pytest.mark.parametrize("ending", ["diverged", "signals", "fault"])
def test_a_checkpoint_that_is_being_written_is_finished_whatever_ends_training(tmp_path, ending):
    def fault():
        raise OSError("the data are gone")

    event = dict(diverged=lambda: None, signals=signals(signal.SIGINT, signal.SIGINT), fault=fault)
    with pytest.raises((DivergedError, Stopped, OSError)), stopping.handled():
        go(
            tmp_path, Diverging(), data=batches_with(event[ending], 5, 6), every=1,
            saving=dict(every=4),
        )  # fmt: skip
    # In another process there would be no other chance.
    assert steps_on_disk(tmp_path) == [4]
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_training_is_saved_by_time_too(tmp_path):
    go(tmp_path, saving=dict(every=100, minutes=1e-9))
    assert 3 in steps_on_disk(tmp_path)
    go(tmp_path / "by steps", saving=dict(every=100, minutes=60))
    assert steps_on_disk(tmp_path / "by steps") == [6]


class Exploding(Counting):
    """A step whose loss is finite, and whose update is not."""

    def step(self, state, frozen, batch):
        new, metrics = super().step(state, frozen, batch)
        infinite = jnp.where(new.step == 6, jnp.inf, new.params["w"])
        return new.__class__(**(vars(new) | {"params": {"w": infinite}})), metrics


def test_parameters_that_an_update_spoilt_are_not_saved(tmp_path):
    with pytest.raises(DivergedError, match="params became infinite .* step 6, which is not saved"):
        go(tmp_path, Exploding(), saving=dict(every=2))
    assert steps_on_disk(tmp_path) == [2, 4]


class Skipping(Counting):
    """Steps 3 and 5 to 7 have a gradient that is no number, and change nothing."""

    def step(self, state, frozen, batch):
        new, metrics = super().step(state, frozen, batch)
        step = new.step
        skipped = (step == 3) | ((step >= 5) & (step <= 7))
        kept = unless_skipped(skipped, new, state)
        metrics = {
            "loss": jnp.where(skipped, jnp.nan, 1.0),
            "logit/fake": jnp.where(skipped, jnp.asarray([0.0, jnp.nan]), 0.0),
            "accuracy/t_hat_0.00_0.25": jnp.asarray(jnp.nan),
            "skipped": skipped.astype(jnp.float32),
        }
        return kept, metrics


def test_skipped_steps_are_counted_and_left_out_of_means(tmp_path):
    go(tmp_path, Skipping(), steps=9, writer=MetricWriter(tmp_path, max_skips=4))
    history = read_history(tmp_path)
    assert [(record["step"], record["skipped"], record["loss"]) for record in history] == [
        (3, 1, 1.0), (6, 2, 1.0), (9, 1, 1.0)
    ]  # fmt: skip


def test_too_many_skipped_steps_in_a_row_stop_training_with_what_is_known(tmp_path):
    words = "logit/fake/01 became nan, loss became nan in step 7, and 3 steps in a row were skipped"
    with pytest.raises(DivergedError, match=words) as caught:
        go(
            tmp_path, Skipping(), steps=9, saving=dict(every=2),
            writer=MetricWriter(tmp_path, max_skips=3),
        )  # fmt: skip
    assert caught.value.steps == (5, 6, 7)
    # Those before them: what spoilt the gradients may be the parameters of these.
    assert steps_on_disk(tmp_path) == [2, 4]
