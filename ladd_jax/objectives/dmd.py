"""Distribution Matching Distillation for rectified flow (Yin et al. 2024; DMD2 without its GAN).

The student's prediction is re-noised, and two networks say what it came from: one that knows the
data, such as the guided data generator, and one that learns the student's own predictions. The
student moves by their difference, from where its samples are too many to where they are too few.
The second network takes the place of the heads in the state; its updates follow the student's.

B batch, H W latent grid, C channels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ladd_jax.diffusion.flow import expand, interpolate, predict_x0, velocity
from ladd_jax.models.base import Backbone, Cond, Model, Params
from ladd_jax.objectives.accumulation import accumulate
from ladd_jax.objectives.base import (
    Batch,
    Metrics,
    TrainState,
    first_state,
    student_x0,
    unless_skipped,
    updated,
)
from ladd_jax.objectives.flow_matching import match
from ladd_jax.objectives.followed import Followed
from ladd_jax.objectives.passes import Heads
from ladd_jax.objectives.student_inputs import StudentInputs
from ladd_jax.ranges import COUNT, DECAY, check_numbers
from ladd_jax.training.optimizers import Optimizer

_LEAST_SCALE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class DMDSettings(StudentInputs):
    """How a student is distilled, besides its inputs and their re-noising.

    Attributes:
      head_updates: updates of the network that learns the student's predictions, for each update of
        the student (DMD2: 5).
      ema_decay: decay of the student's moving average.
    """

    head_updates: int = 1
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        check_numbers(self, {"head_updates": COUNT, "ema_decay": DECAY})
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class DMD(DMDSettings):
    """Distribution matching.

    Attributes:
      student: the student, which predicts velocity.
      followed: the network that knows the data.
      fake: the network that learns the student's predictions; it begins as what the student begins
        as.
      optimizer: optimizer of the student.
      heads_optimizer: optimizer of the fake network; its schedule counts its updates.
    """

    student: Backbone
    followed: Followed
    fake: Backbone
    optimizer: Optimizer
    heads_optimizer: Optimizer

    @property
    def trained(self) -> Backbone:
        """The student."""
        return self.student

    @property
    def heads(self) -> Model:
        """The fake network."""
        return self.fake

    @property
    def reads_noise_keys(self) -> bool:
        """No."""
        return False

    @property
    def networks(self) -> dict[str, Model]:
        """The networks whose parameters come in `frozen`, by name."""
        return {self.followed.tree: self.followed.network} | self.student.constants

    @property
    def forward_units(self) -> tuple[int, int]:
        """(student, teacher): forward passes over the batch that a step's model FLOPs amount to.

        All networks have the student's architecture. The student goes forward and backward; the
        followed network goes forward, twice with guidance and three times with guidance on a
        picture, too; the fake network goes forward for the student, and forward and backward in
        each of its own updates. Inputs from the student's own sampling take a forward pass for each
        time but the last.
        """
        student = 2 if self.student.constants else 3
        own = self.own_passes
        return student + self.followed.passes + 1 + 3 * self.head_updates + own, 0

    @property
    def followed_units(self) -> int:
        """The part of the student's `forward_units` that the followed network takes."""
        return self.followed.passes

    def init(self, key: jax.Array, params: Params) -> TrainState:
        """State before the first step; the arguments are those of `LADD.init`."""
        student_key, fake_key, state_key = jax.random.split(key, 3)
        heads = self.fake.begin(fake_key, params)
        params = self.student.begin(student_key, params)
        return first_state(state_key, params, self.optimizer, heads, self.heads_optimizer)

    def step(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """Updates the student, then the fake network; neither where a gradient is not finite.

        `frozen` has `null`, the cond of the empty prompt, beside the trees of `networks`.
        """
        x_0, cond = batch["latents"], batch["cond"]
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 3 + self.head_updates)
        input_key, own_key, score_key, *fake_keys = keys
        x_t, t = self.student_input(input_key, x_0, state.step)
        if self.own_share:
            whole = self.student.complete(state.params, frozen)
            x_t, _ = self.own_input(own_key, self.student, whole, x_t, t, cond)
        eps, t_hat = self._renoise(score_key, x_0, t)

        def part(samples: tuple[Any, ...]) -> tuple[Params, jax.Array, jax.Array]:
            x_t, t, cond, eps, t_hat = samples

            def predict(params: Params) -> jax.Array:
                return student_x0(self.student, params, frozen, x_t, t, cond)

            x0_hat, student_vjp = jax.vjp(predict, state.params)
            direction = self.direction(state.heads, frozen, x0_hat, eps, t_hat, cond)
            # This would be the gradient of half the mean square of `direction` if its target and
            # its scale were constant.
            (gradient,) = student_vjp(direction / direction.size)
            return gradient, jnp.mean(jnp.square(direction)) / 2, x0_hat

        gradient, value, x0_hat = accumulate(
            part, (x_t, t, cond, eps, t_hat), self.accumulation, self.student
        )
        heads = Heads(state.heads, state.heads_optimizer)
        heads, (losses, norms) = self._learn(heads, jnp.stack(fake_keys), x0_hat, t, cond)

        norm, fake_norm = optax.tree.norm(gradient), jnp.max(norms)
        skipped = ~(jnp.isfinite(norm) & jnp.isfinite(fake_norm))
        metrics = {
            "loss/dmd": value,
            "loss/fake": jnp.mean(losses),
            "gradient_norm/student": norm,
            "gradient_norm/heads": fake_norm,
            "x0_hat_std": jnp.std(x0_hat),
            "skipped": skipped.astype(jnp.float32),
        }
        new = dataclasses.replace(
            updated(state, self.optimizer, gradient, self.ema_decay),
            heads=heads.params,
            heads_optimizer=heads.optimizer,
        )
        return unless_skipped(skipped, new, state), metrics

    def direction(
        self,
        fake: Params,
        frozen: dict[str, Any],
        x0_hat: jax.Array,
        eps: jax.Array,
        t_hat: jax.Array,
        cond: Cond,
    ) -> jax.Array:
        """The direction that moves the student: x_0 as the fake network predicts it from the
        re-noised prediction, minus x_0 as the followed network does, divided by the prediction's
        mean distance to the latter (DMD, equation 8).

        Args:
          fake: parameters of the fake network.
          frozen: see `step`.
          x0_hat: the student's predictions `[B, H, W, C]`.
          eps: the noise that they are re-noised with `[B, H, W, C]`.
          t_hat: the times that they are re-noised to, float32 `[B]`.
          cond: their condition.

        Returns:
          `[B, H, W, C]`; the predictions move against it.
        """
        x = interpolate(x0_hat, eps, t_hat)
        real = predict_x0(x, self.followed.velocity(frozen, cond)(x, t_hat), t_hat)
        of_fake = predict_x0(x, self.fake(fake, x, t_hat, cond), t_hat)
        places = tuple(range(1, x.ndim))
        distance = jnp.mean(jnp.abs(x0_hat - real), axis=places)
        return (of_fake - real) / expand(jnp.maximum(distance, _LEAST_SCALE), x)

    def _learn(
        self, heads: Heads, keys: jax.Array, x0_hat: jax.Array, t: jax.Array, cond: Cond
    ) -> tuple[Heads, tuple[jax.Array, jax.Array]]:
        """The fake network after an update for each key `[n, 2]`, their losses and norms `[n]`."""

        def update(heads: Heads, key: jax.Array) -> tuple[Heads, tuple[jax.Array, jax.Array]]:
            eps, t_hat = self._renoise(key, x0_hat, t)
            inputs = interpolate(x0_hat, eps, t_hat), t_hat, cond
            wanted = velocity(x0_hat, eps)
            gradient, value = match(self.fake, heads.params, inputs, wanted, self.accumulation)
            after = heads.updated(self.heads_optimizer, gradient)
            return after, (value, optax.tree.norm(gradient))

        return jax.lax.scan(update, heads, keys)

    def _renoise(self, key: jax.Array, x_0: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        time_key, noise_key = jax.random.split(key)
        return jax.random.normal(noise_key, x_0.shape), self.renoise_times(time_key, t)
