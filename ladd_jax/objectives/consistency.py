"""Consistency distillation: one prediction along each path of the guided data generator.

Song et al. 2023, algorithm 2, in the form of Luo et al. 2023 (LCM) with guidance in the step along
the path, for rectified flow. At the noisier of two neighbouring points of a path, the student's
prediction follows the prediction of its average at the other point, which at t = 0 is the point
itself.

B batch, H W latent grid, C channels.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ladd_jax.diffusion.flow import expand, interpolate
from ladd_jax.models.base import Backbone, Model, Params
from ladd_jax.objectives.accumulation import accumulate
from ladd_jax.objectives.base import Batch, TrainState, student_x0
from ladd_jax.objectives.followed import Followed

SOLVERS = {"euler": 1, "midpoint": 2}
"""Passes of the followed network that one piece of a path takes, by the name of the solver.

`euler` is what LCM's DDIM becomes for rectified flow. Song et al. take Heun's steps, which are of
second order like `midpoint`'s but evaluate the network at t = 0, too, where it learns little.
"""

_CORNER = 1e-3
"""c of the pseudo-Huber distance sqrt(d^2 + c^2) - c, element by element (LCM's)."""


class Held(NamedTuple):
    """What holding a batch to its paths gives.

    Attributes:
      gradient: gradient of the student's parameters.
      value: the loss, float32 [].
      x0_hat: the student's predictions `[B, H, W, C]`.
    """

    gradient: Params
    value: jax.Array
    x0_hat: jax.Array


@dataclasses.dataclass(frozen=True)
class Consistency:
    """Holds a student to one prediction along a path.

    Attributes:
      student: the student, which predicts velocity.
      followed: the network whose paths the student is held to.
      levels: the times of a path from 1 to 0.
      solver: one of `SOLVERS`. Paths bend, and a few pieces of the first order (euler) end where
        samples are less diverse; the second order takes twice as many passes.
      accumulation: micro-batches that a batch is taken in.
    """

    student: Backbone
    followed: Followed
    levels: tuple[float, ...]
    solver: str = "euler"
    accumulation: int = 1

    @property
    def networks(self) -> dict[str, Model]:
        """The networks whose parameters come in `frozen`, by name."""
        return {self.followed.tree: self.followed.network} | self.student.constants

    @property
    def forward_units(self) -> int:
        """Forward passes over the batch that the loss and its gradient amount to.

        The student goes forward once for the point with less noise, and forward and backward for
        the other (without the gradient of the whole parameters where only adapters are trained).
        """
        return self.followed_units + 1 + (2 if self.student.constants else 3)

    @property
    def followed_units(self) -> int:
        """The part of them that the followed network takes, which has the student's architecture.

        Each velocity takes one pass, two with guidance, or three with guidance on a picture, too.
        """
        return SOLVERS[self.solver] * self.followed.passes

    def hold(self, key: jax.Array, state: TrainState, frozen: dict[str, Any], batch: Batch) -> Held:
        """The loss of `state.params` on a batch, and its gradient.

        Args:
          key: raw PRNG key of the points.
          state: training state; the student's predictions follow those of its `ema`.
          frozen: the trees of `networks`, and `null`, the cond of the empty prompt.
          batch: see `objectives.base`.
        """
        x_0, cond = batch["latents"], batch["cond"]
        level_key, noise_key = jax.random.split(key)
        levels = jnp.asarray(self.levels, jnp.float32)
        place = jax.random.randint(level_key, x_0.shape[:1], 0, len(self.levels) - 1)
        t, s = levels[place], levels[place + 1]
        x_t = interpolate(x_0, jax.random.normal(noise_key, x_0.shape), t)

        def predict(params: Params, *point: Any) -> jax.Array:
            return student_x0(self.student, params, frozen, *point)

        def part(samples: tuple[Any, ...]) -> tuple[Params, jax.Array, jax.Array]:
            x_t, t, s, cond = samples
            x_s = self.step_back(frozen, x_t, t, s, cond)
            wanted = jax.lax.stop_gradient(predict(state.ema, x_s, s, cond))

            def distance(params: Params) -> tuple[jax.Array, jax.Array]:
                x0_hat = predict(params, x_t, t, cond)
                huber = jnp.sqrt(jnp.square(x0_hat - wanted) + _CORNER**2) - _CORNER
                return jnp.mean(huber), x0_hat

            (value, x0_hat), gradient = jax.value_and_grad(distance, has_aux=True)(state.params)
            return gradient, value, x0_hat

        return Held(*accumulate(part, (x_t, t, s, cond), self.accumulation, self.student))

    def step_back(
        self, frozen: dict[str, Any], x_t: jax.Array, t: jax.Array, s: jax.Array, cond: Any
    ) -> jax.Array:
        """The point at s on the path through x_t, by one step of the solver."""
        velocity, length = self.followed.velocity(frozen, cond), expand(s - t, x_t)
        if self.solver == "euler":
            return x_t + length * velocity(x_t, t)
        middle = x_t + length / 2 * velocity(x_t, t)
        return x_t + length * velocity(middle, (t + s) / 2)
