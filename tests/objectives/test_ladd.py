"""The fused LADD step against the method, term by term."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from benchmarks.flops import matrix_flops
from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.diffusion.samplers import linear_sigmas, sample_noise
from ladd_jax.models.sd3.flops import forward_flops
from ladd_jax.models.sd3.transformer import cut_params, mmdit
from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES, R1, Due, real_loss
from ladd_jax.objectives.consistency import Consistency
from ladd_jax.objectives.followed import Followed
from ladd_jax.objectives.terms.ramp import Ramp
from ladd_jax.training.optimizers import Optimizer


def two_program_reference(objective, state, frozen, batch):
    """D step, then G step on the same batch, as two separate programs of plain autodiff.

    Draws the random numbers of the fused step. Where the generator is to see the heads from before,
    the update that takes its noise is the first.
    """
    before = objective.accumulation > 1 and objective.accumulated_heads == "before"
    x_0, cond, critic = batch["latents"], batch["cond"], objective.critic
    key = jax.random.fold_in(state.key, state.step)
    student_key, *renoise_keys = jax.random.split(key, 1 + objective.head_updates)
    x_t, t = objective.student_input(student_key, x_0, state.step)
    own = jnp.zeros(t.shape, bool)
    if objective.own_share:
        own_key = jax.random.fold_in(student_key, 2)
        x_t, own = objective.own_input(own_key, objective.student, state.params, x_t, t, cond)
    grid = (x_0.shape[1] // 2, x_0.shape[2] // 2)
    pooled = cond["pooled"]
    misaligned = np.flatnonzero(np.any(np.asarray(jnp.roll(pooled, 1, 0) != pooled), axis=1))
    form = ADVERSARIAL_LOSSES[objective.loss]
    relativistic = objective.loss == "relativistic"
    count = len(critic.hooked)

    def generate(params):
        return predict_x0(x_t, objective.student(params, x_t, t, cond), t)

    def features(x, eps, t_hat, cond=cond):
        x = interpolate(x, eps, t_hat)
        v, taps = critic.teacher(frozen["teacher"], x, t_hat, cond, tap=lambda _, y: y)
        return [taps[b] for b in critic.hooked], predict_x0(x, v, t_hat)

    def logits(heads, slot, tokens, t_hat, cond=cond):
        one = jax.tree.map(lambda leaf: leaf[slot], heads["heads"])
        return critic.head(one, tokens, grid, t_hat, cond["pooled"])

    def discriminator_loss(heads, fake_noise, real_noise):
        (eps_f, t_f), (eps_r, t_r) = fake_noise, real_noise
        fake, _ = features(generate(state.params), eps_f, t_f)
        real, _ = features(x_0, eps_r, t_r)
        other = jax.tree.map(lambda array: jnp.roll(array, 1, 0), cond)
        wrong, _ = features(x_0, eps_r, t_r, other)
        total = 0.0
        for slot in range(count):
            on_real = logits(heads, slot, real[slot], t_r)
            on_fake = logits(heads, slot, fake[slot], t_f)
            on_wrong = logits(heads, slot, wrong[slot], t_r, other)[misaligned]
            share, penalised = objective.misaligned_share, [(1, real[slot], t_r, cond)]
            if relativistic:
                # R2 is on all that counts as fake.
                penalised.append((1 - share, fake[slot], t_f, cond))
                penalised.append((share, wrong[slot], t_r, other))
                of_fakes = jnp.mean(jax.nn.softplus(on_fake - on_real))
                of_wrong = jnp.mean(jax.nn.softplus(on_wrong - on_real[misaligned]))
            else:
                of_fakes = jnp.mean(form.fake(on_fake))
                of_wrong = jnp.mean(form.fake(on_wrong))
                total += jnp.mean(form.real(on_real))
            total += (1 - share) * of_fakes
            total += share * of_wrong if share else 0.0
            for weight, tokens, *given in penalised:

                def summed(tokens, slot=slot, given=given):
                    return jnp.sum(logits(heads, slot, tokens, *given))

                penalty = jnp.mean(jnp.sum(jnp.square(jax.grad(summed)(tokens)), axis=(1, 2)))
                total += 0.5 * objective.r1_gamma * weight * penalty
        return total / count

    heads, heads_optimizer = state.heads, state.heads_optimizer
    heads_gradient = jax.jit(jax.grad(discriminator_loss))
    *early, last = renoise_keys
    for renoise_key in [last, *early] if before else renoise_keys:
        fake_noise, real_noise = objective.renoise(renoise_key, x_0, t)
        updates, heads_optimizer = objective.heads_optimizer.build().update(
            heads_gradient(heads, fake_noise, real_noise), heads_optimizer, heads
        )
        heads = optax.apply_updates(heads, updates)
    (eps_f, t_f), (eps_r, t_r) = objective.renoise(last, x_0, t)
    seen = state.heads if before else heads

    def generator_loss(params):
        x0_hat = generate(params)
        fake, teacher_x0 = features(x0_hat, eps_f, t_f)
        real, _ = features(x_0, eps_r, t_r)

        def adversarial(slot):
            on_fake = logits(seen, slot, fake[slot], t_f)
            if relativistic:
                return jnp.mean(jax.nn.softplus(logits(seen, slot, real[slot], t_r) - on_fake))
            return jnp.mean(form.student(on_fake))

        total = sum(adversarial(slot) for slot in range(count))
        weight = (1 - t_f)[:, None, None, None]
        distance = jnp.square(x0_hat - jax.lax.stop_gradient(teacher_x0))
        total = total / count + objective.distillation_weight * jnp.mean(weight * distance)
        snr = (jnp.square((1 - t) / t) * ~own)[:, None, None, None]
        kept = jnp.mean(snr * jnp.square(x0_hat - x_0))
        return total + objective.reconstruction_weight * kept

    gradient = jax.jit(jax.grad(generator_loss))(state.params)
    updates, _ = objective.optimizer.build().update(gradient, state.optimizer, state.params)
    return optax.apply_updates(state.params, updates), heads


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "lsgan", "distillation_weight": 2.5, "head_updates": 3,
         "reconstruction_weight": 0.5, "own_share": 0.5, "renoise_slope": 2.0,
         "probabilities": (0.1, 0.3, 0.3, 0.3)},
        pytest.param(
            {"loss": "softplus", "same_renoise": False, "head_updates": 2, "misaligned_share": 0.3,
             "hooked_blocks": (1,), "r1_gamma": 1e-2},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"accumulation": 2, "accumulated_heads": "before", "head_updates": 3, "r1_gamma": 1e-2,
             "distillation_weight": 2.5, "misaligned_share": 0.3, "hooked_blocks": (1,)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"loss": "relativistic", "misaligned_share": 0.3, "same_renoise": False,
             "r1_gamma": 1e-2, "head_updates": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"accumulation": 4, "head_updates": 2, "misaligned_share": 0.3, "same_renoise": False},
            marks=pytest.mark.slow,
        ),
    ],
    ids="-".join,
)  # fmt: skip
def test_the_fused_step_is_the_two_program_step(changes):
    # With a large epsilon Adam's first update is nearly proportional to the gradient; with a small
    # one it is the gradient's sign, which hides its scale and blows up its rounding.
    optimizer = Optimizer(1.0, epsilon=1.0)
    objective = tiny.ladd(optimizer=optimizer, heads_optimizer=optimizer, **changes)
    state, teacher = tiny.ladd_state(objective)
    batch = tiny.share_a_prompt(tiny.batch())
    fused, _ = tiny.step(objective)(state, teacher, batch)
    params, heads = two_program_reference(objective, state, teacher, batch)
    fused, params, heads, state = jax.device_get((fused, params, heads, state))
    for new, reference, old in (
        (fused.heads, heads, state.heads), (fused.params, params, state.params)
    ):  # fmt: skip
        paths = jax.tree_util.tree_leaves_with_path(reference)
        for (path, wanted), made, start in zip(
            paths, jax.tree.leaves(new), jax.tree.leaves(old), strict=True
        ):
            # Leaf by leaf, against the leaf's own update. The start's rounding is all that an
            # update can be off by: a float32 near 1 is known to 1e-7.
            np.testing.assert_allclose(
                made - start, wanted - start, rtol=1e-3,
                atol=1e-3 * np.max(np.abs(wanted - start)) + 3e-7,
                err_msg=jax.tree_util.keystr(path),
            )  # fmt: skip
        moved = jax.tree.map(np.subtract, reference, old)
        assert max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(moved)) > 1e-4


@pytest.mark.slow
def test_a_teacher_cut_after_the_last_hooked_block_gives_the_same_update_for_less():
    # One block of each kind is kept, and one of each is cut off.
    whole_config = tiny.mmdit_config(depth=4, dual_attention=(0, 2), qk_norm=True)
    cut_config = dataclasses.replace(whole_config, cut=2)
    optimizer = Optimizer(1.0, epsilon=1.0)
    changes = dict(optimizer=optimizer, heads_optimizer=optimizer, hooked_blocks=(0, 1))
    # The student is the smaller one, to compile faster.
    whole = tiny.ladd(whole_config, student=mmdit(tiny.mmdit_config()), **changes)
    small = mmdit(cut_config)
    cut = dataclasses.replace(whole, critic=dataclasses.replace(whole.critic, teacher=small))
    state, teacher = tiny.ladd_state(whole)
    kept = {"teacher": cut_params(teacher["teacher"], small.shapes)}
    assert jax.tree.map(jnp.shape, kept["teacher"]) == jax.tree.map(jnp.shape, small.shapes)
    assert "last_block" not in kept["teacher"] and "final" not in kept["teacher"]

    results = []
    for objective, frozen in ((whole, teacher), (cut, kept)):
        after, metrics = tiny.step(objective)(state, frozen, tiny.batch())
        moved = jax.tree.map(jnp.subtract, (after.params, after.heads), (state.params, state.heads))
        results.append((moved, metrics, matrix_flops(objective.step, state, frozen, tiny.batch())))
    (wanted, metrics, all_flops), (made, cut_metrics, flops) = results
    assert tiny.gradient_difference(made, wanted) < 1e-4
    assert all(max(jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree)) > 1e-4 for tree in wanted)
    assert metrics.keys() == cut_metrics.keys()
    units = cut.forward_units[1]
    spared = forward_flops(whole_config, 8, 4, tiny.T) - forward_flops(cut_config, 8, 4, tiny.T)
    # The whole teacher asks at each block for a head, too.
    assert all_flops - flops > 0.95 * units * tiny.B * spared


def test_a_network_that_is_cut_has_no_velocity_to_ask_for():
    config = tiny.mmdit_config(depth=3, cut=1)
    model = mmdit(config)
    batch = tiny.batch()
    with pytest.raises(ValueError, match="cut to 1 of 3 blocks has no velocity"):
        model(model.shapes, batch["latents"], jnp.zeros(tiny.B), batch["cond"])
    with pytest.raises(ValueError, match="cut is 3 of a depth of 3"):
        tiny.mmdit_config(depth=3, cut=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"student_interval": 2, "refreshed_heads": 0.5, "r1_noise": 0.1}],
    ids=["plain", "a student that waits"],
)
def test_parameters_in_bfloat16_stay_so(changes):
    config = tiny.mmdit_config(param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    half = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16}
    objective = tiny.ladd(config, half, r1_gamma=1e-2, misaligned_share=0.1, **changes)
    teacher = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), tiny.random_params(objective.critic.teacher)
    )
    state, frozen = jax.jit(objective.init)(jax.random.PRNGKey(0), teacher), {"teacher": teacher}
    compiled = jax.jit(objective.step).lower(state, frozen, tiny.batch()).compile()
    after, _ = compiled(state, frozen, tiny.batch())
    # A compiled program takes no other dtypes than those that it was compiled for. In the second
    # step a student that waits is updated.
    after, metrics = compiled(after, frozen, tiny.batch())
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(
        lambda leaf: leaf.dtype, state
    )
    assert np.isfinite(float(metrics["loss/generator"]))


def test_the_generator_sees_the_updated_heads():
    objective = tiny.ladd(heads_optimizer=Optimizer(0.5))
    state, teacher = tiny.ladd_state(objective)
    frozen_heads = dataclasses.replace(objective, heads_optimizer=Optimizer(0.0))
    moved, _ = tiny.step(objective)(state, teacher, tiny.batch())
    still, _ = tiny.step(frozen_heads)(state, teacher, tiny.batch())
    assert tiny.max_difference(moved.params, still.params) > 1e-5


def test_the_discriminator_update_leaves_the_student_alone():
    objective = tiny.ladd(optimizer=Optimizer(0.0))
    state, teacher = tiny.ladd_state(objective)
    after, _ = tiny.step(objective)(state, teacher, tiny.batch())
    assert tiny.max_difference(after.params, state.params) == 0
    assert tiny.max_difference(after.heads, state.heads) > 1e-4


def test_the_generator_update_leaves_the_heads_alone():
    objective = tiny.ladd(heads_optimizer=Optimizer(0.0))
    state, teacher = tiny.ladd_state(objective)
    after, metrics = tiny.step(objective)(state, teacher, tiny.batch())
    assert tiny.max_difference(after.heads, state.heads) == 0
    assert float(metrics["gradient_norm/student"]) > 0


def test_every_parameter_of_the_student_receives_a_gradient():
    objective = tiny.ladd()
    state, teacher = tiny.ladd_state(objective)
    after, _ = tiny.step(objective)(state, teacher, tiny.batch())
    difference = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), after.params, state.params)
    moved = [
        (jax.tree_util.keystr(path), float(size))
        for path, size in jax.tree_util.tree_flatten_with_path(difference)[0]
    ]
    still = [path for path, size in moved if size == 0]
    assert not still


def test_the_teacher_is_an_argument_and_stays_as_it_is():
    objective = tiny.ladd()
    state, teacher = tiny.ladd_state(objective)
    before = jax.tree.map(np.asarray, teacher)
    step = tiny.donating_step(objective)
    largest = max(leaf.size for leaf in jax.tree.leaves(teacher))
    constants = [c for c in jax.make_jaxpr(objective.step)(state, teacher, tiny.batch()).consts]
    assert all(np.size(c) < largest for c in constants)
    state, _ = step(state, teacher, tiny.batch())
    step(state, teacher, tiny.batch())
    assert tiny.max_difference(teacher, before) == 0


def test_donation_does_not_delete_a_teacher_that_the_student_started_from():
    objective = tiny.ladd()
    teacher = tiny.random_params(objective.critic.teacher)
    state, frozen = objective.init(jax.random.PRNGKey(1), teacher), {"teacher": teacher}
    state, _ = tiny.donating_step(objective)(state, frozen, tiny.batch())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(teacher))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state.ema))


def test_the_student_is_fed_pure_noise_only_at_time_one():
    objective = tiny.ladd(probabilities=(0.25, 0.25, 0.25, 0.25))
    x_0 = 100 + jnp.zeros((64, 4, 4, 2))
    x_t, t = objective.student_input(jax.random.PRNGKey(0), x_0, jnp.zeros((), jnp.int32))
    for time in (1.0, 0.75, 0.5, 0.25):
        mean = float(jnp.mean(x_t[t == time]))
        assert mean == pytest.approx(100 * (1 - time), abs=1.0)


def test_the_first_steps_draw_from_the_warm_up_probabilities():
    objective = tiny.ladd(warmup_steps=500)
    x_0 = jnp.zeros((512, 2, 2, 2))
    _, early = objective.student_input(jax.random.PRNGKey(0), x_0, jnp.asarray(499))
    _, late = objective.student_input(jax.random.PRNGKey(0), x_0, jnp.asarray(500))
    assert set(np.unique(early)) == {0.25, 0.5}
    assert np.mean(late == 1.0) == pytest.approx(0.7, abs=0.08)


def test_a_slope_lowers_the_mean_of_t_hat_with_t():
    objective = tiny.ladd(renoise_mean=1.0, renoise_std=0.5, renoise_slope=2.0)
    x_0 = jnp.zeros((4096, 1, 1, 1))
    for t in (1.0, 0.25):
        noise, _ = objective.renoise(jax.random.PRNGKey(0), x_0, jnp.full(4096, t))
        logits = jnp.log(noise.t_hat / (1 - noise.t_hat))
        assert float(jnp.mean(logits)) == pytest.approx(1.0 - 2.0 * (1 - t), abs=0.03)
        assert float(jnp.std(logits)) == pytest.approx(0.5, abs=0.03)


def test_at_time_one_a_share_of_the_inputs_is_the_noise_that_the_samples_were_made_of():
    objective = tiny.ladd(paired_weight=1.0, paired_share=0.5, own_share=0.5)
    plain = dataclasses.replace(objective, paired_weight=0.0)
    state, frozen = tiny.ladd_state(objective)
    batch = tiny.batch(size=64) | tiny.noise_keys(size=64)
    (drawn, _), (other, _) = objective.draw(state, frozen, batch), plain.draw(state, frozen, batch)
    assert other.paired is None
    paired = np.asarray(drawn.paired)
    assert not np.any(paired & (drawn.t < 1)) and 0.3 < np.mean(paired[drawn.t == 1]) < 0.7
    noise = sample_noise(batch["noise_keys"], 0, (8, 4, 2))
    np.testing.assert_array_equal(drawn.x_t[paired], noise[paired])
    # Nothing else is drawn in another way.
    np.testing.assert_array_equal(drawn.x_t[~paired], other.x_t[~paired])


def test_own_inputs_are_what_the_consistency_sampler_comes_to():
    objective = tiny.ladd(own_share=0.6)
    (state, _), batch = tiny.ladd_state(objective), tiny.batch()
    x_0, cond = batch["latents"], batch["cond"]
    t = jnp.asarray(np.resize([1.0, 0.75, 0.5, 0.25], len(x_0)), jnp.float32)
    x_t = interpolate(x_0, jax.random.normal(jax.random.PRNGKey(1), x_0.shape), t)
    key = jax.random.PRNGKey(0)
    mixed, own = objective.own_input(key, objective.student, state.params, x_t, t, cond)
    same = jnp.all(mixed == x_t, axis=(1, 2, 3))
    np.testing.assert_array_equal(same, ~own)
    assert own.any() and not own[t == 1].any()

    # The chain by hand, with the noises of that key.
    noises = jax.random.normal(jax.random.split(key)[0], (len(x_0), 4, *x_0.shape[1:]))
    x, levels = noises[:, 0], (1.0, 0.75, 0.5, 0.25)
    for place, (now, after) in enumerate(zip(levels, levels[1:], strict=False), start=1):
        time = jnp.full(len(x), now)
        x0_hat = predict_x0(x, objective.student(state.params, x, time, cond), time)
        x = interpolate(x0_hat, noises[:, place], jnp.full(len(x), after))
        chosen = np.asarray(own & (t == after))
        np.testing.assert_allclose(mixed[chosen], x[chosen], atol=1e-4)

    halves = dataclasses.replace(objective, accumulation=2)
    again, same_own = halves.own_input(key, halves.student, state.params, x_t, t, cond)
    np.testing.assert_array_equal(own, same_own)
    np.testing.assert_allclose(again, mixed, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"own_share": 5.0}, "own_share is 5.0"),
        ({"own_share": 0.5, "timesteps": (1.0,), "probabilities": (1.0,),
          "warmup_probabilities": (1.0,)}, "0 where there is one time"),
        ({"reconstruction_weight": -1.0}, "use 0 or more"),
        ({"paired_weight": 1.0, "timesteps": (0.5,), "probabilities": (1.0,),
          "warmup_probabilities": (1.0,)}, "paired_weight is 1.0 and 1, the only"),
        ({"paired_weight": 1.0, "probabilities": (0.0, 0.5, 0.25, 0.25)}, "is never drawn"),
        ({"paired_weight": 1.0, "paired_share": 0.0}, "use a share above 0"),
        ({"paired_share": 2.0}, "paired_share is 2.0"),
        ({"moments_weight": 1.0, "same_renoise": False}, "compared under the same noise"),
        ({"r1_noise": 0.1}, "r1_gamma 0, so that there is no penalty"),
        ({"ramp": Ramp(steps=(0, 9), moments=(0.0, 1.0))}, "moments_weight 0, which no factor"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny.ladd(**changes)


def test_real_and_fake_share_their_renoising_only_when_told_to():
    for same in (True, False):
        objective = tiny.ladd(same_renoise=same)
        (eps_f, t_f), (eps_r, t_r) = objective.renoise(
            jax.random.PRNGKey(0), jnp.zeros((8, 4, 4, 2)), jnp.ones(8)
        )
        assert bool(jnp.all(eps_f == eps_r)) is same
        assert bool(jnp.all(t_f == t_r)) is same


def test_real_is_the_noised_latent_and_not_noise_mixed_with_noise():
    # A perfect discriminator input: with t_hat near 0 the teacher must see the latents themselves.
    seen = []
    objective = tiny.ladd(tiny.mmdit_config(depth=1), renoise_mean=-40.0)
    model = objective.critic.teacher

    class Spy(type(model)):
        def __call__(self, params, x, *args, **kwargs):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
            return super().__call__(params, x, *args, **kwargs)

    spy = copy.copy(model)
    spy.__class__ = Spy
    objective = dataclasses.replace(
        objective, critic=dataclasses.replace(objective.critic, teacher=spy)
    )
    state, teacher = tiny.ladd_state(objective)
    batch = tiny.batch()
    jax.block_until_ready(jax.jit(objective.step)(state, teacher, batch))
    jax.effects_barrier()
    assert any(np.allclose(x, batch["latents"], atol=1e-5) for x in seen)


def test_the_loss_is_per_location():
    # Two locations with logits +3 and -3 have a mean of 0. The hinge of the mean would be 1 with a
    # gradient on both; per location it is (0 + 4) / 2 on real samples.
    logits = jnp.asarray([[[3.0, -3.0]]])
    value, _ = real_loss(ADVERSARIAL_LOSSES["hinge"], R1(0.0), Due(jnp.asarray(0)))(
        lambda tokens: logits, jnp.zeros((1, 2, 4))
    )
    assert float(value) == pytest.approx(2.0)


def penalised():
    """State, frozen trees and step of an objective with a penalty every fourth step."""
    objective = tiny.ladd(r1_gamma=1e-2, r1_interval=4, heads_optimizer=Optimizer(0.0))
    return *tiny.ladd_state(objective), tiny.step(objective)


def test_the_penalty_comes_at_its_interval_with_its_weight():
    state, teacher, step = penalised()
    penalties = []
    for _ in range(5):
        state, metrics = step(state, teacher, tiny.batch())
        penalties.append(float(metrics["r1"]))
    # NaN where none was computed, which the mean over steps leaves out.
    assert [p > 0 for p in penalties] == [True, False, False, False, True]
    assert np.isnan(penalties[1:4]).all()


@pytest.mark.slow
def test_the_heads_learn_at_their_own_rate_with_their_own_betas():
    objective = tiny.ladd()
    state, teacher = tiny.ladd_state(objective)

    def moved(optimizer):
        other = dataclasses.replace(objective, heads_optimizer=optimizer)
        after, _ = tiny.step(other)(state, teacher, tiny.batch())
        return jax.tree.map(jnp.subtract, after.heads, state.heads)

    one, two = moved(Optimizer(1e-3)), moved(Optimizer(2e-3))
    assert tiny.max_difference(jax.tree.map(lambda x: 2 * x, one), two) < 1e-3
    other = dataclasses.replace(objective, heads_optimizer=Optimizer(1e-3, beta2=0.5))
    after, _ = tiny.step(other)(state, teacher, tiny.batch())
    moments = jax.tree.leaves(after.heads_optimizer[0].nu)
    default, _ = tiny.step(objective)(state, teacher, tiny.batch())
    ratio = moments[0] / jax.tree.leaves(default.heads_optimizer[0].nu)[0]
    np.testing.assert_allclose(ratio, 50.0, rtol=1e-3)


def test_the_moving_average_moves_and_lags_the_student():
    objective = tiny.ladd()
    state, teacher = tiny.ladd_state(objective)
    start = state.params
    step = tiny.step(objective)
    for _ in range(3):
        state, _ = step(state, teacher, tiny.batch())
    ema = tiny.max_difference(state.ema, start)
    assert 0 < ema < tiny.max_difference(state.params, start)


def test_more_head_updates_take_fresh_noise_and_one_optimizer_step_each():
    objective = tiny.ladd(head_updates=3)
    state, teacher = tiny.ladd_state(objective)
    after, metrics = tiny.step(objective)(state, teacher, tiny.batch())
    assert int(after.heads_optimizer[0].count) == 3
    assert int(after.optimizer[0].count) == 1
    assert np.isfinite(float(metrics["loss/discriminator"]))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"head_updates": 2, "consistency_weight": 1.0}, marks=pytest.mark.slow),
        pytest.param({"accumulation": 2, "r1_gamma": 1e-2}, marks=pytest.mark.slow),
        pytest.param(
            {"accumulation": 2, "accumulated_heads": "before", "loss": "relativistic"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_a_student_with_an_interval_waits_for_it_while_its_heads_learn(changes):
    if changes.get("consistency_weight"):
        network = tiny.network(tiny.mmdit_config())
        held = Consistency(network, Followed(network, guidance=2.0), linear_sigmas(4))
        changes = changes | {"consistency": held}
    # In proportion to a gradient, which two orders of the same sums agree on.
    optimizers = {"optimizer": tiny.PROPORTIONAL, "heads_optimizer": tiny.PROPORTIONAL}
    plain, waiting = (tiny.ladd(student_interval=n, **optimizers, **changes) for n in (1, 2))
    state, frozen = tiny.ladd_state(plain)
    frozen["null"] = jax.tree.map(lambda x: 0 * x[0], tiny.batch()["cond"])

    alone, metrics = tiny.step(waiting)(state, frozen, tiny.batch())
    both, known = tiny.step(plain)(state, frozen, tiny.batch())
    for name in ("params", "ema", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(alone, name), getattr(state, name))
    assert int(alone.step) == 1 and not float(metrics["skipped"])
    updates = [jax.tree.map(jnp.subtract, after.heads, state.heads) for after in (alone, both)]
    # The heads of a step in micro-batches that sees those from before update in another order.
    if "accumulated_heads" not in changes:
        assert tiny.gradient_difference(*updates) < 1e-4
    assert metrics.keys() - {"student_updated"} == known.keys()
    assert float(metrics.pop("student_updated")) == 0
    unknown = {name for name in metrics if np.isnan(metrics[name]).all()}
    unknown -= {name for name in known if np.isnan(known[name]).all()}
    assert unknown == {n for n in known if n.startswith("loss/")} - {"loss/discriminator"} | {
        "gradient_norm/student"
    }

    after, metrics = tiny.step(waiting)(alone, frozen, tiny.batch())
    wanted, known = tiny.step(plain)(alone, frozen, tiny.batch())
    for name in ("params", "ema", "heads"):
        updates = [
            jax.tree.map(jnp.subtract, getattr(new, name), getattr(alone, name))
            for new in (after, wanted)
        ]
        assert tiny.gradient_difference(*updates) < 1e-4
        assert tiny.max_difference(updates[0], updates[1]) < 1e-4
    assert np.isfinite(float(metrics["loss/generator"]))


def test_refreshed_heads_are_new_ones_and_the_others_are_as_they_would_be():
    plain, all_new, some = (tiny.ladd(refreshed_heads=share) for share in (0.0, 1.0, 0.5))
    state, frozen = tiny.ladd_state(plain)
    kept, _ = tiny.step(plain)(state, frozen, tiny.batch())
    new, _ = tiny.step(all_new)(state, frozen, tiny.batch())
    mixed, _ = tiny.step(some)(state, frozen, tiny.batch())
    jax.tree.map(np.testing.assert_array_equal, new.params, kept.params)

    def kernels(state):
        return np.asarray(state.heads["heads"]["entry"]["convolution"]["kernel"])

    for ours, theirs, fresh in zip(kernels(mixed), kernels(kept), kernels(new), strict=True):
        assert (ours == theirs).all() or (ours == fresh).all()
    assert not (kernels(new) == kernels(kept)).any()
    # Those of the next step are others.
    again, _ = tiny.step(all_new)(new, frozen, tiny.batch())
    assert not (kernels(again) == kernels(new)).any()
    shares, step = [], tiny.step(some)
    for number in range(8):
        at = dataclasses.replace(state, step=jnp.asarray(number, jnp.int32))
        after, _ = step(at, frozen, tiny.batch())
        plainly, _ = tiny.step(plain)(at, frozen, tiny.batch())
        shares += [(a == b).all() for a, b in zip(kernels(after), kernels(plainly), strict=True)]
    assert 2 <= sum(shares) <= 14


@pytest.mark.slow
def test_rematerialisation_changes_memory_and_not_the_update():
    results = []
    for remat in ("none", "dots_attention", "full"):
        objective = tiny.ladd(tiny.mmdit_config(remat=remat))
        state, teacher = tiny.ladd_state(objective)
        after, _ = tiny.step(objective)(state, teacher, tiny.batch())
        results.append(after)
    assert tiny.max_difference(results[1].params, results[0].params) < 1e-5
    assert tiny.max_difference(results[2].params, results[0].params) < 1e-5


def test_metrics_hold_each_head_and_each_band():
    state, teacher, step = penalised()
    _, metrics = step(state, teacher, tiny.batch())
    for name in ("logit/real", "logit/fake", "accuracy/head"):
        assert metrics[name].shape == (2,)
    bands = [metrics[name] for name in metrics if name.startswith("accuracy/t_hat")]
    assert len(bands) == 4 and all(0 <= float(b) <= 1 for b in bands if np.isfinite(b))
    for name in ("loss/generator", "loss/discriminator", "r1", "x0_hat_std"):
        assert np.isfinite(float(metrics[name]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "hing"}, "hinge, softplus, lsgan"),
        ({"probabilities": (0.5, 0.5)}, "4 numbers that sum to 1"),
        ({"hooked_blocks": (0, 3)}, "block 3 of a teacher of 2"),
        ({"head_updates": 0}, "head_updates is 0: use 1 or more"),
        ({"student_interval": 0}, "student_interval is 0: use 1 or more"),
        ({"refreshed_heads": 1.5}, "refreshed_heads is 1.5"),
        ({"misaligned_share": 1.0}, "1.0 is not a share"),
        ({"accumulation": 0}, "accumulation is 0: use 1 or more"),
        ({"accumulated_heads": "after"}, "'after' is not one of updated, before"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny.ladd(**changes)
