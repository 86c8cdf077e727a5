"""A gradient that is not finite updates nothing, and one that is loses no bit to that."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.objectives import base, ladd
from ladd_jax.objectives.flow_matching import FlowMatching
from ladd_jax.training.optimizers import Optimizer

OPTIMIZER = Optimizer(1e-3, clip_norm=1.0)


@functools.cache
def distillation():
    objective = tiny.ladd(tiny.mmdit_config(depth=1), optimizer=OPTIMIZER)
    return objective, *tiny.ladd_state(objective)


@functools.cache
def regression():
    objective = FlowMatching(model=tiny.network(tiny.mmdit_config(depth=1)), optimizer=OPTIMIZER)
    state = tiny.init(objective)(jax.random.PRNGKey(0), tiny.random_params(objective.model))
    null = {name: array[0] for name, array in tiny.batch()["cond"].items()}
    return objective, state, {"null": jax.tree.map(jnp.zeros_like, null)}


def leaves(state):
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_bits(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for path, leaf in a.items():
        np.testing.assert_array_equal(leaf, b[path], err_msg=path)


@pytest.mark.parametrize("made", [distillation, regression])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_record_changes_nothing_but_the_count_of_steps(made, value):
    objective, state, frozen = made()
    batch = tiny.batch()
    bad = batch | {"latents": batch["latents"].at[3, 0, 0, 0].set(value)}
    new, metrics = tiny.step(objective)(state, frozen, bad)
    assert float(metrics["skipped"]) == 1
    assert_same_bits(new, dataclasses.replace(state, step=state.step + 1))
    # The next batch is as good as ever.
    newer, metrics = tiny.step(objective)(new, frozen, batch)
    assert float(metrics["skipped"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in leaves(newer).values())


@pytest.mark.parametrize(("made", "module"), [(distillation, ladd), (regression, base)])
def test_a_finite_gradient_updates_in_every_bit_as_without_the_question(made, module, monkeypatch):
    objective, state, frozen = made()
    # As users compile: without it, sums of the two programs may be rounded in another order.
    options = {"xla_cpu_use_fusion_emitters": True}
    program = functools.partial(jax.jit, compiler_options=options)
    asked, _ = program(objective.step)(state, frozen, tiny.batch())
    monkeypatch.setattr(module, "unless_skipped", lambda skipped, new, old: new)
    plain, _ = program(lambda *args: objective.step(*args))(state, frozen, tiny.batch())
    assert_same_bits(asked, plain)
    assert int(asked.step) == int(state.step) + 1


def test_what_spoils_a_further_update_of_the_heads_is_not_kept():
    objective = tiny.ladd(tiny.mmdit_config(depth=1), head_updates=2, optimizer=OPTIMIZER)
    state, frozen = tiny.ladd_state(objective)
    huge = dataclasses.replace(objective, heads_optimizer=Optimizer(1e39))
    new, metrics = tiny.step(huge)(state, frozen, tiny.batch())
    assert float(metrics["skipped"]) == 1
    assert_same_bits(new, dataclasses.replace(state, step=state.step + 1))
