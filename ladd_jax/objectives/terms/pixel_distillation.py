"""ADD's distillation term (Sauer et al. 2023, equation 4) as stated there, between pictures."""

import dataclasses

import jax
import jax.numpy as jnp

from ladd_jax.diffusion.flow import expand
from ladd_jax.objectives.critics.pixels import OpenedPictures
from ladd_jax.objectives.terms.base import PREDICTED_X0, Seen


@dataclasses.dataclass(frozen=True)
class PixelDistillation:
    """Squared distance of pictures, to that of the x_0 that the teacher predicts under re-noising.

    The weight is alpha = 1 - t_hat, ADD's exponential weighting.
    """

    weight: float
    name: str = "distillation"
    needs: frozenset[str] = frozenset({PREDICTED_X0})

    def __call__(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """See `Term`."""
        fake = seen.fake
        assert isinstance(fake, OpenedPictures)
        wanted = jax.lax.stop_gradient(fake.decode(fake.predicted_x0()))

        def distance(pictures: jax.Array) -> jax.Array:
            weight = expand(1 - seen.noise.t_hat, pictures)
            return jnp.mean(weight * jnp.square(pictures - wanted))

        value, pictures_bar = jax.value_and_grad(distance)(fake.pictures)
        return value, fake.pictures_vjp(pictures_bar)
