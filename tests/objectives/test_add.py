"""ADD: its critic in pixels against a direct formula, and its step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from benchmarks.flops import matrix_flops
from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.errors import UserError
from ladd_jax.models.dinov2 import Dinov2, Dinov2Config, normalised
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.models.resize import bicubic
from ladd_jax.models.sd3.autoencoder import AutoencoderConfig
from ladd_jax.models.sd3.decoder import decoder_of
from ladd_jax.models.sd3.flops import forward_flops
from ladd_jax.objectives.add import ADD
from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from ladd_jax.objectives.critics.base import Noise
from ladd_jax.objectives.critics.pixels import PixelCritic
from ladd_jax.training.optimizers import Optimizer

HOOKED = (0, 2)
DINO = Dinov2Config(
    hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=20,
    patch_size=4, num_register_tokens=1,
)  # fmt: skip
VAE = AutoencoderConfig(
    block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=2
)
HEADS = HeadConfig(
    DINO.hidden_size, tiny.POOLED, told_noise=False, channels=16, groups=4
)  # fmt: skip


@functools.cache
def critic(decoded=True, teacher=True, dino=DINO, vae=VAE, resolution=12):
    return PixelCritic(
        dino=Dinov2(dino), head=head(HEADS), heads=head_stack(HEADS, len(HOOKED)),
        hooked_blocks=HOOKED, resolution=resolution, summary="pooled",
        decoder=decoder_of(vae) if decoded else None,
        teacher=network() if teacher else None,
    )  # fmt: skip


def network(channels=2):
    return tiny.network(tiny.mmdit_config(depth=1, in_channels=channels, out_channels=channels))


def add(decoded=True, teacher=True, **changes):
    """The objective on latents of two channels, or on grey pictures."""
    fields = dict(
        student=network(2 if decoded else 1), critic=critic(decoded, teacher),
        # Large: an update is read from the parameters, which are rounded.
        optimizer=Optimizer(1000.0, epsilon=1.0), heads_optimizer=Optimizer(1.0, epsilon=1.0),
        warmup_steps=0, r1_gamma=1e-2, ema_decay=0.9,
    )  # fmt: skip
    return ADD(**fields | changes)


def batch_of(decoded=True, height=4, width=4):
    batch = tiny.batch(height=height, width=width)
    return batch | {"latents": batch["latents"][..., : 2 if decoded else 1]}


def start(objective, seed=1):
    """(state, frozen)"""
    student = tiny.random_params(objective.student, seed)
    frozen = {
        name: tiny.random_params(network, seed + i)
        for i, (name, network) in enumerate(objective.networks.items(), 1)
    }
    return tiny.init(objective)(jax.random.PRNGKey(seed), student), frozen


def picture(frozen, x_0, decoded):
    if not decoded:
        return x_0
    z = x_0 / VAE.scaling_factor + VAE.shift_factor
    plain = decoder_of(dataclasses.replace(VAE, scaling_factor=1.0, shift_factor=0.0))
    return plain(frozen["decoder"], z)


def look(frozen, x_0, decoded=True):
    """(tokens of the patches after the hooked blocks `[K, B, N, D]`, the grid)."""
    pictures = picture(frozen, x_0, decoded)
    height, width = pictures.shape[1:3]
    short = min(height, width)
    rows, columns = (4 * round(12 * side / short / 4) for side in (height, width))
    pixels = normalised(bicubic(pictures, rows, columns, antialias=True))
    _, taps = Dinov2(DINO)(frozen["dino"], pixels, tap=lambda _, tokens: tokens)
    taps = taps[jnp.asarray(HOOKED)]
    return taps[..., 2:, :] + taps[..., :1, :], (rows // 4, columns // 4)


def logits(heads, tokens, grid, cond):
    return [
        head(HEADS)(
            jax.tree.map(lambda leaf, k=k: leaf[k], heads["heads"]), tokens[k], grid, None,
            cond["pooled"],
        )
        for k in range(len(HOOKED))
    ]  # fmt: skip


def two_programs(objective, state, frozen, batch, decoded):
    """The heads' update and the student's, each by plain autodiff of its formula."""
    form = ADVERSARIAL_LOSSES[objective.loss]
    drawn, _ = objective.draw(state, frozen, batch)
    cond = batch["cond"]

    def predict(params):
        v = objective.student(params, drawn.x_t, drawn.t, cond)
        return predict_x0(drawn.x_t, v, drawn.t)

    def discriminator(heads):
        real, grid = look(frozen, batch["latents"], decoded)
        fake, _ = look(frozen, predict(state.params), decoded)
        total = 0.0
        for k, (f, r) in enumerate(
            zip(logits(heads, fake, grid, cond), logits(heads, real, grid, cond), strict=True)
        ):
            slopes = jax.grad(
                lambda x, k=k: jnp.sum(logits(heads, real.at[k].set(x), grid, cond)[k])
            )(real[k])
            r1 = jnp.sum(jnp.square(slopes)) / len(slopes)
            total += jnp.mean(form.fake(f)) + jnp.mean(form.real(r))
            total += 0.5 * objective.r1_gamma * r1
        return total / len(HOOKED)

    updates, _ = objective.heads_optimizer.build().update(
        jax.grad(discriminator)(state.heads), state.heads_optimizer, state.heads
    )
    heads = optax.apply_updates(state.heads, updates)

    def generator(params):
        x0_hat = predict(params)
        fake, grid = look(frozen, x0_hat, decoded)
        total = sum(jnp.mean(form.student(f)) for f in logits(heads, fake, grid, cond))
        total /= len(HOOKED)
        if not objective.distillation_weight:
            return total
        noise = drawn.fake_noise
        x = interpolate(x0_hat, noise.eps, noise.t_hat)
        v = objective.critic.teacher(frozen["teacher"], x, noise.t_hat, cond)
        wanted = picture(frozen, predict_x0(x, v, noise.t_hat), decoded)
        squared = jnp.square(picture(frozen, x0_hat, decoded) - jax.lax.stop_gradient(wanted))
        weight = (1 - noise.t_hat)[:, None, None, None]
        return total + objective.distillation_weight * jnp.mean(weight * squared)

    gradient = jax.grad(generator)(state.params)
    updates, _ = objective.optimizer.build().update(gradient, state.optimizer, state.params)
    return optax.apply_updates(state.params, updates), heads


@pytest.mark.parametrize(
    ("decoded", "changes"),
    [
        pytest.param(True, {"distillation_weight": 2.5, "teacher": True}, marks=pytest.mark.slow),
        (False, {"loss": "softplus", "teacher": False}),
    ],
    ids=["decoded, with distillation", "latents are pixels, without a teacher"],
)
def test_a_step_makes_the_updates_of_two_programs(decoded, changes):
    objective = add(decoded, **changes)
    state, frozen = start(objective)
    assert list(frozen) == (["dino", "decoder", "teacher"] if decoded else ["dino"])
    batch = batch_of(decoded, height=6)
    after, metrics = tiny.step(objective)(state, frozen, batch)
    params, heads = jax.jit(lambda *args: two_programs(objective, *args, decoded))(
        state, frozen, batch
    )
    for new, wanted, old in (
        (after.params, params, state.params),
        (after.heads, heads, state.heads),
    ):
        ours, theirs = (jax.tree.map(jnp.subtract, tree, old) for tree in (new, wanted))
        assert tiny.gradient_difference(ours, theirs) < 1e-3
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(theirs)) > 1e-5
    assert metrics["accuracy/head"].shape == (len(HOOKED),) and "r1" in metrics
    # Nothing is noised before the heads.
    assert not [name for name in metrics if "t_hat" in name]
    assert ("loss/distillation" in metrics) == decoded


def test_the_critics_gradient_is_that_of_the_formula():
    seen = critic()
    frozen = {name: tiny.random_params(network) for name, network in seen.networks.items()}
    heads = tiny.random_params(seen.heads, 5)
    batch = batch_of(width=6)
    cond, x_0 = batch["cond"], batch["latents"]
    noise = Noise(jnp.zeros_like(x_0), jnp.zeros(tiny.B))

    def loss(at, inputs):
        return jnp.mean(jnp.tanh(at(inputs)))

    def judged(at, inputs):
        value = loss(at, inputs)
        return value, {"loss": value}

    def formula(heads, x_0):
        tokens, grid = look(frozen, x_0)
        return sum(jnp.mean(jnp.tanh(x)) for x in logits(heads, tokens, grid, cond)) / len(HOOKED)

    @jax.jit
    def both(heads, x_0):
        opened = seen.open(frozen, x_0, noise, cond)
        passing = seen.judge(heads, frozen, x_0, noise, cond, judged)
        features_bar = jnp.cos(opened.features)
        _, vjp = jax.vjp(lambda x: look(frozen, x)[0], x_0)
        return (
            opened.value_and_gradient(heads, loss), opened.judge(heads, judged), passing,
            jax.value_and_grad(formula, argnums=(0, 1))(heads, x_0),
            (opened.pull(features_bar), vjp(features_bar)[0]),
            opened.features, look(frozen, x_0)[0],
        )  # fmt: skip

    (value, gradient), opened, passing, wanted, pulled, features, tokens = both(heads, x_0)
    (formula_value, (heads_bar, x_0_bar)) = wanted
    np.testing.assert_allclose(value, formula_value, rtol=1e-5)
    assert tiny.max_difference(gradient, x_0_bar) < 1e-4
    for judged_gradient, statistics in (opened, passing):
        assert tiny.gradient_difference(judged_gradient, heads_bar) < 1e-4
        np.testing.assert_allclose(jnp.mean(statistics["loss"]), formula_value, rtol=1e-5)
    assert tiny.max_difference(*pulled) < 1e-4
    assert tiny.max_difference(features, tokens) < 1e-5


@pytest.mark.parametrize(
    ("sides", "seen"),
    [
        ((64, 64), (224, 224)),
        ((64, 128), (224, 448)),
        ((100, 90), (252, 224)),
        ((8, 16), (224, 448)),
    ],
)
def test_a_picture_keeps_its_aspect_to_a_patch(sides, seen):
    made = dataclasses.replace(
        critic(decoded=False), dino=Dinov2(dataclasses.replace(DINO, patch_size=14, image_size=70)),
        resolution=224,
    )  # fmt: skip
    assert made.seen_sides(*sides) == seen


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="dino.resolution 14 is not a multiple .* of 4: use 12"):
        dataclasses.replace(critic(), resolution=14)
    with pytest.raises(UserError, match="names block 3 of a DINOv2 of 3: use blocks 0 to 2"):
        dataclasses.replace(critic(), hooked_blocks=(0, 3))
    with pytest.raises(UserError, match="2 heads stand on 1 hooked blocks"):
        dataclasses.replace(critic(), hooked_blocks=(1,))
    objective = add(teacher=False, distillation_weight=1.0)
    state, frozen = start(objective)
    with pytest.raises(UserError, match="without a teacher predicts no x_0"):
        jax.eval_shape(objective.step, state, frozen, batch_of())


def test_the_heads_update_leaves_the_student_alone():
    objective = add(decoded=False, teacher=False, optimizer=Optimizer(0.0))
    state, frozen = start(objective)
    after, _ = tiny.step(objective)(state, frozen, batch_of(decoded=False))
    assert tiny.max_difference(after.params, state.params) == 0
    assert tiny.max_difference(after.heads, state.heads) > 0


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"distillation_weight": 2.5}, marks=pytest.mark.slow),
        pytest.param(
            {"loss": "relativistic", "accumulated_heads": "before", "head_updates": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_micro_batches_make_the_update_of_the_whole_batch(changes):
    updates = []
    # A whole batch is judged by updated heads alone.
    first = 2 if "accumulated_heads" in changes else 1
    for accumulation in (first, 4):
        objective = add(decoded=False, accumulation=accumulation, **changes)
        objective = dataclasses.replace(
            objective, critic=dataclasses.replace(objective.critic, teacher=network(1))
        )
        state, frozen = start(objective)
        after, _ = tiny.step(objective)(state, frozen, batch_of(decoded=False))
        updates.append(
            [jax.tree.map(jnp.subtract, new, old) for new, old in
             ((after.params, state.params), (after.heads, state.heads))]
        )  # fmt: skip
    assert tiny.gradient_difference(updates[1], updates[0]) < 1e-3


@pytest.mark.parametrize("swiglu", [False, True])
def test_in_half_precision_a_step_keeps_its_states_dtypes(swiglu):
    half = dict(dtype=jnp.bfloat16)
    frozen_half = half | dict(param_dtype=jnp.bfloat16)
    heads = dataclasses.replace(HEADS, **half)
    student = tiny.network(tiny.mmdit_config(depth=1, **half))
    seen = dataclasses.replace(
        critic(),
        dino=Dinov2(dataclasses.replace(DINO, use_swiglu_ffn=swiglu, **frozen_half)),
        head=head(heads), heads=head_stack(heads, len(HOOKED)),
        decoder=decoder_of(dataclasses.replace(VAE, **frozen_half)), teacher=student,
    )  # fmt: skip
    objective = add(critic=seen, student=student, distillation_weight=2.5)
    state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), student.shapes)
    frozen = {name: part.shapes for name, part in seen.networks.items()}
    after, metrics = jax.eval_shape(objective.step, state, frozen, batch_of())
    assert after == state
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {jnp.dtype("float32")}


# Wide enough for heads and the conversion of patches to be small beside the networks.
WIDE = dataclasses.replace(DINO, hidden_size=256, image_size=64, num_hidden_layers=3)
DEEP = dataclasses.replace(VAE, block_out_channels=(16, 32), norm_num_groups=4)


@pytest.mark.parametrize(
    ("changes", "dino", "decoder", "teacher"),
    [
        ({}, 3, 3, 0),
        ({"distillation_weight": 2.5}, 3, 5, 1),
        pytest.param({"accumulation": 2, "moments_weight": 1.0}, 6, 6, 0, marks=pytest.mark.slow),
        pytest.param({"head_updates": 2, "misaligned_share": 0.5}, 7, 7, 0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_takes_its_units_of_each_network(changes, dino, decoder, teacher):
    config = tiny.mmdit_config(depth=2, width=128, num_heads=4, position_table=16)
    network = tiny.network(config)
    heads = dataclasses.replace(HEADS, features=256)
    seen = PixelCritic(
        dino=Dinov2(WIDE), head=head(heads), heads=head_stack(heads, 2), hooked_blocks=HOOKED,
        resolution=64, summary="pooled", decoder=decoder_of(DEEP), teacher=network,
    )  # fmt: skip
    objective = add(critic=seen, student=network, **changes)
    assert objective.critic_units == {"dino": dino, "decoder": decoder, "teacher": teacher}
    assert objective.forward_units[1] == teacher
    state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), objective.student.shapes)
    frozen = {name: part.shapes for name, part in seen.networks.items()}
    batch = jax.eval_shape(lambda: tiny.batch(height=16, width=16, size=2))
    counted = matrix_flops(objective.step, state, frozen, batch)
    passes = seen.flops(16, 16)
    student, asked = objective.forward_units
    wanted = (student + asked) * forward_flops(config, 16, 16, tiny.T)
    wanted += sum(objective.critic_units[name] * count for name, count in passes.items())
    # What a gradient computes again is counted by the program alone.
    again = passes["dino"] + passes["decoder"] * (1 + (teacher > 0))
    again += passes["dino"] * ("moments_weight" in changes)
    again += passes["decoder"] * ("moments_weight" in changes)
    assert counted == pytest.approx(2 * (wanted + again), rel=0.12)


def test_a_student_that_waits_asks_for_its_passes_in_its_own_steps_alone():
    objective = add(distillation_weight=2.5, student_interval=2)
    units = {"dino": 2 + 1 / 2, "decoder": 2 + 1 / 2 + 2 / 2, "teacher": 1 / 2}
    assert objective.critic_units == units
    assert objective.forward_units == (1 + 2 / 2, 1 / 2)
    state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), objective.student.shapes)
    frozen = {name: part.shapes for name, part in objective.networks.items()}
    batch = jax.eval_shape(batch_of)
    after, metrics = jax.eval_shape(objective.step, state, frozen, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "student_updated" in metrics and not any("/t_hat_" in name for name in metrics)


def test_moments_of_features_without_noise_are_of_all_samples():
    terms = {term.name: term for term in add(moments_weight=0.1, moments_t_hat=0.6).loss_terms}
    assert terms["moments"].t_hat == 1.0
