"""Each term of the student's loss against its formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from ladd_jax.objectives.ladd_settings import LADDSettings
from ladd_jax.objectives.terms import terms_of
from ladd_jax.objectives.terms.adversarial import Adversarial
from ladd_jax.objectives.terms.base import (
    FEATURE_GRADIENT,
    PREDICTED_X0,
    REAL_FEATURES,
    Seen,
    total,
)
from ladd_jax.objectives.terms.distillation import Distillation
from ladd_jax.objectives.terms.moments import Moments
from ladd_jax.objectives.terms.paired import Paired
from ladd_jax.objectives.terms.ramp import Ramp
from ladd_jax.objectives.terms.reconstruction import Reconstruction
from ladd_jax.training.optimizers import Optimizer

TERMS = {
    "adversarial": Adversarial(ADVERSARIAL_LOSSES["softplus"]),
    "distillation": Distillation(2.5),
    "moments": Moments(3.0, t_hat=0.7),
    "paired": Paired(0.3),
    "reconstruction": Reconstruction(0.5, gamma=0.6),
}


def objective(depth=3, **changes):
    optimizer = Optimizer(1.0, epsilon=1.0)
    fields = {"optimizer": optimizer, "heads_optimizer": optimizer}
    # Real samples are re-noised on their own, which a term must not take for the fakes' noise.
    return tiny.ladd(tiny.mmdit_config(depth=depth), same_renoise=False, **(fields | changes))


def formulas(ladd, frozen, drawn, heads):
    """Each term as a function of the student's x_0, by the teacher's forward pass alone."""
    critic, cond = ladd.critic, drawn.cond

    def look(x_0, noise):
        x = interpolate(x_0, noise.eps, noise.t_hat)
        v, taps = critic.teacher(frozen["teacher"], x, noise.t_hat, cond, tap=lambda _, y: y)
        return predict_x0(x, v, noise.t_hat), taps[jnp.asarray(critic.hooked)]

    def adversarial(x0_hat):
        _, features = look(x0_hat, drawn.fake_noise)
        grid, summary = critic.teacher.grid(x0_hat), critic.teacher.summary(cond)
        values = []
        for slot, tokens in enumerate(features):
            one = jax.tree.map(lambda leaf, slot=slot: leaf[slot], heads["heads"])
            logits = critic.head(one, tokens, grid, drawn.fake_noise.t_hat, summary)
            values.append(jnp.mean(jax.nn.softplus(-logits)))
        return sum(values) / len(values)

    def distillation(x0_hat):
        wanted = jax.lax.stop_gradient(look(x0_hat, drawn.fake_noise)[0])
        weight = (1 - drawn.fake_noise.t_hat)[:, None, None, None]
        return jnp.mean(weight * (x0_hat - wanted) ** 2)

    def moments(x0_hat):
        fake, real = look(x0_hat, drawn.fake_noise)[1], look(drawn.x_0, drawn.real_noise)[1]
        distance = 0.0
        for block in range(len(fake)):
            squared = jnp.sum(jnp.mean(fake[block] - real[block], axis=1) ** 2, axis=-1)
            huber = jnp.sqrt(squared + 1e-6) - 1e-3
            distance += jnp.sum(huber * (drawn.fake_noise.t_hat <= 0.7)) / len(huber)
        return distance

    def reconstruction(x0_hat):
        snr = ((1 - drawn.t) / drawn.t)[:, None, None, None] ** 2
        weight = jnp.minimum(snr, 0.6) * ~drawn.own[:, None, None, None]
        return jnp.mean(weight * (x0_hat - drawn.x_0) ** 2)

    def paired(x0_hat):
        distance = jnp.abs(x0_hat - drawn.x_0)
        smooth = jnp.where(distance < 1, distance**2 / 2, distance - 0.5)
        return jnp.mean(drawn.paired[:, None, None, None] * smooth)

    return {
        "adversarial": adversarial,
        "distillation": distillation,
        "moments": moments,
        "paired": paired,
        "reconstruction": reconstruction,
    }


@pytest.fixture(scope="module")
def compared():
    """By term, its value and gradient and those of its formula; and those of the sum of all."""
    ladd = objective(
        terms=tuple(TERMS.values()),
        hooked_blocks=(0, 2),
        own_share=0.4,
        paired_weight=0.3,
        paired_share=0.8,
        probabilities=(0.4, 0.2, 0.2, 0.2),
    )
    state, frozen = tiny.ladd_state(ladd)

    @jax.jit
    def run(state, frozen, batch):
        drawn, _ = ladd.draw(state, frozen, batch)
        x0_hat = ladd.predict(state.params, frozen, drawn)
        fake, real = ladd.open(frozen, drawn, x0_hat)
        seen = Seen(
            x0_hat=x0_hat,
            x_0=drawn.x_0,
            x_t=drawn.x_t,
            t=drawn.t,
            own=drawn.own,
            paired=drawn.paired,
            cond=drawn.cond,
            noise=drawn.fake_noise,
            heads=state.heads,
            fake=fake,
            real=real,
        )
        ours = {name: term(seen) for name, term in TERMS.items()}
        theirs = {
            name: jax.value_and_grad(formula)(x0_hat)
            for name, formula in formulas(ladd, frozen, drawn, state.heads).items()
        }
        return ours, theirs, total(ladd.loss_terms, seen, Ramp(), state.step)

    return run(state, frozen, tiny.batch() | tiny.noise_keys())


@pytest.mark.parametrize("name", TERMS)
def test_a_term_has_the_value_and_the_gradient_of_its_formula(compared, name):
    (value, gradient), (wanted, wanted_gradient) = compared[0][name], compared[1][name]
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert gradient.shape == tiny.batch()["latents"].shape
    assert tiny.max_difference(gradient, wanted_gradient) < 1e-4
    assert float(jnp.max(jnp.abs(gradient))) > 1e-6


def test_the_students_loss_is_the_weighted_sum_and_its_metrics_are_without_weights(compared):
    ours, _, (gradient, metrics) = compared
    wanted = sum(term.weight * ours[name][1] for name, term in TERMS.items())
    assert tiny.max_difference(gradient, wanted) < 1e-6
    for name, term in TERMS.items():
        assert float(metrics[f"loss/{term.name}"]) == float(ours[name][0])
    assert len(metrics) == len(TERMS)


def test_a_weight_goes_from_its_first_factor_to_its_last_between_two_steps(compared):
    ramp = Ramp(steps=(100, 300), generator=(0.0, 1.0), paired=(1.0, 0.5))
    for name, weight, wanted in (
        ("generator", 1.0, {0: 0.0, 100: 0.0, 200: 0.5, 300: 1.0, 900: 1.0}),
        ("paired", 4.0, {0: 4.0, 100: 4.0, 200: 3.0, 300: 2.0, 900: 2.0}),
    ):
        for step, value in wanted.items():
            assert float(ramp.weight(name, weight, jnp.asarray(step))) == pytest.approx(value)
    assert ramp.weight("moments", 0.3, jnp.asarray(0)) == 0.3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": (9, 3)}, "the first not after the second"),
        ({"steps": (0, 9), "paired": (-1.0, 1.0)}, "use two numbers of 0 or more"),
        ({"moments": (0.0, 1.0)}, "has no steps to change it in"),
    ],
)
def test_a_ramp_that_means_nothing_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Ramp(**changes)


def test_a_term_whose_factor_is_zero_moves_nothing_until_it_grows():
    plain = objective(depth=1)
    faded = dataclasses.replace(plain, ramp=Ramp(steps=(2, 4), generator=(0.0, 1.0)))
    state, frozen = tiny.ladd_state(plain)
    step, norms = tiny.step(faded), []
    for number in range(4):
        at = dataclasses.replace(state, step=jnp.asarray(number, jnp.int32))
        norms.append(float(step(at, frozen, tiny.batch())[1]["gradient_norm/student"]))
    assert norms[:3] == [0.0, 0.0, 0.0] and norms[3] > 0


def test_settings_name_the_terms_and_these_what_they_need():
    (adversarial,) = terms_of(LADDSettings(loss="lsgan"))
    assert adversarial == Adversarial(ADVERSARIAL_LOSSES["lsgan"]) and not adversarial.needs
    _, distillation = terms_of(LADDSettings(distillation_weight=2.5))
    assert (distillation.weight, distillation.needs) == (2.5, {PREDICTED_X0})
    (_, reconstruction) = terms_of(LADDSettings(reconstruction_weight=0.3))
    assert reconstruction == Reconstruction(0.3) and not reconstruction.needs
    (_, held) = terms_of(LADDSettings(reconstruction_weight=0.3, reconstruction_gamma=5.0))
    assert held == Reconstruction(0.3, gamma=5.0)
    (_, paired) = terms_of(LADDSettings(paired_weight=0.3))
    assert paired == Paired(0.3) and not paired.needs
    (_, moments) = terms_of(LADDSettings(moments_weight=0.3, moments_t_hat=0.6))
    assert moments == Moments(0.3, 0.6)
    assert moments.needs == {REAL_FEATURES, FEATURE_GRADIENT}
    (relativistic,) = terms_of(LADDSettings(loss="relativistic"))
    assert relativistic.needs == {REAL_FEATURES}
    assert objective(distillation_weight=2.5).needs == {PREDICTED_X0}
    assert objective(terms=(*terms_of(LADDSettings()), Moments(1.0))).needs == moments.needs


def test_features_of_real_samples_that_are_kept_for_a_term_leave_the_heads_update_as_it_is():
    plain = objective(depth=1, r1_gamma=1e-2)
    moments = dataclasses.replace(plain, terms=(*plain.loss_terms, Moments(100.0)))
    state, frozen = tiny.ladd_state(plain)
    results = [jax.jit(ladd.step)(state, frozen, tiny.batch()) for ladd in (plain, moments)]
    (one, metrics), (other, other_metrics) = results
    heads = [jax.tree.map(jnp.subtract, after.heads, state.heads) for after in (one, other)]
    assert tiny.gradient_difference(*heads) < 1e-4
    students = [jax.tree.map(jnp.subtract, after.params, state.params) for after in (one, other)]
    assert tiny.gradient_difference(*students) > 1e-2
    assert other_metrics.keys() - metrics.keys() == {"loss/moments"}


def test_a_term_that_asks_for_the_velocity_of_a_teacher_that_is_cut_is_refused():
    whole = objective(hooked_blocks=(0,), distillation_weight=2.5)
    small = mmdit(tiny.mmdit_config(depth=3, cut=1))
    cut = dataclasses.replace(whole, critic=dataclasses.replace(whole.critic, teacher=small))
    state = jax.eval_shape(cut.init, jax.random.PRNGKey(0), cut.student.shapes)
    with pytest.raises(ValueError, match="the teacher is cut and predicts no x_0"):
        jax.eval_shape(cut.step, state, {"teacher": small.shapes}, tiny.batch())
