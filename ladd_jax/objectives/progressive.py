"""Progressive distillation of a guided network (Salimans & Ho 2022, arXiv 2202.00512; with guidance
Meng et al. 2023, arXiv 2210.03142), for rectified flow.

In the first phase the student learns to give, in one pass, the guided velocity of the network that
it follows. Each later phase halves the number of its steps: the student learns to land with one
Euler step where its teacher, its own average at the end of the phase before, lands with two. On
this path an Euler step is a DDIM step, the papers' sampler.

The phase is a function of the state's step, and the teacher takes the place of the heads.

B batch, H W latent grid, C channels.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ladd_jax.diffusion import times
from ladd_jax.diffusion.flow import expand, interpolate, predict_x0
from ladd_jax.diffusion.samplers import Velocity
from ladd_jax.models.base import Backbone, Model, Params
from ladd_jax.objectives.accumulation import accumulate
from ladd_jax.objectives.base import (
    Batch,
    Metrics,
    TrainState,
    first_state,
    updated_if_finite,
)
from ladd_jax.objectives.followed import Followed
from ladd_jax.training.optimizers import Optimizer


def grid(timesteps: Sequence[float], pieces: int) -> np.ndarray:
    """Levels from the noisiest of a student's times down to 0, float32.

    Args:
      timesteps: the student's times in the end, in any order.
      pieces: number of equal pieces that each of the intervals between them is cut into.
    """
    ends = (*sorted(timesteps, reverse=True), 0.0)
    parts = [np.linspace(a, b, pieces, endpoint=False) for a, b in itertools.pairwise(ends)]
    return np.append(np.concatenate(parts), 0.0).astype(np.float32)


def student_steps(timesteps: Sequence[float], halvings: int) -> tuple[int, ...]:
    """The student's number of steps after each halving: in the end one for each of its times."""
    return tuple(len(timesteps) * 2**left for left in reversed(range(halvings)))


def as_one_step(
    velocity: Velocity, x_t: jax.Array, t: jax.Array, m: jax.Array, s: jax.Array
) -> jax.Array:
    """The velocity with which one Euler step from t to s lands where two land, by way of m.

    It is the mean of both steps' velocities, weighted by their lengths.

    Args:
      velocity: the velocity of the two steps.
      x_t: where they begin `[B, H, W, C]`.
      t: float32 `[B]`.
      m: float32 `[B]`, below t.
      s: float32 `[B]`, below m.
    """
    first = velocity(x_t, t)
    second = velocity(x_t + expand(m - t, x_t) * first, m)
    share = expand((t - m) / (t - s), x_t)
    return share * first + (1 - share) * second


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive:
    """Distillation that halves the student's steps in each phase.

    Attributes:
      student: the student, which predicts velocity.
      followed: the network whose guided velocity is learned first. None: there is no such phase,
        since the student begins as what it would follow.
      optimizer: optimizer of the student; its moments and its schedule go on through all phases.
      timesteps: times that the student is sampled at in the end; earlier phases cut the intervals
        between them into 2, 4, ... equal pieces.
      halvings: phases that halve the number of steps.
      phase_steps: updates of each phase but the last, which goes on to the end.
      shift: shift of the times in the first phase, which are uniform without it.
      accumulation: micro-batches that a batch is taken in.
      ema_decay: decay of the student's moving average, which starts again with each phase.
    """

    student: Backbone
    followed: Followed | None
    optimizer: Optimizer
    timesteps: tuple[float, ...]
    halvings: int
    phase_steps: int
    shift: float = 1.0
    accumulation: int = 1
    ema_decay: float = 0.999

    @property
    def trained(self) -> Backbone:
        """The student."""
        return self.student

    @property
    def heads(self) -> Model:
        """The teacher, kept as those parameters that are trained of the student."""
        return self.student

    @property
    def heads_optimizer(self) -> None:
        """None: no gradient moves the teacher."""

    @property
    def reads_noise_keys(self) -> bool:
        """No."""
        return False

    @property
    def networks(self) -> dict[str, Model]:
        """The networks whose parameters come in `frozen`, by name."""
        followed = self.followed
        first = {} if followed is None else {followed.tree: followed.network}
        return first | self.student.constants

    @property
    def forward_units(self) -> tuple[int, int]:
        """(student, teacher): forward passes over the batch that a step's model FLOPs amount to.

        The student goes forward and backward, and its teacher makes two passes. In the first phase
        the followed network makes two with guidance, and three with guidance on a picture, too; the
        phase with more passes is the one that counts.
        """
        asked = 2 if self.followed is None else max(2, self.followed.passes)
        return (2 if self.student.constants else 3) + asked, 0

    @property
    def followed_units(self) -> int:
        """The part of the student's `forward_units` that the followed network takes, where the
        first phase is the one that counts."""
        passes = 0 if self.followed is None else self.followed.passes
        return passes if passes > 1 else 0

    def init(self, key: jax.Array, params: Params) -> TrainState:
        """State before the first step; the arguments are those of `LADD.init`."""
        student_key, state_key = jax.random.split(key)
        params = self.student.begin(student_key, params)
        return first_state(state_key, params, self.optimizer, jax.tree.map(jnp.copy, params))

    def step(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """One update, or none where the gradient is not finite.

        `frozen` has `null`, the cond of the empty prompt, beside the trees of `networks`.
        """
        x_0, cond = batch["latents"], batch["cond"]
        phase = jnp.minimum(state.step // self.phase_steps, self._guiding + self.halvings - 1)
        since = phase * self.phase_steps
        state = _handed_over(state, (phase > 0) & (state.step == since))
        level_key, noise_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        t, m, s = self._levels(level_key, phase, len(x_0))
        x_t = interpolate(x_0, jax.random.normal(noise_key, x_0.shape), t)

        def part(samples: tuple[Any, ...]) -> tuple[Params, jax.Array, jax.Array]:
            x_t, t, m, s, cond = samples
            wanted = self._wanted(phase, state, frozen, x_t, t, m, s, cond)

            def distance(params: Params) -> tuple[jax.Array, jax.Array]:
                v = self.student(self.student.complete(params, frozen), x_t, t, cond)
                # An error of v is t times as large in x_0, and 1 - t times as large in the noise.
                # The larger square gives the distance of x_0 with Salimans & Ho's weight, the
                # truncated SNR max(SNR, 1).
                weight = jnp.square(jnp.maximum(t, 1 - t))
                value = jnp.mean(expand(weight, v) * jnp.square(v - wanted))
                return value, predict_x0(x_t, v, t)

            (value, x0_hat), gradient = jax.value_and_grad(distance, has_aux=True)(state.params)
            return gradient, value, x0_hat

        gradient, value, x0_hat = accumulate(
            part, (x_t, t, m, s, cond), self.accumulation, self.student
        )
        new, norm, skipped = updated_if_finite(
            state, self.optimizer, gradient, self.ema_decay, since
        )
        metrics = {
            "loss/progressive": value,
            "gradient_norm/student": norm,
            "x0_hat_std": jnp.std(x0_hat),
            "phase": phase.astype(jnp.float32),
            "skipped": skipped.astype(jnp.float32),
        }
        return new, metrics

    @property
    def _guiding(self) -> int:
        """Phases before the first that halves."""
        return 0 if self.followed is None else 1

    def _levels(
        self, key: jax.Array, phase: jax.Array, batch: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Where the student's step begins, where its teacher's first one ends, and where both end:
        float32 `[batch]` each. The first phase uses only the beginning."""
        counts = student_steps(self.timesteps, self.halvings)
        table = np.zeros((self.halvings, max(counts), 3), np.float32)
        for row, count in zip(table, counts, strict=True):
            levels = grid(self.timesteps, 2 * count // len(self.timesteps))
            row[:count] = np.stack([levels[:-2:2], levels[1::2], levels[2::2]], axis=1)
        halving = jnp.maximum(phase - self._guiding, 0)
        place_key, time_key = jax.random.split(key)
        place = jax.random.randint(place_key, (batch,), 0, jnp.asarray(counts)[halving])
        t, m, s = jnp.moveaxis(jnp.asarray(table)[halving, place], -1, 0)
        if self._guiding:
            anywhere = times.shift(jax.random.uniform(time_key, (batch,)), self.shift)
            t = jnp.where(phase == 0, anywhere, t)
        return t, m, s

    def _wanted(
        self,
        phase: jax.Array,
        state: TrainState,
        frozen: dict[str, Any],
        x_t: jax.Array,
        t: jax.Array,
        m: jax.Array,
        s: jax.Array,
        cond: Any,
    ) -> jax.Array:
        """The velocity that the student learns at x_t `[B, H, W, C]`."""

        def halved() -> jax.Array:
            teacher = self.student.complete(state.heads, frozen)
            return as_one_step(lambda x, t: self.student(teacher, x, t, cond), x_t, t, m, s)

        followed = self.followed
        if followed is None:
            return halved()
        # Both branches are compiled and one of them runs.
        return jax.lax.cond(phase == 0, lambda: followed.velocity(frozen, cond)(x_t, t), halved)


def _handed_over(state: TrainState, begins: jax.Array) -> TrainState:
    """The state with the average of the phase before as both teacher and student, where a phase
    `begins`; elsewhere the state as it was.

    The caller hands over before the step, so that it also happens where the step is skipped.
    """

    def average_or(tree: Params) -> Params:
        return jax.tree.map(lambda new, old: jnp.where(begins, new, old), state.ema, tree)

    return dataclasses.replace(
        state, params=average_or(state.params), heads=average_or(state.heads)
    )
