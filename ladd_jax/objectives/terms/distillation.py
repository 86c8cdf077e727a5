"""ADD's distillation term (Sauer et al. 2023, equation 4): distance to the teacher's x_0."""

import dataclasses

import jax
import jax.numpy as jnp

from ladd_jax.diffusion.flow import expand
from ladd_jax.objectives.terms.base import PREDICTED_X0, Seen


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Squared distance to the x_0 that the teacher predicts from the re-noised sample.

    The weight is 1 - t_hat, which is less where the teacher sees more noise.
    """

    weight: float
    name: str = "distillation"
    needs: frozenset[str] = frozenset({PREDICTED_X0})

    def __call__(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """See `Term`."""
        teacher_x0 = seen.fake.predicted_x0()

        def distance(x0_hat: jax.Array) -> jax.Array:
            weight = expand(1 - seen.noise.t_hat, x0_hat)
            return jnp.mean(weight * jnp.square(x0_hat - teacher_x0))

        return jax.value_and_grad(distance)(seen.x0_hat)
