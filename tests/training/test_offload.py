"""The average in host memory is the average on the device."""

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from runs import Run

from ladd_jax.parallel.mesh import HOST, check_host_memory
from ladd_jax.training.checkpoint import Checkpoints


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(run, its directory, its state after three steps) with the average here and there."""
    found = []
    for offload in (False, True):
        run = Run(ema_offload=offload, config=tiny.mmdit_config(depth=3))
        directory = tmp_path_factory.mktemp("run")
        found.append((run, directory, run.train(run.fresh(), 3, directory)))
    return found


@pytest.mark.slow
def test_it_is_the_same_average_and_lies_in_host_memory(runs):
    (_, _, here), (_, _, there) = runs
    wanted = runs[1][0].objective.student.stacked_kernels
    found = jax.tree.map(lambda leaf: leaf.sharding.memory_kind == HOST, there.ema)
    assert found == wanted and any(jax.tree.leaves(found))
    assert HOST not in kinds(there.params)
    for ours, theirs in ((there.ema, here.ema), (there.params, here.params)):
        assert tiny.max_difference(jax.device_get(ours), jax.device_get(theirs)) < 1e-6
    assert tiny.max_difference(jax.device_get(there.ema), jax.device_get(there.params)) > 0


@pytest.mark.slow
def test_a_run_goes_on_with_the_average_in_host_memory(runs, tmp_path):
    run, directory, whole = runs[1]
    saved = Checkpoints(directory / "checkpoints")
    state = saved.restore(run.abstract(), 2)
    saved.close()
    assert HOST in kinds(state.ema["blocks_0"])
    again = run.train(state, 3, tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(again.ema), jax.device_get(whole.ema)
    )


def test_a_device_without_such_memory_is_named_with_the_remedy():
    class Device:
        device_kind = "abacus"

        def addressable_memories(self):
            return [ConfigDict({"kind": "beads"})]

    class Mesh:
        local_devices = [Device()]

    with pytest.raises(ValueError, match="abacus has memory of the kinds beads and no pinned_host"):
        check_host_memory(Mesh())
