"""Progressive distillation: the guided velocity first, then half the steps in each phase."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.diffusion.samplers import ALWAYS, euler, student_sigmas
from ladd_jax.models.lora import BASE, Adapted, LoRA
from ladd_jax.objectives.base import updated
from ladd_jax.objectives.followed import Followed
from ladd_jax.objectives.progressive import Progressive, as_one_step, grid, student_steps
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.optimizers import Optimizer
from ladd_jax.training.program import state_layout
from ladd_jax.training.state import abstract_like, create

NULL = {"context": jnp.full((tiny.T, tiny.CONTEXT), 0.3), "pooled": jnp.full(tiny.POOLED, -0.2)}
TIMES = (1.0, 0.75, 0.5, 0.25)


def objective(**changes):
    """Three phases of three steps: guidance, four steps, two steps."""
    network = tiny.network(tiny.mmdit_config())
    fields = dict(
        student=network, followed=Followed(network, guidance=3.0), timesteps=(1.0, 0.6),
        halvings=2, phase_steps=3, shift=2.0, ema_decay=0.5,
        # A large epsilon keeps Adam's update near the gradient.
        optimizer=Optimizer(0.1, epsilon=1.0),
    )  # fmt: skip
    return Progressive(**(fields | changes))


TARGET = objective()


@pytest.fixture(scope="module")
def trees():
    """Parameters of student, average, teacher and data generator: all different."""
    network = tiny.network(tiny.mmdit_config())
    return [tiny.random_params(network, seed) for seed in (1, 2, 3, 4)]


def state_of(target, trees, step):
    state = tiny.init(target)(jax.random.PRNGKey(0), trees[0])
    step = jnp.asarray(step, jnp.int32)
    return dataclasses.replace(state, step=step, ema=trees[1], heads=trees[2])


def frozen(trees):
    return {"teacher": trees[3], "null": NULL}


def moved(after, before):
    return jax.tree.map(jnp.subtract, after, before)


def test_the_grids_of_phases_are_nested_and_the_last_is_that_of_sampling():
    for times in (TIMES, (1.0, 0.9, 0.75, 0.5), (1.0,)):
        wanted = np.float32(student_sigmas(len(times), times))
        np.testing.assert_array_equal(grid(times, 1), wanted)
        for pieces in (1, 2, 4):
            np.testing.assert_allclose(grid(times, 2 * pieces)[::2], grid(times, pieces), rtol=1e-6)
    np.testing.assert_allclose(grid(TIMES, 2), np.linspace(1, 0, 9), rtol=1e-6)
    assert student_steps(TIMES, 3) == (16, 8, 4) and student_steps((1.0,), 2) == (2, 1)


def test_one_step_lands_where_two_steps_of_euler_do():
    x = tiny.batch()["latents"]
    levels = (0.9, 0.7, 0.2)
    t, m, s = (jnp.full(len(x), level) for level in levels)

    def velocity(x, t):
        return jnp.sin(3 * x) + t[:, None, None, None]

    landed = x + (levels[2] - levels[0]) * as_one_step(velocity, x, t, m, s)
    np.testing.assert_allclose(landed, euler(velocity, x, levels), atol=1e-6)


@pytest.mark.parametrize(("step", "phase"), [(1, 0), (4, 1), (8, 2), (50, 2)])
def test_a_step_is_that_of_the_formula(trees, step, phase):
    batch = tiny.batch()
    state = state_of(TARGET, trees, step)
    after, metrics = tiny.step(TARGET)(state, frozen(trees), batch)
    assert float(metrics["phase"]) == phase

    # The points are drawn as in the step; what is learned there, and how, is written out.
    level_key, noise_key = jax.random.split(jax.random.fold_in(state.key, step))
    t, m, s = TARGET._levels(level_key, jnp.asarray(phase), tiny.B)
    if phase:
        levels = {1: (1.0, 0.9, 0.8, 0.7, 0.6, 0.45, 0.3, 0.15, 0), 2: (1.0, 0.8, 0.6, 0.3, 0)}
        levels = levels[phase]
        place = [int(np.argmin(np.abs(np.subtract(levels, float(time))))) for time in t]
        assert set(place) <= set(range(0, len(levels) - 1, 2)) and len(set(place)) > 1
        for offset, found in enumerate((t, m, s)):
            wanted = [levels[i + offset] for i in place]
            np.testing.assert_allclose(found, wanted, atol=1e-6)
    else:
        assert len(set(np.asarray(t).tolist())) == tiny.B and 0 <= min(t) and max(t) <= 1
    x_t = interpolate(batch["latents"], jax.random.normal(noise_key, batch["latents"].shape), t)
    network, cond = tiny.network(tiny.mmdit_config()), batch["cond"]
    null = {name: jnp.broadcast_to(array, (tiny.B, *array.shape)) for name, array in NULL.items()}
    t4, m4, s4 = (time[:, None, None, None] for time in (t, m, s))

    @jax.jit
    def formula(params):
        if phase:
            x_m = x_t + (m4 - t4) * network(trees[2], x_t, t, cond)
            x_s = x_m + (s4 - m4) * network(trees[2], x_m, m, cond)
            v = (x_s - x_t) / (s4 - t4)
        else:
            given, empty = (network(trees[3], x_t, t, c) for c in (cond, null))
            v = empty + 3.0 * (given - empty)
        x0 = predict_x0(x_t, v, t)
        x0_hat = predict_x0(x_t, network(params, x_t, t, cond), t)
        # x_t = (1 - t) x_0 + t eps, of both predictions.
        eps, eps_hat = ((x_t - (1 - t4) * x) / t4 for x in (x0, x0_hat))
        return jnp.mean(jnp.maximum((x0_hat - x0) ** 2, (eps_hat - eps) ** 2))

    value, gradient = jax.value_and_grad(formula)(trees[0])
    np.testing.assert_allclose(metrics["loss/progressive"], value, rtol=1e-4)
    # The average forgets the start of its phase, as it does that of a training.
    wanted = updated(state, TARGET.optimizer, gradient, 0.5, 3 * phase)
    assert tiny.gradient_difference(
        moved(after.params, state.params), moved(wanted.params, state.params)
    ) < 1e-3  # fmt: skip
    assert tiny.max_difference(after.ema, wanted.ema) < 1e-4
    assert tiny.max_difference(after.heads, trees[2]) == 0


@pytest.mark.parametrize("spoilt", [False, True], ids=["updated", "skipped"])
@pytest.mark.parametrize("step", [3, 6])
def test_a_phase_begins_with_the_average_as_its_teacher_and_as_its_student(trees, step, spoilt):
    state, batch = state_of(TARGET, trees, step), tiny.batch()
    if spoilt:
        batch["latents"] = batch["latents"].at[0].set(jnp.nan)
    after, metrics = tiny.step(TARGET)(state, frozen(trees), batch)
    assert (float(metrics["skipped"]), int(after.step)) == (spoilt, step + 1)
    assert tiny.max_difference(after.heads, trees[1]) == 0
    far = tiny.max_difference(trees[0], trees[1])
    if spoilt:
        assert tiny.max_difference(after.params, trees[1]) == 0
        assert tiny.max_difference(after.ema, trees[1]) == 0
    else:
        assert 0 < tiny.max_difference(after.params, trees[1]) < 0.3 * far
    # The step after it is one like any other.
    after, _ = tiny.step(TARGET)(after, frozen(trees), tiny.batch())
    assert tiny.max_difference(after.heads, trees[1]) == 0


def test_a_training_that_stops_within_a_phase_goes_on_in_every_bit(trees, tmp_path):
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    shapes, shardings = state_layout(TARGET, mesh)

    def train(state, stop):
        for step in range(int(state.step), stop):
            state, _ = tiny.step(TARGET)(state, frozen(trees), tiny.batch(step))
        return state

    fresh = create(TARGET.init, shardings, jax.random.PRNGKey(0), trees[0])
    middle = train(fresh, 4)
    saved = Checkpoints(tmp_path)
    saved.save(4, middle, {})
    saved.wait()
    restored = saved.restore(abstract_like(shapes, shardings), 4)
    saved.close()
    assert tiny.max_difference(restored.heads, trees[0]) > 0
    straight, resumed = train(middle, 7), train(restored, 7)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert tiny.max_difference(straight.heads, middle.heads) > 0


class Line:
    """A network whose velocity is its one parameter times x."""

    constants = {}

    def begin(self, key, start):
        return jax.tree.map(jnp.copy, start)

    def complete(self, params, frozen):
        return params

    def __call__(self, params, x, t, cond):
        return params["w"] * x


def test_phases_end_at_the_network_whose_steps_are_two_of_the_one_before():
    target = Progressive(
        student=Line(), followed=None, optimizer=Optimizer(5e-3, beta1=0.9), timesteps=(1.0,),
        halvings=2, phase_steps=150, ema_decay=0.9,
    )  # fmt: skip
    state = target.init(jax.random.PRNGKey(0), {"w": jnp.asarray(0.8)})
    step = jax.jit(target.step)
    averages = {}
    for number in range(300):
        state, _ = step(state, {"null": NULL}, tiny.batch(number))
        averages[number + 1] = float(state.ema["w"])
    # Two steps of Euler of length h on dx/dt = w x are one of velocity w - w^2 h / 2.
    assert averages[150] == pytest.approx(0.8 - 0.8**2 / 8, abs=2e-3)
    assert float(state.heads["w"]) == averages[150]
    assert averages[300] == pytest.approx(0.72 - 0.72**2 / 4, abs=2e-3)
    # In its one step the student goes where the first teacher does in four.
    x = tiny.batch()["latents"]
    four = euler(lambda x, t: 0.8 * x, x, (1.0, 0.75, 0.5, 0.25, 0.0))
    one = euler(lambda x, t: state.ema["w"] * x, x, student_sigmas(1, target.timesteps))
    np.testing.assert_allclose(one, four, atol=1e-2)


@pytest.mark.parametrize("step", [1, 4])
def test_micro_batches_make_the_update_of_the_whole_batch(trees, step):
    parts = objective(accumulation=2)
    state, batch = state_of(TARGET, trees, step), tiny.batch()
    (one, metrics), (other, again) = (
        tiny.step(target)(state, frozen(trees), batch) for target in (TARGET, parts)
    )
    assert tiny.gradient_difference(
        moved(other.params, state.params), moved(one.params, state.params)
    ) < 1e-3  # fmt: skip
    for name in metrics:
        np.testing.assert_allclose(metrics[name], again[name], rtol=1e-3)


def test_adapters_have_a_teacher_of_adapters(trees):
    base = tiny.network(tiny.mmdit_config())
    adapted = Adapted(base, LoRA(rank=2), jnp.float32, BASE)
    target = objective(student=adapted, followed=None, phase_steps=1)
    assert list(target.networks) == [BASE] and target.forward_units == (2 + 2, 0)
    state = target.init(jax.random.PRNGKey(0), trees[0])
    constant = {BASE: trees[3], "null": NULL}
    step = jax.jit(target.step)
    for _ in range(2):
        state, metrics = step(state, constant, tiny.batch())
    assert jax.tree.map(jnp.shape, state.heads) == jax.tree.map(jnp.shape, adapted.shapes)
    assert tiny.max_difference(state.heads, state.params) > 0
    assert float(metrics["phase"]) == 1
    assert metrics.keys() == {
        "loss/progressive", "gradient_norm/student", "x0_hat_std", "phase", "skipped"
    }  # fmt: skip


@pytest.mark.parametrize("interval", [ALWAYS, (0.5, 1.0)], ids=str)
def test_a_student_that_is_told_the_guidance_learns_each_samples_own(interval):
    """Of the followed network, which is not told it, and where that is guided."""

    class Told(Line):
        def __call__(self, params, x, t, cond):
            inside = (interval[0] <= t) & (t <= interval[1])
            scale = jnp.where(inside, cond["guidance"][:, 0], 1.0)
            return params["w"] * scale[:, None, None, None] + 0 * x

    def plain(params, x, t, cond):
        assert "guidance" not in cond
        text = jnp.mean(cond["context"], axis=(1, 2))
        return x * 0 + text[:, None, None, None]

    batch = tiny.batch()
    ones = jax.tree.map(jnp.ones_like, batch["cond"])
    scales = jnp.linspace(1.0, 4.0, tiny.B)[:, None]
    batch["cond"] = ones | {"guidance": scales}
    target = Progressive(
        student=Told(), followed=Followed(plain, "teacher", (1.0, 4.0), interval),
        optimizer=Optimizer(0.0), timesteps=(1.0,), halvings=1, phase_steps=1,
    )  # fmt: skip
    constant = {"teacher": {}, "null": jax.tree.map(jnp.zeros_like, NULL)}
    state = target.init(jax.random.PRNGKey(0), {"w": jnp.ones(())})
    for _ in range(2):
        state, metrics = jax.jit(target.step)(state, constant, batch)
        assert float(metrics["loss/progressive"]) < 1e-10
