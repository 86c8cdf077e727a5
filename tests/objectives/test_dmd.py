"""Distribution matching: what moves the student, and the network that learns its predictions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.models.lora import BASE, Adapted, LoRA
from ladd_jax.objectives.base import updated
from ladd_jax.objectives.dmd import DMD
from ladd_jax.objectives.followed import Followed
from ladd_jax.training.optimizers import Optimizer

NULL = {"context": jnp.full((tiny.T, tiny.CONTEXT), 0.3), "pooled": jnp.full(tiny.POOLED, -0.2)}


def objective(**changes):
    network = tiny.network(tiny.mmdit_config())
    fields = dict(
        student=network, followed=Followed(network, guidance=3.0), fake=network, warmup_steps=0,
        # A large epsilon keeps Adam's update near the gradient.
        optimizer=Optimizer(0.1, epsilon=1.0), heads_optimizer=Optimizer(0.2, epsilon=1.0),
        ema_decay=0.5, renoise_mean=0.2, renoise_slope=0.5,
    )  # fmt: skip
    return DMD(**(fields | changes))


@pytest.fixture(scope="module")
def trees():
    """Parameters of the student, of the fake network, and of the data generator: all different."""
    network = tiny.network(tiny.mmdit_config())
    return [tiny.random_params(network, seed) for seed in (1, 2, 3)]


def state_of(target, trees):
    state = target.init(jax.random.PRNGKey(0), trees[0])
    return dataclasses.replace(state, heads=trees[1])


def frozen(trees):
    return {"teacher": trees[2], "null": NULL}


def moved(after, before):
    return jax.tree.map(jnp.subtract, after, before)


def formula(target, trees, batch):
    """(the student's loss and gradient, its predictions, the fake network's gradients in turn)."""
    network, cond = tiny.network(tiny.mmdit_config()), batch["cond"]
    null = {name: jnp.broadcast_to(a, (tiny.B, *a.shape)) for name, a in NULL.items()}
    key = jax.random.fold_in(target.init(jax.random.PRNGKey(0), trees[0]).key, 0)
    input_key, _, score_key, *fake_keys = jax.random.split(key, 3 + target.head_updates)
    x_t, t = target.student_input(input_key, batch["latents"], jnp.asarray(0))

    def renoise(key, x):
        time_key, noise_key = jax.random.split(key)
        eps = jax.random.normal(noise_key, x.shape)
        u = jax.random.normal(time_key, (tiny.B,))
        t_hat = jax.nn.sigmoid(0.2 - 0.5 * (1 - t) + u)
        return eps, t_hat, interpolate(x, eps, t_hat)

    @jax.jit
    def run(student, fake, generator):
        def predict(student):
            return predict_x0(x_t, network(student, x_t, t, cond), t)

        x0_hat = predict(student)
        _, t_hat, x = renoise(score_key, x0_hat)
        given, empty = (network(generator, x, t_hat, c) for c in (cond, null))
        real = predict_x0(x, empty + 3.0 * (given - empty), t_hat)
        of_fake = predict_x0(x, network(fake, x, t_hat, cond), t_hat)
        distance = jnp.mean(jnp.abs(x0_hat - real), axis=(1, 2, 3), keepdims=True)
        wanted = x0_hat - (of_fake - real) / distance

        def loss(student):
            return 0.5 * jnp.mean((predict(student) - wanted) ** 2)

        found, heads, gradients = jax.value_and_grad(loss)(student), fake, []
        optimizer = optax.adam(0.2, eps=1.0)
        moments = optimizer.init(heads)
        for key in fake_keys:
            eps, t_hat, x = renoise(key, x0_hat)

            def matching(heads, x=x, t_hat=t_hat, eps=eps):
                return jnp.mean((network(heads, x, t_hat, cond) - (eps - x0_hat)) ** 2)

            gradients.append(jax.value_and_grad(matching)(heads))
            updates, moments = optimizer.update(gradients[-1][1], moments)
            heads = optax.apply_updates(heads, updates)
        return found, x0_hat, gradients, heads

    return run(*trees)


def test_a_step_is_that_of_the_formula_and_of_two_updates_of_the_fake_network(trees):
    target, batch = objective(head_updates=2), tiny.batch()
    state = state_of(target, trees)
    after, metrics = jax.jit(target.step)(state, frozen(trees), batch)
    (value, gradient), x0_hat, fakes, heads = formula(target, trees, batch)
    np.testing.assert_allclose(metrics["loss/dmd"], value, rtol=1e-4)
    np.testing.assert_allclose(metrics["x0_hat_std"], jnp.std(x0_hat), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["gradient_norm/student"], optax.tree.norm(gradient), rtol=1e-4
    )
    wanted = updated(state, target.optimizer, gradient, 0.5)
    assert tiny.gradient_difference(
        moved(after.params, state.params), moved(wanted.params, state.params)
    ) < 1e-3  # fmt: skip
    assert tiny.max_difference(after.ema, wanted.ema) < 1e-4
    np.testing.assert_allclose(
        metrics["loss/fake"], np.mean([float(value) for value, _ in fakes]), rtol=1e-4
    )
    assert tiny.gradient_difference(moved(after.heads, trees[1]), moved(heads, trees[1])) < 1e-3


def test_where_both_networks_say_the_same_nothing_moves_the_student(trees):
    target = objective(followed=Followed(tiny.network(tiny.mmdit_config())))
    state = state_of(target, [trees[0], trees[2], trees[2]])
    _, metrics = jax.jit(target.step)(state, frozen(trees), tiny.batch())
    assert float(metrics["gradient_norm/student"]) < 1e-4
    assert float(metrics["gradient_norm/heads"]) > 1e-2


def test_micro_batches_make_the_update_of_the_whole_batch(trees):
    whole, parts = objective(head_updates=2), objective(head_updates=2, accumulation=2)
    state, batch = state_of(whole, trees), tiny.batch()
    (one, metrics), (other, again) = (
        jax.jit(target.step)(state, frozen(trees), batch) for target in (whole, parts)
    )
    for tree in ("params", "heads"):
        before = getattr(state, tree)
        assert tiny.gradient_difference(
            moved(getattr(other, tree), before), moved(getattr(one, tree), before)
        ) < 1e-3  # fmt: skip
    for name in metrics:
        np.testing.assert_allclose(metrics[name], again[name], rtol=1e-3)


@pytest.mark.parametrize("spoilt", ["generator", "fake"])
def test_a_gradient_that_is_not_finite_updates_neither(trees, spoilt):
    target, batch = objective(), tiny.batch()
    state, constant = state_of(target, trees), frozen(trees)
    if spoilt == "generator":
        # The student's gradient alone.
        constant["null"] = jax.tree.map(lambda a: a * jnp.nan, NULL)
    else:
        # A step of the optimizer that is too large for the fake network, whose gradient is fine
        # the first time.
        target = objective(head_updates=2, heads_optimizer=Optimizer(1e38))
    after, metrics = jax.jit(target.step)(state, constant, batch)
    assert float(metrics["skipped"]) == 1 and int(after.step) == 1
    for tree in ("params", "ema", "heads"):
        assert tiny.max_difference(getattr(after, tree), getattr(state, tree)) == 0


def test_both_networks_begin_as_the_generator_and_adapters_are_trained_beside_a_whole_one(trees):
    base = tiny.network(tiny.mmdit_config())
    adapted = Adapted(base, LoRA(rank=2), jnp.float32, BASE)
    target = objective(student=adapted)
    assert list(target.networks) == ["teacher", BASE]
    assert target.forward_units == (2 + 2 + 1 + 3, 0)
    state = target.init(jax.random.PRNGKey(0), trees[2])
    jax.tree.map(np.testing.assert_array_equal, state.heads, trees[2])
    constant = frozen(trees) | {BASE: trees[2]}
    after, metrics = jax.jit(target.step)(state, constant, tiny.batch())
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, adapted.shapes)
    assert tiny.max_difference(after.params, state.params) > 0
    assert metrics.keys() == {
        "loss/dmd", "loss/fake", "gradient_norm/student", "gradient_norm/heads", "x0_hat_std",
        "skipped",
    }  # fmt: skip
