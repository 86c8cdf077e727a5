"""A critic that is nothing like the paper's drives the same step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from configs import digits
from ladd_jax.config.architectures import student_architecture
from ladd_jax.config.fields import typed
from ladd_jax.config.objectives import model_flops
from ladd_jax.data.buckets import Bucket
from ladd_jax.diffusion.flow import predict_x0
from ladd_jax.models.base import Model, param
from ladd_jax.models.sd3.flops import forward_flops
from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES, in_pairs, of_pairs
from ladd_jax.objectives.ladd import LADD
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training.optimizers import Optimizer
from ladd_jax.training.program import state_layout

CHANNELS, WIDTH = 2, 6


class Kernel(nnx.Module):
    """A matrix."""

    def __init__(self, inputs, outputs, *, rngs):
        normal = jax.nn.initializers.normal(1.0)
        self.kernel = param(rngs, (inputs, outputs), normal, (None, "mlp"), jnp.float32)


class Student(nnx.Module):
    """A velocity at each place from the latents there, the time and the text; it compiles fast."""

    def __init__(self, *, rngs):
        self.inner = Kernel(CHANNELS + 1 + tiny.POOLED, 8, rngs=rngs)
        self.outer = Kernel(8, CHANNELS, rngs=rngs)

    def __call__(self, x_t, t, cond):
        given = jnp.concatenate([t[:, None], cond["pooled"]], axis=-1)[:, None, None]
        given = jnp.broadcast_to(given, (*x_t.shape[:3], given.shape[-1]))
        hidden = jnp.tanh(jnp.concatenate([x_t, given], axis=-1) @ self.inner.kernel[...])
        return hidden @ self.outer.kernel[...]


class Judge(nnx.Module):
    """A logit for each place of a grid, `[B, h, w, F] -> [B, h, w]`."""

    def __init__(self, features, *, rngs):
        self.inner = Kernel(features, WIDTH, rngs=rngs)
        self.outer = Kernel(WIDTH, 1, rngs=rngs)

    def __call__(self, x):
        return (jnp.tanh(x @ self.inner.kernel[...]) @ self.outer.kernel[...])[..., 0]


@dataclasses.dataclass(frozen=True)
class PooledCritic:
    """One head on clean latents, each 2x2 of them averaged: no noise, no cond, no transformer.

    With `projection` the averages go through a frozen matrix first.
    """

    heads: Model
    projection: Model | None = None

    @property
    def networks(self):
        return {} if self.projection is None else {"projection": self.projection}

    def units(self, passes, predictions):
        return dict.fromkeys(self.networks, passes)

    def flops(self, height, width):
        return {name: height * width // 4 * CHANNELS * 3 for name in self.networks}

    def features(self, frozen, x_0):
        b, h, w, c = x_0.shape
        x = jnp.mean(x_0.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
        return x if self.projection is None else x @ frozen["projection"]["kernel"]

    def judge(self, heads, frozen, x_0, noise, cond, loss):
        return self.open(frozen, x_0, noise, cond).judge(heads, loss)

    def refreshed(self, heads, share, key):
        chosen, fresh = jax.random.split(key)
        anew = jax.random.uniform(chosen) < share
        return jax.tree.map(lambda a, b: jnp.where(anew, b, a), heads, self.heads.init(fresh))

    def open(self, frozen, x_0, noise, cond):
        return OpenedPool(self, *jax.vjp(lambda x_0: self.features(frozen, x_0), x_0))


@dataclasses.dataclass(frozen=True)
class OpenedPool:
    critic: PooledCritic
    inputs: jax.Array
    inputs_vjp: object

    @property
    def features(self):
        return self.inputs[None]

    def judge(self, heads, loss):
        def own(heads):
            return loss(lambda x: self.critic.heads(heads, x), jax.lax.stop_gradient(self.inputs))

        gradient, statistics = jax.grad(own, has_aux=True)(heads)
        return gradient, jax.tree.map(lambda leaf: leaf[None], statistics)

    def value_and_gradient(self, heads, loss):
        head = self.critic.heads
        value, bar = jax.value_and_grad(lambda x: loss(lambda x: head(heads, x), x))(self.inputs)
        return value, self.pull(bar[None])

    def beside(self, real):
        def back(bar):
            return self.inputs_vjp(of_pairs(bar)[0])

        return OpenedPool(self.critic, in_pairs(self.inputs, real.inputs), back)

    def pull(self, features_bar):
        return self.inputs_vjp(features_bar[0])[0]

    def predicted_x0(self):
        raise NotImplementedError("latents are seen as they are")


def pooled_critic(projected):
    features = 3 if projected else CHANNELS
    projection = Model(lambda rngs: Kernel(CHANNELS, 3, rngs=rngs)) if projected else None
    return PooledCritic(Model(lambda rngs: Judge(features, rngs=rngs)), projection)


def pooled_ladd(critic, **changes):
    optimizer = Optimizer(1.0, epsilon=1.0)
    return LADD(
        student=Model(lambda rngs: Student(rngs=rngs)),
        critic=critic,
        optimizer=optimizer,
        heads_optimizer=optimizer,
        warmup_steps=0,
        **changes,
    )


def start(objective):
    """(state, frozen)"""
    student = tiny.random_params(objective.student)
    networks = objective.critic.networks.items()
    frozen = {name: network.init(jax.random.PRNGKey(1)) for name, network in networks}
    return jax.jit(objective.init)(jax.random.PRNGKey(0), student), frozen


def two_programs(objective, state, frozen, batch):
    """The heads' update and the student's, each by plain autodiff of its loss."""
    critic, form = objective.critic, ADVERSARIAL_LOSSES[objective.loss]
    student_key, _ = jax.random.split(jax.random.fold_in(state.key, state.step))
    x_t, t = objective.student_input(student_key, batch["latents"], state.step)

    def generate(params):
        return predict_x0(x_t, objective.student(params, x_t, t, batch["cond"]), t)

    def logits(heads, x_0):
        return critic.heads(heads, critic.features(frozen, x_0))

    def discriminator_loss(heads):
        real = critic.features(frozen, batch["latents"])
        slopes = jax.grad(lambda x: jnp.sum(critic.heads(heads, x)))(real)
        r1 = jnp.sum(jnp.square(slopes)) / len(real)
        fake = logits(heads, generate(state.params))
        real = logits(heads, batch["latents"])
        if objective.loss == "relativistic":
            return jnp.mean(jax.nn.softplus(fake - real))
        adversarial = jnp.mean(form.fake(fake)) + jnp.mean(form.real(real))
        return adversarial + 0.5 * objective.r1_gamma * r1

    updates, _ = objective.heads_optimizer.build().update(
        jax.grad(discriminator_loss)(state.heads), state.heads_optimizer, state.heads
    )
    heads = optax.apply_updates(state.heads, updates)
    seen = state.heads if objective.accumulated_heads == "before" else heads

    def generator_loss(params):
        fake = logits(seen, generate(params))
        if objective.loss == "relativistic":
            return jnp.mean(jax.nn.softplus(logits(seen, batch["latents"]) - fake))
        return jnp.mean(form.student(fake))

    updates, _ = objective.optimizer.build().update(
        jax.grad(generator_loss)(state.params), state.optimizer, state.params
    )
    return optax.apply_updates(state.params, updates), heads


@pytest.mark.parametrize(
    ("projected", "changes"),
    [
        (False, {"loss": "softplus"}),
        (True, {"r1_gamma": 1e-2}),
        (True, {"accumulation": 2}),
        (False, {"accumulation": 2, "accumulated_heads": "before", "loss": "lsgan"}),
        (True, {"loss": "relativistic"}),
        (False, {"accumulation": 2, "loss": "relativistic"}),
        (False, {"accumulation": 2, "accumulated_heads": "before", "loss": "relativistic"}),
    ],
    ids=[
        "no network", "a frozen matrix", "updated heads in micro-batches", "heads from before",
        "pairs", "pairs, updated heads in micro-batches", "pairs, heads from before",
    ],
)  # fmt: skip
def test_a_critic_of_another_kind_makes_the_update_of_two_programs(projected, changes):
    objective = pooled_ladd(pooled_critic(projected), **({"r1_gamma": 0.0} | changes))
    state, frozen = start(objective)
    batch = tiny.batch()
    after, metrics = jax.jit(objective.step)(state, frozen, batch)
    params, heads = jax.jit(lambda *args: two_programs(objective, *args))(state, frozen, batch)
    for new, wanted, old in (
        (after.params, params, state.params),
        (after.heads, heads, state.heads),
    ):
        ours, theirs = (jax.tree.map(jnp.subtract, tree, old) for tree in (new, wanted))
        assert tiny.gradient_difference(ours, theirs) < 1e-3
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(theirs)) > 1e-4
    assert np.isfinite(float(metrics["loss/generator"]))
    assert metrics["accuracy/head"].shape == (1,)


@dataclasses.dataclass(frozen=True)
class LogitPenalty:
    """The mean square of a head's logits, of which it has noise drawn that adds nothing."""

    weight: float
    name: str = "logits"
    keyed: bool = True

    def __call__(self, head, inputs, due):
        size = jnp.mean(jnp.square(head(inputs))) + 0 * jnp.sum(due.keys)
        return self.weight * size, size


def test_another_penalty_stands_in_the_place_of_r1_on_real_samples():
    objective = pooled_ladd(pooled_critic(True), loss="lsgan", penalty=LogitPenalty(0.5))
    state, frozen = start(objective)
    batch, critic = tiny.batch(), objective.critic

    def discriminator_loss(heads):
        key, _ = jax.random.split(jax.random.fold_in(state.key, state.step))
        x_t, t = objective.student_input(key, batch["latents"], state.step)
        x0_hat = predict_x0(x_t, objective.student(state.params, x_t, t, batch["cond"]), t)
        fake, real = (
            critic.heads(heads, critic.features(frozen, x)) for x in (x0_hat, batch["latents"])
        )
        size = jnp.mean(jnp.square(real))
        return jnp.mean((fake + 1) ** 2) + jnp.mean((real - 1) ** 2) + 0.5 * size, size

    gradient, size = jax.jit(jax.grad(discriminator_loss, has_aux=True))(state.heads)
    _, metrics = jax.jit(objective.step)(state, frozen, batch)
    assert "r1" not in metrics
    np.testing.assert_allclose(metrics["logits"], [size], rtol=1e-4)
    np.testing.assert_allclose(metrics["gradient_norm/heads"], optax.tree.norm(gradient), rtol=1e-4)


@pytest.mark.parametrize("projected", [False, True])
def test_a_step_is_planned_with_the_passes_of_its_critic_and_none_of_a_teacher(projected):
    config = typed(digits.get_config())
    objective = pooled_ladd(pooled_critic(projected))
    assert objective.forward_units == (3, 0)
    cond = {"context": jax.ShapeDtypeStruct((17, 1), jnp.float32)}
    of_student = forward_flops(student_architecture(config), 8, 8, 17)
    of_critic = 3 * projected * 16 * CHANNELS * 3
    assert model_flops(config, objective, Bucket(8, 8), cond) == 3 * of_student + of_critic


def test_further_updates_misaligned_pairs_and_heads_made_anew_are_the_steps_and_not_the_critics():
    objective = pooled_ladd(
        pooled_critic(True), head_updates=3, misaligned_share=0.3, refreshed_heads=1.0
    )
    state, frozen = start(objective)
    after, metrics = jax.jit(objective.step)(state, frozen, tiny.batch())
    assert int(after.heads_optimizer[0].count) == 3 and int(after.optimizer[0].count) == 1
    assert np.isfinite(float(metrics["loss/discriminator"]))


def test_its_heads_lie_on_a_mesh_by_their_own_axes():
    objective = pooled_ladd(pooled_critic(False))
    shapes, shardings = state_layout(objective, make_mesh({"fsdp": 4, "tensor": 2}))
    assert shapes.heads == objective.critic.heads.shapes
    assert shardings.heads["inner"]["kernel"].spec[-1] == "tensor"
    assert shardings.heads_optimizer[0].mu["inner"] == shardings.heads["inner"]
