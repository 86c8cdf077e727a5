"""The data generator's training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.objectives.flow_matching import FlowMatching
from ladd_jax.training.ema import update_ema
from ladd_jax.training.optimizers import Optimizer

NULL = {"context": jnp.zeros((tiny.T, tiny.CONTEXT)), "pooled": jnp.zeros(tiny.POOLED)}
FROZEN = {"null": NULL}


def objective(**changes):
    model = mmdit(tiny.mmdit_config())
    return FlowMatching(model, **({"optimizer": Optimizer(3e-3)} | changes))


def test_the_loss_falls_on_one_batch():
    target = objective(ema_decay=0.5)
    state = target.init(jax.random.PRNGKey(0), target.model.init(jax.random.PRNGKey(1)))
    step = jax.jit(target.step)
    losses = []
    for _ in range(60):
        state, metrics = step(state, FROZEN, tiny.batch())
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert 0 < tiny.max_difference(state.ema, state.params) < 0.5


def test_a_perfect_velocity_has_no_loss():
    target = objective(time_mean=40.0)  # t = 1: x_t is the noise itself
    batch = tiny.batch()

    def model(params, x_t, t, cond):
        return x_t - batch["latents"] + 0 * params["w"]

    target = dataclasses.replace(target, model=model)
    params = {"w": jnp.zeros(())}
    _, metrics = target.step(target.init(jax.random.PRNGKey(0), params), FROZEN, batch)
    assert float(metrics["loss"]) < 1e-10


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_text_is_dropped_with_its_probability(dropout):
    # A network that reports in its loss whether it was given the text.
    def model(params, x_t, t, cond):
        given = jnp.mean(cond["context"], axis=(1, 2)) * jnp.mean(cond["pooled"], axis=1)
        return x_t * 0 + given[:, None, None, None] * params["w"]

    target = dataclasses.replace(objective(text_dropout=dropout, time_mean=-40.0), model=model)
    batch = tiny.batch(size=512)
    batch = {
        "latents": jnp.zeros_like(batch["latents"]),
        "cond": jax.tree.map(jnp.ones_like, batch["cond"]),
    }
    state = target.init(jax.random.PRNGKey(0), {"w": jnp.full((), 100.0)})
    _, metrics = jax.jit(target.step)(state, FROZEN, batch)
    # The target's own variance is 1 beside the 100^2 of a sample with its text.
    assert float(metrics["loss"]) / 1e4 == pytest.approx(1 - dropout, abs=0.06)


def test_the_average_warms_up_then_decays_slowly():
    ema = update_ema({"w": jnp.zeros(())}, {"w": jnp.ones(())}, 0.99, jnp.asarray(0))
    assert float(ema["w"]) == pytest.approx(0.9)
    ema = update_ema({"w": jnp.zeros(())}, {"w": jnp.ones(())}, 0.99, jnp.asarray(10_000))
    assert float(ema["w"]) == pytest.approx(0.01)


def test_the_learning_rate_warms_up_and_decays():
    schedule = Optimizer(1.0, warmup_steps=10, decay_steps=100).schedule()
    assert [float(schedule(s)) for s in (0, 5, 10, 100)] == pytest.approx([0, 0.5, 1, 0], abs=1e-6)
    assert float(Optimizer(0.5).schedule()(10**6)) == 0.5
