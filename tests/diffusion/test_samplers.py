"""Samplers on velocities whose answer is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ladd_jax.config.fields import base_config, typed
from ladd_jax.diffusion.flow import expand
from ladd_jax.diffusion.samplers import (
    consistency,
    dpmpp_2m,
    euler,
    guided,
    linear_sigmas,
    sample_noise,
    student_sigmas,
)
from ladd_jax.diffusion.sampling import SAMPLERS, Sampler, SamplerKind, Sampling, seeds
from ladd_jax.errors import UserError
from ladd_jax.parallel.mesh import make_mesh

TIMES = (1.0, 0.75, 0.5, 0.25)
KEYS = jnp.asarray(seeds(0, np.arange(3)))
NOISE = sample_noise(KEYS, 0, (4, 4, 1))
X_0 = jax.random.normal(jax.random.PRNGKey(1), NOISE.shape)
NULL = {"context": np.zeros((2, 2), np.float32), "pooled": np.zeros(1, np.float32)}


def towards(x_0):
    """The exact velocity where all data are one point."""
    return lambda x, t: (x - x_0) / expand(t, x)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_euler_ends_on_the_data_and_leaves_no_noise(steps):
    sample = euler(towards(X_0), NOISE, linear_sigmas(steps, 3.0))
    np.testing.assert_allclose(sample, X_0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 25])
def test_dpmpp_2m_ends_on_the_data_and_leaves_no_noise(steps):
    sample = dpmpp_2m(towards(X_0), NOISE, linear_sigmas(steps, 3.0))
    np.testing.assert_allclose(sample, X_0, atol=1e-5)


def gaussian(mean, deviation):
    """The exact velocity where data are normal, E[eps - x_0 | x_t = x]."""

    def velocity(x, t):
        t = expand(t, x)
        variance = ((1 - t) * deviation) ** 2 + t**2
        x_0 = mean + (1 - t) * deviation**2 * (x - (1 - t) * mean) / variance
        # At t = 0 nothing is asked.
        return (x - x_0) / t

    return velocity


def test_dpmpp_2m_needs_a_quarter_of_eulers_steps_and_gains_more_from_further_ones():
    exact = 0.5 + 0.8 * NOISE

    def error(sampler, steps):
        sample = sampler(gaussian(0.5, 0.8), NOISE, linear_sigmas(steps))
        return float(jnp.max(jnp.abs(sample - exact)))

    assert error(dpmpp_2m, 12) < error(euler, 50)
    # A quarter of the step: a quarter of the error in first order, a sixteenth in second.
    assert error(euler, 100) / error(euler, 400) == pytest.approx(4, rel=0.1)
    assert error(dpmpp_2m, 100) / error(dpmpp_2m, 400) > 10


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_ends_on_the_prediction_and_leaves_no_noise(steps):
    sample = consistency(towards(X_0), NOISE, student_sigmas(steps, TIMES), KEYS)
    np.testing.assert_allclose(sample, X_0, atol=1e-5)


def test_consistency_asks_at_the_training_times_with_fresh_noise():
    asked = []

    def velocity(x, t):
        jax.debug.callback(lambda x, t: asked.append((np.asarray(x), float(t[0]))), x, t)
        return jnp.zeros_like(x)

    jax.block_until_ready(consistency(velocity, NOISE, student_sigmas(4, TIMES), KEYS))
    jax.effects_barrier()
    assert [t for _, t in asked] == list(TIMES)
    np.testing.assert_array_equal(asked[0][0], NOISE)
    # With v = 0 the prediction is x itself, so what a step adds is its noise alone.
    fresh = [(asked[i + 1][0] - (1 - t) * asked[i][0]) / t for i, t in enumerate(TIMES[1:])]
    drawn = [np.asarray(NOISE), *fresh]
    for i in range(4):
        for j in range(i):
            assert abs(np.corrcoef(drawn[i].ravel(), drawn[j].ravel())[0, 1]) < 0.5


def test_schedules_are_explicit():
    assert student_sigmas(1, TIMES) == (1.0, 0.0)
    assert student_sigmas(2, TIMES) == (1.0, 0.5, 0.0)
    assert student_sigmas(4, TIMES) == (*TIMES, 0.0)
    assert linear_sigmas(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert linear_sigmas(2, 3.0) == pytest.approx((1.0, 0.75, 0.0))


@given(st.integers(1, 200), st.floats(0.05, 20))
def test_levels_fall_from_noise_to_data_whatever_the_shift(steps, factor):
    sigmas = linear_sigmas(steps, factor)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    assert sigmas[0] == pytest.approx(1)
    assert all(a > b for a, b in itertools.pairwise(sigmas))


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12, unique=True), st.integers(1, 12))
def test_a_student_is_asked_at_its_own_times_from_the_noisiest_on(times, steps):
    assume(len(times) % steps == 0)
    sigmas = student_sigmas(steps, times)
    assert len(sigmas) == steps + 1 and sigmas[0] == max(times) and sigmas[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(sigmas)) and set(sigmas[:-1]) <= set(times)


def test_steps_that_the_student_never_saw_are_an_error():
    with pytest.raises(ValueError, match="3 steps do not divide the 4 training times.*1, 2, 4"):
        student_sigmas(3, TIMES)


def toy(x, t, cond):
    return x * cond["pooled"][:, 0, None, None, None] + cond["context"].mean() * 0


def test_guidance_extrapolates_from_the_empty_prompt_to_the_text():
    cond = {"context": jnp.ones((3, 2, 2)), "pooled": jnp.full((3, 1), 5.0)}
    null = {"context": jnp.zeros((2, 2)), "pooled": jnp.asarray([2.0])}
    t = jnp.ones(3)
    for scale in (0.0, 1.0, 4.0):
        v = guided(toy, cond, null, scale)(NOISE, t)
        np.testing.assert_allclose(v, NOISE * (2 + scale * 3), rtol=1e-5)


SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)


def plain_guided_euler(cond, null, scale, low, high):
    x = np.asarray(NOISE, np.float64)
    for sigma, after in zip(SIGMAS, SIGMAS[1:], strict=False):
        v_text, v_null = (x * c + sigma for c in (cond, null))
        v = v_null + scale * (v_text - v_null) if low <= sigma <= high else v_text
        x = x + (after - sigma) * v
    return x


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8), (0.5, 0.75), (0.9, 1.0), (0.1, 0.2)])
def test_guidance_in_an_interval_is_what_a_plain_loop_computes(interval):
    def model(x, t, cond):
        return x * cond["pooled"][:, :1, None, None] + expand(t, x)

    cond, null = {"pooled": jnp.full((3, 1), 0.7)}, {"pooled": jnp.asarray([0.2])}
    field = guided(model, cond, null, 4.0, interval)
    sample = jax.jit(lambda: euler(field, NOISE, SIGMAS))()
    expected = plain_guided_euler(0.7, 0.2, 4.0, *interval)
    np.testing.assert_allclose(sample, expected, atol=1e-5)


def test_a_step_outside_of_the_interval_takes_one_pass_instead_of_two():
    passes = []

    def model(x, t, cond):
        jax.debug.callback(lambda rows: passes.append(len(rows) // 3), t)
        return x * cond["pooled"][:, :1, None, None]

    cond, null = {"pooled": jnp.ones((3, 1))}, {"pooled": jnp.zeros(1)}
    for interval, expected in (((0.0, 1.0), [2, 2, 2, 2]), ((0.3, 0.8), [1, 2, 2, 1])):
        passes.clear()
        field = guided(model, cond, null, 4.0, interval)
        jax.block_until_ready(jax.jit(lambda field=field: euler(field, NOISE, SIGMAS))())
        jax.effects_barrier()
        assert passes == expected
        way = Sampling("euler", SIGMAS, 4.0, interval)
        assert way.passes == sum(expected)
    assert Sampling("euler", SIGMAS, 1.0).passes == 4


def test_times_of_one_batch_are_guided_each_by_itself():
    cond = {"context": jnp.ones((3, 2, 2)), "pooled": jnp.full((3, 1), 5.0)}
    null = {"context": jnp.zeros((2, 2)), "pooled": jnp.asarray([2.0])}
    v = guided(toy, cond, null, 4.0, (0.2, 0.6))(NOISE, jnp.asarray([0.1, 0.5, 0.9]))
    scale = np.asarray([5.0, 2 + 4 * 3, 5.0])[:, None, None, None]
    np.testing.assert_allclose(v, NOISE * scale, rtol=1e-5)


def test_samples_of_one_batch_have_scales_of_their_own():
    cond = {"context": jnp.ones((3, 2, 2)), "pooled": jnp.full((3, 1), 5.0)}
    null = {"context": jnp.zeros((2, 2)), "pooled": jnp.asarray([2.0])}
    scales, t = jnp.asarray([1.0, 4.0, 0.5]), jnp.asarray([0.5, 0.5, 0.9])
    for interval, used in (((0.0, 1.0), [1.0, 4.0, 0.5]), ((0.2, 0.6), [1.0, 4.0, 1.0])):
        v = guided(toy, cond, null, scales, interval)(NOISE, t)
        expected = NOISE * (2 + 3 * np.asarray(used))[:, None, None, None]
        np.testing.assert_allclose(v, expected, rtol=1e-5)


def test_a_sample_depends_on_its_seed_and_prompt_and_not_on_its_batch():
    def model(params, x, t, cond):
        return params * x + cond["pooled"][:, :1, None, None]

    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    cond = {
        "context": np.ones((5, 2, 2), np.float32),
        "pooled": np.arange(5, dtype=np.float32)[:, None],
    }
    reversed_cond = {name: array[::-1] for name, array in cond.items()}
    keys = seeds(3, np.arange(5))
    for sampling in (Sampling.generator(3, 2.0, 1.0), Sampling.student(2, TIMES)):
        small = Sampler(model, NULL, mesh, 2)
        large = Sampler(model, NULL, mesh, 8)
        args = (jnp.asarray(0.3), keys, cond, (4, 4, 1), sampling)
        np.testing.assert_allclose(small(*args), large(*args), atol=1e-6)
        reverse = (args[0], keys[::-1], reversed_cond, (4, 4, 1), sampling)
        np.testing.assert_allclose(small(*reverse)[::-1], small(*args), atol=1e-6)


def test_a_padded_way_of_sampling_gives_the_same_samples_with_the_program_of_a_longer_one():
    def model(params, x, t, cond):
        return params * x + t[:, None, None, None]

    sampler = Sampler(model, NULL, make_mesh({"data": 1}, jax.devices()[:1]), 4)
    cond = {"context": np.ones((3, 2, 2), "f4"), "pooled": np.ones((3, 1), "f4")}
    args = (seeds(3, np.arange(3)), cond, (4, 4, 1))
    params = jnp.asarray(0.3)
    by_euler = Sampling.student(1, TIMES, sampler="euler")
    for way in (Sampling.student(1, TIMES), by_euler, Sampling.generator(2, 1.0, 1.0)):
        padded = way.padded(5)
        assert len(padded.sigmas) == 5
        np.testing.assert_allclose(
            sampler(params, *args, way), sampler(params, *args, padded), atol=1e-6
        )
    four = Sampling.student(4, TIMES)
    assert four.padded(5) == four
    sampler(params, *args, four)
    # By consistency with 2 and 5 levels, by Euler with 2, 3 and 5.
    assert sampler.program_count == 5


def test_a_sampler_that_there_is_not_is_named_with_those_there_are():
    with pytest.raises(
        UserError, match="sampler 'heun' is not one of euler, dpmpp_2m, consistency: use one"
    ):
        Sampling("heun", (1.0, 0.0))


def test_a_sampler_of_the_table_may_be_chosen(monkeypatch):
    def draw(velocity, noise, sigmas, keys):
        return sample_noise(keys, 0, noise.shape[1:])

    monkeypatch.setitem(SAMPLERS, "noise", SamplerKind(draw, passes=2, keyed=True))
    config = base_config()
    config.synthesize.sampler = "noise"
    way = Sampling.generator(**typed(config).synthesize.sampling)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    cond = {name: np.zeros((3, *array.shape), np.float32) for name, array in NULL.items()}
    samples = Sampler(lambda *_: None, NULL, mesh, 3)({}, np.asarray(KEYS), cond, (4, 4, 1), way)
    np.testing.assert_allclose(samples, NOISE, rtol=1e-6)
    assert way.passes == 4 * config.synthesize.steps
    config.distil.paired_weight = 0.5
    with pytest.raises(UserError, match=r"paired_weight is 0.5 and synthesize.sampler noise"):
        typed(config)


def test_a_sampler_of_students_samples_no_data_generator():
    config = base_config()
    config.synthesize.sampler = "consistency"
    with pytest.raises(UserError, match="'consistency' is not one of euler, dpmpp_2m: use one"):
        typed(config)


def test_seeds_differ_in_every_index():
    rows = np.concatenate([seeds(0, 8, np.arange(50)), seeds(0, 9, np.arange(50)), seeds(1, 8, 0)])
    assert len(np.unique(rows, axis=0)) == 101


def given_a_picture(x, t, cond):
    """Another velocity with each of text and picture, nowhere linear in them."""
    text, picture = expand(cond["shift"], x), cond["channels"]
    return jnp.sin(x + text) * (1 + picture**2) + text * picture - expand(t, x)


@pytest.fixture
def edits():
    """(x, t, cond, null) of samples with a text and a picture."""
    x = jax.random.normal(jax.random.PRNGKey(3), (3, 4, 4, 2))
    cond = {"shift": jnp.asarray([0.3, -0.7, 1.1]), "channels": jnp.cos(2 * x)}
    return x, jnp.asarray([0.2, 0.5, 0.9]), cond, {"shift": jnp.asarray(0.1)}


@pytest.mark.parametrize("scale", [1.0, 2.5, 7.5])
@pytest.mark.parametrize("image_scale", [1.0, 1.5, 0.0])
def test_guidance_on_text_and_image_is_the_formula_of_the_paper(edits, scale, image_scale):
    x, t, cond, null = edits
    text = cond | {"shift": jnp.full(3, 0.1)}
    v_cond, v_image = given_a_picture(x, t, cond), given_a_picture(x, t, text)
    v_none = given_a_picture(x, t, text | {"channels": 0 * x})
    expected = v_none + image_scale * (v_image - v_none) + scale * (v_cond - v_image)
    v = guided(given_a_picture, cond, null, scale, image_scale=image_scale)(x, t)
    np.testing.assert_allclose(v, expected, atol=1e-5)


def test_with_both_scales_at_1_the_velocity_is_the_unguided_one_in_one_pass(edits):
    x, t, cond, null = edits
    batches = []

    def counted(x, t, cond):
        batches.append(len(x))
        return given_a_picture(x, t, cond)

    for image_scale in (1.0, 1.5):
        v = guided(counted, cond, null, 1.0, image_scale=image_scale)(x, t)
        if image_scale == 1:
            np.testing.assert_array_equal(v, given_a_picture(x, t, cond))
    assert batches == [3, 9]


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 15), st.integers(0, 99))
def test_an_image_scale_of_1_is_the_usual_guidance_and_two_of_1_are_none(scale, seed):
    x = jax.random.normal(jax.random.PRNGKey(seed), (3, 4, 4, 2))
    cond = {"shift": x[:, 0, 0, 0], "channels": jnp.cos(2 * x)}
    t, null, ones = jnp.asarray([0.2, 0.5, 0.9]), {"shift": jnp.asarray(0.1)}, jnp.ones(3)
    usual = guided(given_a_picture, cond, null, scale)(x, t)
    # As scales of samples they are not known to be 1, and all three passes are made.
    both = guided(given_a_picture, cond, null, scale * ones, image_scale=ones)(x, t)
    np.testing.assert_allclose(both, usual, atol=1e-4)
    neither = guided(given_a_picture, cond, null, ones, image_scale=ones)(x, t)
    np.testing.assert_allclose(neither, given_a_picture(x, t, cond), atol=1e-5)


def test_samples_may_have_both_scales_of_their_own_inside_of_an_interval(edits):
    x, t, cond, null = edits
    scales, image_scales = jnp.asarray([2.0, 5.0, 3.0]), jnp.asarray([1.5, 1.2, 1.0])
    v = guided(given_a_picture, cond, null, scales, (0.3, 1.0), image_scales)(x, t)
    unguided = given_a_picture(x, t, cond)
    np.testing.assert_allclose(v[0], unguided[0], atol=1e-5)
    for i in (1, 2):
        own = guided(
            given_a_picture, cond, null, float(scales[i]), image_scale=float(image_scales[i])
        )
        np.testing.assert_allclose(v[i], own(x, t)[i], atol=1e-5)


@pytest.mark.parametrize(
    ("guidance", "image_guidance", "passes"), [(1.0, 1.0, 10), (3.0, 1.0, 20), (1.0, 1.5, 30)]
)
def test_guidance_on_the_image_takes_a_third_pass(guidance, image_guidance, passes):
    sampling = Sampling.generator(10, guidance, 1.0, image_guidance=image_guidance)
    assert sampling.passes == passes
