"""Regression at pure noise: near to the sample that the data generator made of the same noise.

Its sampler is an ODE, so that noise and prompt decide the sample, and the student can be told which
one it is to make (Liu et al. 2022, rectified flow's distillation; smooth L1 as in AMD's Nitro-1).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ladd_jax.diffusion.flow import expand
from ladd_jax.objectives.terms.base import Seen


@dataclasses.dataclass(frozen=True)
class Paired:
    """Smooth L1 distance (with its corner at 1) to x_0, where the input is the noise of x_0."""

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
