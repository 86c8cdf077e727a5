"""Training goes on after a restart as if there had been none."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import SIZES, Run, keeping_programs

from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.metrics import DivergedError, MetricWriter, read_history


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Each program is compiled once, as it is for a run that starts again."""
    with keeping_programs(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def run():
    return Run()


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight")
    return run.train(run.fresh(), 6, directory), directory


def leaves(state):
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


@pytest.mark.slow
def test_train_six_is_train_three_restart_train_three_in_every_bit(run, straight, tmp_path):
    run.train(run.fresh(), 3, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    restored = checkpoints.restore(run.abstract())
    checkpoints.close()
    assert int(restored.step) == 3
    resumed, whole = leaves(run.train(restored, 6, tmp_path)), leaves(straight[0])
    assert resumed.keys() == whole.keys()
    for path, leaf in whole.items():
        np.testing.assert_array_equal(resumed[path], leaf, err_msg=path)
    steps = [record["step"] for record in read_history(tmp_path)]
    assert steps == [2, 3, 4, 6]


def test_a_run_goes_on_from_a_checkpoint_that_was_written_while_it_trained(run, straight, tmp_path):
    checkpoints = Checkpoints(straight[1] / "checkpoints")
    restored = checkpoints.restore(run.abstract(), 4)
    checkpoints.close()
    resumed, whole = leaves(run.train(restored, 6, tmp_path)), leaves(straight[0])
    for path, leaf in whole.items():
        np.testing.assert_array_equal(resumed[path], leaf, err_msg=path)


def test_a_checkpoint_is_labelled_with_the_updates_it_holds(run, straight):
    checkpoints = Checkpoints(straight[1] / "checkpoints")
    for step in (2, 4, 6):
        state = checkpoints.restore(run.abstract(), step)
        assert int(state.step) == step
        assert int(state.optimizer[0].count) == step
        assert int(state.heads_optimizer[0].count) == step
    assert checkpoints.config() == {"a": 1}
    checkpoints.close()


def test_the_optimizers_and_the_average_are_restored_and_not_reset(run, straight):
    checkpoints = Checkpoints(straight[1] / "checkpoints")
    restored, saved = leaves(checkpoints.restore(run.abstract(), 6)), leaves(straight[0])
    checkpoints.close()
    for path, leaf in saved.items():
        np.testing.assert_array_equal(restored[path], leaf, err_msg=path)
    moments = [leaf for path, leaf in restored.items() if ".nu" in path]
    # Some have none to remember: a bias of the keys shifts all logits of a query alike.
    assert np.mean([np.any(leaf) for leaf in moments]) > 0.8


def test_the_key_is_not_drawn_again_and_steps_draw_different_noise(run, straight):
    state, _ = straight
    np.testing.assert_array_equal(state.key, run.fresh().key)
    inputs = [
        run.objective.student_input(
            jax.random.fold_in(state.key, step), jnp.zeros((2, 4, 4, 2)), jnp.asarray(step)
        )[0]
        for step in (6, 7)
    ]
    assert float(jnp.max(jnp.abs(inputs[0] - inputs[1]))) > 0.1


def test_a_checkpoint_restores_onto_another_mesh(straight):
    meshed = Run(make_mesh(SIZES))
    checkpoints = Checkpoints(straight[1] / "checkpoints")
    state = checkpoints.restore(meshed.abstract())
    checkpoints.close()
    kernel = state.params["blocks_0"]["image"]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and not kernel.sharding.is_fully_replicated
    for path, leaf in leaves(straight[0]).items():
        np.testing.assert_array_equal(leaves(state)[path], leaf, err_msg=path)


def test_a_checkpoint_without_a_leaf_is_an_error_and_not_a_fresh_start(run, straight):
    checkpoints = Checkpoints(straight[1] / "checkpoints")
    abstract = run.abstract()
    more = dataclasses.replace(
        abstract, ema={**abstract.ema, "new": jax.ShapeDtypeStruct((3,), jnp.float32)}
    )
    with pytest.raises(ValueError, match="is missing ema/new"):
        checkpoints.restore(more)
    less = dataclasses.replace(abstract, heads={})
    with pytest.raises(ValueError, match="extra heads/"):
        checkpoints.restore(less)
    other = dataclasses.replace(abstract, key=jax.ShapeDtypeStruct((4,), jnp.uint32))
    with pytest.raises(ValueError, match=r"key is \(2,\) uint32, not \(4,\) uint32"):
        checkpoints.restore(other)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 5"):
        checkpoints.restore(abstract, 5)
    checkpoints.close()


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(run, tmp_path):
    state = run.fresh()
    broken = dataclasses.replace(
        state, params=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.params)
    )
    with pytest.raises(DivergedError, match="became nan"):
        # A checkpoint is due before the first log.
        run.train(broken, 6, tmp_path, log_every=5)
    assert Checkpoints(tmp_path / "checkpoints").latest() is None


def test_history_keeps_the_later_record_of_a_step(tmp_path):
    records = [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}, {"step": 4, "loss": 3.0}]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "history.jsonl").write_text(text)
    assert [record["loss"] for record in read_history(tmp_path)] == [1.0, 3.0]


def test_a_history_that_was_cut_while_a_record_was_written_goes_on_after_the_last_whole_one(
    tmp_path,
):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "lo')
    assert [record["step"] for record in read_history(tmp_path)] == [2]
    writer = MetricWriter(tmp_path)
    writer.add({"loss": jnp.asarray(2.0)})
    writer.write(4, {})
    writer.close()
    assert [record["loss"] for record in read_history(tmp_path)] == [1.0, 2.0]
