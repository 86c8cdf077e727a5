"""Regression at pure noise, to the sample that the data generator made from the same noise.

The data generator solves an ODE, so noise and prompt decide its sample, and the student can learn
to make the same one (Liu et al. 2022, rectified flow's distillation; smooth L1 as in AMD's
Nitro-1).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ladd_jax.diffusion.flow import expand
from ladd_jax.objectives.terms.base import Seen


@dataclasses.dataclass(frozen=True)
class Paired:
    """Smooth L1 distance (corner at 1) to x_0, for inputs that are the noise x_0 was made from."""

    weight: float
    name: str = "paired"
    needs: frozenset[str] = frozenset()

    def __call__(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """See `Term`."""
        assert seen.paired is not None
        weight = seen.paired.astype(jnp.float32)

        def distance(x0_hat: jax.Array) -> jax.Array:
            return jnp.mean(expand(weight, x0_hat) * optax.losses.huber_loss(x0_hat, seen.x_0))

        return jax.value_and_grad(distance)(seen.x0_hat)
