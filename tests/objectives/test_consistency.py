"""Consistency distillation: the loss along paths of the data generator, alone and beside LADD."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.diffusion.samplers import linear_sigmas
from ladd_jax.models.lora import BASE, Adapted, LoRA
from ladd_jax.objectives.base import updated
from ladd_jax.objectives.consistency import Consistency
from ladd_jax.objectives.followed import Followed
from ladd_jax.objectives.lcm import LCM
from ladd_jax.training.optimizers import Optimizer

LEVELS = linear_sigmas(4, 2.0)
NULL = {"context": jnp.full((tiny.T, tiny.CONTEXT), 0.3), "pooled": jnp.full(tiny.POOLED, -0.2)}
KEY = jax.random.PRNGKey(0)


def consistency(**changes):
    network = tiny.network(tiny.mmdit_config())
    fields = dict(student=network, followed=Followed(network, guidance=3.0), levels=LEVELS)
    return Consistency(**(fields | changes))


def objective(**changes):
    return LCM(consistency(**changes), Optimizer(1e-2), ema_decay=0.5)


@pytest.fixture(scope="module")
def trees():
    """Parameters of the student, of its average, and of the data generator: all different."""
    network = tiny.network(tiny.mmdit_config())
    return [tiny.random_params(network, seed) for seed in (1, 2, 3)]


def state_of(target, params, ema):
    state = target.init(jax.random.PRNGKey(0), params)
    return dataclasses.replace(state, ema=ema)


def frozen(generator):
    return {"teacher": generator, "null": NULL}


def on_a_line(speed):
    """A network whose velocity is a constant times the mean of the text, and of its parameters."""

    class Line:
        constants = {}

        def complete(self, params, frozen):
            return params

        def __call__(self, params, x, t, cond):
            text = jnp.mean(cond["context"], axis=(1, 2))
            return x * 0 + speed * params["w"] * text[:, None, None, None]

    return Line()


def test_a_student_that_knows_where_guided_paths_end_has_no_loss():
    target = consistency(student=on_a_line(3.0), followed=Followed(on_a_line(1.0), guidance=3.0))
    empty = {"null": jax.tree.map(jnp.zeros_like, NULL), "teacher": {"w": jnp.ones(())}}
    one = {"w": jnp.ones(())}
    held = target.hold(KEY, SimpleNamespace(params=one, ema=one), empty, tiny.batch())
    assert float(held.value) < 1e-6
    # Of another scale it is wrong by a share of each piece, the last ones excepted.
    other = dataclasses.replace(target, followed=Followed(on_a_line(1.0), guidance=2.0))
    held = other.hold(KEY, SimpleNamespace(params=one, ema=one), empty, tiny.batch())
    assert float(held.value) > 1e-3


def test_the_loss_is_that_of_neighbouring_points_and_the_average_at_the_second(trees):
    student, ema, generator = trees
    target, batch = consistency(), tiny.batch()
    state = state_of(LCM(target, Optimizer(1e-2)), student, ema)
    held = jax.jit(target.hold)(KEY, state, frozen(generator), batch)

    level_key, noise_key = jax.random.split(KEY)
    place = jax.random.randint(level_key, (tiny.B,), 0, 4)
    assert set(np.asarray(place)) == {0, 1, 2, 3}
    t, s = jnp.asarray(LEVELS)[place], jnp.asarray(LEVELS)[place + 1]
    x_t = interpolate(batch["latents"], jax.random.normal(noise_key, batch["latents"].shape), t)
    null = {name: jnp.broadcast_to(array, (tiny.B, *array.shape)) for name, array in NULL.items()}
    network = tiny.network(tiny.mmdit_config())

    @jax.jit
    def formula(params):
        given, empty = (network(generator, x_t, t, cond) for cond in (batch["cond"], null))
        v = empty + 3.0 * (given - empty)
        x_s = x_t - (t - s)[:, None, None, None] * v
        wanted = predict_x0(x_s, network(ema, x_s, s, batch["cond"]), s)
        d = predict_x0(x_t, network(params, x_t, t, batch["cond"]), t) - wanted
        return jnp.mean(jnp.sqrt(d**2 + 1e-6) - 1e-3)

    wanted, gradient = jax.value_and_grad(formula)(student)
    np.testing.assert_allclose(held.value, wanted, rtol=1e-5)
    assert tiny.gradient_difference(held.gradient, gradient) < 1e-4
    assert held.x0_hat.shape == batch["latents"].shape


def test_micro_batches_are_held_as_the_whole_batch_is(trees):
    student, ema, generator = trees
    whole, parts = consistency(), consistency(accumulation=2)
    state = state_of(LCM(whole, Optimizer(1e-2)), student, ema)
    one, other = (
        jax.jit(target.hold)(KEY, state, frozen(generator), tiny.batch())
        for target in (whole, parts)
    )
    np.testing.assert_allclose(one.value, other.value, rtol=1e-5)
    np.testing.assert_allclose(one.x0_hat, other.x0_hat, atol=1e-5)
    assert tiny.gradient_difference(other.gradient, one.gradient) < 1e-4


def test_samples_with_a_scale_of_their_own_follow_its_path():
    """The data generator is not told the scale, and each sample takes a step of its own."""
    target = consistency(followed=Followed(on_a_line(1.0), guidance=(1.0, 4.0)))
    batch = tiny.batch()
    scales = jnp.linspace(1.0, 4.0, tiny.B)[:, None]
    cond = batch["cond"] | {"guidance": scales}
    x, t = batch["latents"], jnp.full(tiny.B, 0.75)
    trees = {"null": jax.tree.map(jnp.zeros_like, NULL), "teacher": {"w": jnp.ones(())}}
    found = target.step_back(trees, x, t, t - 0.25, cond)
    text = jnp.mean(cond["context"], axis=(1, 2))
    wanted = x - 0.25 * (scales[:, 0] * text)[:, None, None, None]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(("solver", "order", "passes"), [("euler", 1, 1), ("midpoint", 2, 2)])
def test_a_step_of_a_solver_follows_a_bent_path_to_its_order(solver, order, passes):
    """Of v = x, along which x grows by e^(s - t); and of v = t, whose ends are half squares."""

    def growing(params, x, t, cond):
        return x

    def bent(params, x, t, cond):
        return x * 0 + t[:, None, None, None]

    batch, trees = tiny.batch(), {"null": NULL, "teacher": {}}
    x, t = batch["latents"], jnp.full(tiny.B, 0.75)
    target = consistency(followed=Followed(growing), solver=solver)
    found = target.step_back(trees, x, t, t - 0.25, batch["cond"])
    series = 1 - 0.25 + (0.25**2 / 2 if order == 2 else 0)
    np.testing.assert_allclose(found, series * x, rtol=1e-5)
    end = consistency(followed=Followed(bent), solver=solver).step_back(
        trees, x, t, t - 0.25, batch["cond"]
    )
    moved = -0.25 * (0.75 if order == 1 else 0.625)
    np.testing.assert_allclose(end, x + moved, atol=1e-6)
    assert target.followed_units == passes
    assert target.forward_units == passes + 4


def test_outside_of_its_interval_what_is_followed_is_not_guided():
    followed = Followed(on_a_line(1.0), guidance=3.0, interval=(0.5, 1.0))
    trees = {"null": jax.tree.map(jnp.zeros_like, NULL), "teacher": {"w": jnp.ones(())}}
    batch = tiny.batch()
    t = jnp.where(jnp.arange(tiny.B) % 2 == 0, 0.75, 0.25)
    v = followed.velocity(trees, batch["cond"])(batch["latents"], t)
    text = jnp.mean(batch["cond"]["context"], axis=(1, 2))
    wanted = jnp.where(t > 0.5, 3.0, 1.0) * text
    np.testing.assert_allclose(v[:, 0, 0, 0], wanted, rtol=1e-5)


def test_a_network_that_learned_guided_samples_is_told_their_scale_and_not_guided():
    def told(params, x, t, cond):
        return x * 0 + cond["guidance"][:, :, None, None]

    followed = Followed(told)
    batch = tiny.batch()
    scales = jnp.linspace(1.0, 4.0, tiny.B)[:, None]
    cond = batch["cond"] | {"guidance": scales}
    t = jnp.full(tiny.B, 0.75)
    v = followed.velocity({"null": NULL, "teacher": {}}, cond)(batch["latents"], t)
    np.testing.assert_array_equal(v[:, 0, 0], jnp.broadcast_to(scales, (tiny.B, 2)))
    assert (followed.passes, Followed(told, guidance=2.0).passes) == (1, 2)


def test_the_loss_falls_and_the_average_follows(trees):
    generator = trees[2]
    target = objective()
    step = jax.jit(target.step)
    state = target.init(jax.random.PRNGKey(0), generator)
    losses = []
    for _ in range(60):
        state, metrics = step(state, frozen(generator), tiny.batch())
        losses.append(float(metrics["loss/consistency"]))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert int(state.step) == 60 and state.heads == {}
    assert 0 < tiny.max_difference(state.ema, state.params) < 0.5
    assert metrics.keys() == {
        "loss/consistency", "gradient_norm/student", "x0_hat_std", "skipped"
    }  # fmt: skip


def test_a_gradient_that_is_not_finite_updates_nothing(trees):
    target, batch = objective(), tiny.batch()
    state = state_of(target, *trees[:2])
    spoilt = batch | {"latents": batch["latents"].at[0].set(jnp.nan)}
    after, metrics = jax.jit(target.step)(state, frozen(trees[2]), spoilt)
    assert float(metrics["skipped"]) == 1 and int(after.step) == 1
    assert tiny.max_difference(after.params, state.params) == 0
    assert tiny.max_difference(after.ema, state.ema) == 0


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A term without a gradient: what moves the student is what is beside it."""

    weight: float = 1.0
    name: str = "nothing"
    needs: frozenset[str] = frozenset()

    def __call__(self, seen):
        return jnp.zeros(()), jnp.zeros_like(seen.x0_hat)


@pytest.mark.parametrize("changes", [{}, {"head_updates": 2}, {"accumulation": 2}], ids=str)
def test_beside_ladd_its_gradient_is_added_with_its_weight(trees, changes):
    student, ema, generator = trees
    held_by = consistency(accumulation=changes.get("accumulation", 1))
    ladd = tiny.ladd(
        terms=(Nothing(),), consistency=held_by, consistency_weight=0.5,
        optimizer=Optimizer(1e-2, epsilon=1.0), **changes,
    )  # fmt: skip
    state, batch = state_of(ladd, student, ema), tiny.batch()
    after, metrics = jax.jit(ladd.step)(state, frozen(generator), batch)
    # A key that none of the draws of the step has.
    count = 1 + ladd.head_updates
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), count)
    drawn = jax.random.split(jax.random.fold_in(state.key, 0), count)
    assert not (np.asarray(drawn) == np.asarray(key)).all(axis=1).any()
    held = jax.jit(held_by.hold)(key, state, frozen(generator), batch)
    half = jax.tree.map(lambda leaf: 0.5 * leaf, held.gradient)
    wanted = updated(state, ladd.optimizer, half, ladd.ema_decay)
    moved, wanted_move = (
        jax.tree.map(jnp.subtract, new.params, state.params) for new in (after, wanted)
    )
    assert tiny.gradient_difference(moved, wanted_move) < 1e-3
    np.testing.assert_allclose(metrics["loss/consistency"], held.value, rtol=1e-5)


def test_adapters_are_held_and_their_base_stays(trees):
    base = tiny.network(tiny.mmdit_config())
    adapted = Adapted(base, LoRA(rank=2), jnp.float32, BASE)
    network = tiny.network(tiny.mmdit_config())
    target = objective(student=adapted, followed=Followed(network, "generator", 3.0))
    assert list(target.networks) == ["generator", BASE]
    assert target.forward_units == (2 + 1 + 2, 0)
    state = target.init(jax.random.PRNGKey(0), trees[0])
    constant = {"generator": trees[2], BASE: trees[0], "null": NULL}
    after, metrics = jax.jit(target.step)(state, constant, tiny.batch())
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, adapted.shapes)
    assert float(metrics["gradient_norm/student"]) > 0
    assert tiny.max_difference(after.params, state.params) > 0
