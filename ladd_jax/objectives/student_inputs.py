"""The inputs of a few-step student in training, and how its predictions are re-noised.

B batch, H W latent grid, C channels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ladd_jax.diffusion import times
from ladd_jax.diffusion.flow import expand, interpolate, predict_x0
from ladd_jax.errors import UserError
from ladd_jax.models.base import Backbone, Cond, Params
from ladd_jax.objectives.accumulation import accumulate
from ladd_jax.ranges import (
    COUNT,
    FINITE,
    NOT_NEGATIVE,
    SHARE,
    Range,
    check_distinct,
    check_numbers,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentInputs:
    """Settings of the points that a student is trained at.

    Attributes:
      timesteps: times at which the student is trained (paper: 1, 0.75, 0.5, 0.25).
      probabilities: probabilities of those times.
      warmup_probabilities: their probabilities in the first steps (paper, above 512^2: 0, 0, .5,
        .5).
      warmup_steps: number of these first steps (paper, above 512^2: 500).
      renoise_mean: m of t_hat = sigmoid(m + s u) (paper: 1).
      renoise_std: s (paper: 1).
      renoise_slope: how much m falls from t = 1 to t = 0: t_hat = sigmoid(m - slope (1 - t) + s u),
        so that a prediction from little noise, whose errors are small, is not hidden under much
        noise (paper: 0).
      own_share: share of the inputs below t = 1 that the student is given from its own sampling,
        which re-noises its predictions, instead of noised data (backward simulation, Yin et al.
        2024, DMD2; paper: 0).
      accumulation: micro-batches that a batch is taken in, to need less memory. Random numbers are
        drawn for the whole batch.
    """

    timesteps: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    probabilities: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1)
    warmup_probabilities: tuple[float, ...] = (0.0, 0.0, 0.5, 0.5)
    warmup_steps: int = 500
    renoise_mean: float = 1.0
    renoise_std: float = 1.0
    renoise_slope: float = 0.0
    own_share: float = 0.0
    accumulation: int = 1

    def __post_init__(self) -> None:
        if not self.timesteps:
            raise UserError("timesteps is empty: name one or more, such as 1.0")
        check_numbers(self, {"timesteps": Range(above=0, most=1)})
        check_distinct(self, "timesteps")
        for name in ("probabilities", "warmup_probabilities"):
            check_numbers(self, {name: SHARE})
            values = getattr(self, name)
            if len(values) != len(self.timesteps) or abs(sum(values) - 1) > 1e-6:
                raise UserError(
                    f"{name} {values} must be {len(self.timesteps)} numbers that sum to 1, "
                    f"one for each of the timesteps {self.timesteps}"
                )
        if not 0 <= self.own_share <= 1 or (self.own_share and len(self.timesteps) < 2):
            raise UserError(
                f"own_share is {self.own_share} with timesteps {self.timesteps}: use a share from "
                f"0 to 1, and 0 where there is one time"
            )
        check_numbers(
            self,
            {
                "accumulation": COUNT,
                "warmup_steps": NOT_NEGATIVE,
                "renoise_mean": FINITE,
                "renoise_std": NOT_NEGATIVE,
                "renoise_slope": FINITE,
            },
        )

    @property
    def own_passes(self) -> int:
        """Forward passes of the student for `own_input`: one for each time but the last."""
        return len(self.timesteps) - 1 if self.own_share else 0

    def student_input(
        self, key: jax.Array, x_0: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """x_t and t: pure noise only where t is 1."""
        time_key, noise_key = jax.random.split(key)
        probabilities = jnp.where(
            step < self.warmup_steps,
            jnp.asarray(self.warmup_probabilities),
            jnp.asarray(self.probabilities),
        )
        t = times.discrete(time_key, x_0.shape[0], self.timesteps, probabilities)
        return interpolate(x_0, jax.random.normal(noise_key, x_0.shape), t), t

    def own_input(
        self,
        key: jax.Array,
        student: Backbone,
        params: Params,
        x_t: jax.Array,
        t: jax.Array,
        cond: Cond,
    ) -> tuple[jax.Array, jax.Array]:
        """x_t with a share of it from the student's own sampling, and which that is, bool `[B]`.

        These are the points that the consistency sampler over all of the times reaches from noise.
        """
        noise_key, share_key = jax.random.split(key)
        levels = sorted(self.timesteps, reverse=True)
        shape = (len(x_t), len(levels), *x_t.shape[1:])

        def chain(part: tuple[jax.Array, Cond]) -> tuple[Any, Any, jax.Array]:
            noises, cond = part

            def step(x: jax.Array, level: Any) -> tuple[jax.Array, jax.Array]:
                now, after, eps = level
                x0_hat = predict_x0(x, student(params, x, now, cond), now)
                x = interpolate(x0_hat, eps, after)
                return x, x

            at = jnp.broadcast_to(jnp.asarray(levels)[:, None], (len(levels), len(noises)))
            later = jnp.moveaxis(noises[:, 1:], 1, 0)
            _, inputs = jax.lax.scan(step, noises[:, 0], (at[:-1], at[1:], later))
            return (), (), jnp.moveaxis(inputs, 0, 1)

        noises = jax.random.normal(noise_key, shape)
        _, _, inputs = accumulate(chain, (noises, cond), self.accumulation, ())
        own = (jax.random.uniform(share_key, t.shape) < self.own_share) & (t < levels[0])
        for place, level in enumerate(levels[1:]):
            x_t = jnp.where(expand(own & (t == level), x_t), inputs[:, place], x_t)
        return jax.lax.stop_gradient(x_t), own

    def renoise_times(self, key: jax.Array, t: jax.Array) -> jax.Array:
        """t_hat, float32 `[B]`, for predictions from x_t."""
        mean = self.renoise_mean - self.renoise_slope * (1 - t)
        return times.logit_normal(key, len(t), mean, self.renoise_std)
