"""What is saved while steps are skipped, whose parameters may be spoilt."""

import json
import os
import signal

import jax.numpy as jnp
import pytest
from counting import Counting, go
from runs import batches

from ladd_jax.parallel.stopping import Stopped, handled
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.metrics import DivergedError, MetricWriter


class Skipping(Counting):
    """Its gradient is not finite in some of its steps."""

    def __init__(self, *steps):
        self.steps = jnp.asarray(steps)

    def more(self, state):
        skipped = jnp.any(state.step + 1 == self.steps)
        return {
            "skipped": skipped.astype(jnp.float32),
            "gradient_norm/student": jnp.where(skipped, jnp.nan, 1.0),
        }


def saved(directory, *skipped, max_skips=10):
    """Steps that were saved of a training of six, recorded at each and saved at every second."""
    go(
        directory,
        Skipping(*skipped),
        saving=dict(every=2, keep=10),
        every=1,
        writer=MetricWriter(directory, max_skips=max_skips),
    )
    return steps_of(directory)


def steps_of(directory):
    folders = (directory / "checkpoints").iterdir()
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def test_a_checkpoint_waits_for_a_step_that_is_not_skipped(tmp_path):
    assert saved(tmp_path / "a") == [2, 4, 6]
    assert saved(tmp_path / "b", 2) == [3, 4, 6]
    assert saved(tmp_path / "c", 2, 3, 4) == [5, 6]


def test_one_bad_batch_at_the_end_does_not_keep_a_training_from_its_end(tmp_path):
    assert saved(tmp_path, 6) == [2, 4, 6]


def test_a_training_whose_last_steps_are_all_skipped_is_not_done(tmp_path):
    # Fewer than `max_skips`, which the steps do not suffice for.
    with pytest.raises(DivergedError, match="2 steps in a row were skipped: lower the learning"):
        saved(tmp_path, 5, 6)
    assert steps_of(tmp_path) == [2, 4]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() == 4
    checkpoints.close()


@pytest.mark.parametrize(("skipped", "place"), [((3,), "step 2"), ((1,), "the start")])
def test_a_job_that_is_stopped_at_a_skipped_step_goes_on_from_an_earlier_one(
    tmp_path, skipped, place
):
    def data():
        for number, batch in enumerate(batches(0, 6), start=1):
            if number == skipped[0]:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with handled(), pytest.raises(Stopped, match=f"goes on from {place} of test"):
        go(
            tmp_path,
            Skipping(*skipped),
            data=data(),
            saving=dict(every=2, keep=10),
            every=1,
            writer=MetricWriter(tmp_path, max_skips=10),
        )
    assert steps_of(tmp_path) == ([2] if skipped == (3,) else [])


class Waiting(Counting):
    """Its student is updated in every other step; what the others do not compute is NaN."""

    def __init__(self, loss=1.0):
        self.loss = loss

    def more(self, state):
        updated = (state.step + 1) % 2 == 0
        return {
            "skipped": jnp.float32(0),
            "student_updated": updated.astype(jnp.float32),
            "gradient_norm/student": jnp.where(updated, self.loss, jnp.nan),
            "loss/generator": jnp.where(updated, self.loss, jnp.nan),
        }


def test_what_a_step_does_not_compute_is_no_divergence_and_not_in_the_mean(tmp_path):
    go(tmp_path, Waiting(3.0), saving=dict(every=6, keep=1), every=3, writer=MetricWriter(tmp_path))
    records = list(map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines()))
    assert [record["loss/generator"] for record in records] == [3.0, 3.0]
    assert not any("student_updated" in record for record in records)
    with pytest.raises(DivergedError, match="gradient_norm/student became nan"):
        go(
            tmp_path / "other",
            Waiting(jnp.nan),
            saving=dict(every=6, keep=1),
            every=3,
            writer=MetricWriter(tmp_path / "other"),
        )
