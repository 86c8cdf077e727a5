"""Preferences: Diffusion-DPO of adapters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.diffusion.flow import interpolate, velocity
from ladd_jax.errors import UserError
from ladd_jax.models.base import OTHER, PREFERENCE
from ladd_jax.models.lora import BASE, Adapted, LoRA
from ladd_jax.objectives.dpo import DPO
from ladd_jax.objectives.flow_matching import draw_points
from ladd_jax.training.optimizers import Optimizer

NULL = {"context": jnp.zeros((tiny.T, tiny.CONTEXT)), "pooled": jnp.zeros(tiny.POOLED)}


@functools.cache
def adapted():
    return Adapted(tiny.network(tiny.mmdit_config()), LoRA(rank=2))


def objective(**changes):
    fields = dict(optimizer=Optimizer(1e-2), beta=5.0, text_dropout=0.0)
    return DPO(adapted(), **(fields | changes))


def begun(target, params=None):
    """(state, frozen), with adapters that change something unless they are given."""
    model = target.model
    params = tiny.random_params(model) if params is None else params
    frozen = {"null": NULL, BASE: tiny.random_params(model.base, 1)}
    return tiny.init(target)(jax.random.PRNGKey(2), params), frozen


def test_the_loss_is_that_of_the_paper():
    target, signs = objective(), np.array([1, -1, 0, 1, -1, 1, 1, -1.0])
    batch, (state, frozen) = tiny.compared(tiny.batch(), signs), begun(objective())
    _, metrics = tiny.step(target)(state, frozen, batch)

    time_key, noise_key, _ = jax.random.split(jax.random.fold_in(state.key, 0), 3)
    t, eps = draw_points(target, time_key, noise_key, batch["latents"])
    whole = target.model.complete(state.params, frozen)
    cond = {name: batch["cond"][name] for name in NULL}

    def error(network, params, x_0):
        x_t = interpolate(x_0, eps, t)
        found = jax.jit(network.__call__)(params, x_t, t, cond)
        return np.mean(np.square(found - velocity(x_0, eps)), axis=(1, 2, 3))

    own, other = (
        error(target.model, whole, x_0) - error(target.model.base, frozen[BASE], x_0)
        for x_0 in (batch["latents"], batch["cond"][OTHER])
    )
    better, worse = np.where(signs > 0, own, other), np.where(signs > 0, other, own)
    margin = -target.beta / 2 * (better - worse)
    decided = signs != 0
    losses = np.where(decided, np.log1p(np.exp(-margin)), 0)
    assert float(metrics["loss"]) == pytest.approx(losses.mean(), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(margin[decided] > 0))
    # Margins have both signs: their mean is as exact as they are, whatever is left of it.
    size = float(np.abs(margin[decided]).mean())
    assert float(metrics["margin"]) == pytest.approx(margin[decided].mean(), abs=1e-4 * size)


def test_it_begins_with_no_preference():
    target = objective()
    state, frozen = begun(target, jax.jit(target.model.init)(jax.random.PRNGKey(0)))
    _, metrics = tiny.step(target)(state, frozen, tiny.compared(tiny.batch()))
    assert float(metrics["loss"]) == pytest.approx(np.log(2), rel=1e-6)
    assert float(metrics["margin"]) == 0


def test_it_learns_which_of_two_is_preferred():
    target = objective()
    state, frozen = begun(target, jax.jit(target.model.init)(jax.random.PRNGKey(0)))
    for _ in range(40):
        state, metrics = tiny.step(target)(state, frozen, tiny.compared(tiny.batch()))
    assert float(metrics["accuracy"]) == 1 and float(metrics["loss"]) < 0.9 * np.log(2)


def test_which_of_both_is_the_records_own_makes_no_difference():
    target, batch = objective(), tiny.compared(tiny.batch())
    cond = batch["cond"]
    swapped = {
        "latents": cond[OTHER],
        "cond": cond | {OTHER: batch["latents"], PREFERENCE: -cond[PREFERENCE]},
    }
    state, frozen = begun(target)
    one, other = (tiny.step(target)(state, frozen, each) for each in (batch, swapped))
    assert tiny.max_difference(one[0].params, other[0].params) < 1e-5
    assert tiny.max_difference(one[1], other[1]) < 1e-5


def test_pairs_without_a_preference_teach_nothing():
    target = objective()
    state, frozen = begun(target)
    _, metrics = tiny.step(target)(state, frozen, tiny.compared(tiny.batch(), [0.0] * tiny.B))
    assert float(metrics["gradient_norm"]) == 0 == float(metrics["accuracy"])
    assert np.isfinite(float(metrics["loss"]))


def test_micro_batches_make_the_same_update():
    target, parts = objective(), objective(accumulation=2)
    state, frozen = begun(target)
    one, two = (
        tiny.step(each)(state, frozen, tiny.compared(tiny.batch())) for each in (target, parts)
    )
    # The moments of a first step are the gradient, which Adam's update has the sign of alone.
    assert tiny.gradient_difference(two[0].optimizer, one[0].optimizer) < 1e-5
    assert tiny.max_difference(two[1], one[1]) < 1e-5


def test_beta_is_above_zero():
    with pytest.raises(UserError, match="beta is 0"):
        objective(beta=0.0)
