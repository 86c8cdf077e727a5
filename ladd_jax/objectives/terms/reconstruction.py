"""Regression to the sample that the student's input was noised from.

Regression leads to the mean of all x_0 that fit the input. With little noise x_0 is nearly known,
and this mean is as sharp as the sample; with much noise it is blurred. So the weight is the
signal-to-noise ratio ((1 - t) / t)^2 of the input (Salimans & Ho 2022, section 4), which is 0 at
pure noise. It may be limited to gamma (min-SNR, Hang et al. 2023): at t = .25 it is 9, and with a
large weight regression alone would decide there.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ladd_jax.diffusion.flow import expand
from ladd_jax.objectives.terms.base import Seen


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Squared distance to x_0, weighted by ((1 - t) / t)^2, or by gamma if that is less.

    Inputs from the student's own sampling have no such x_0 and do not count.
    """

    weight: float
    gamma: float = math.inf
    name: str = "reconstruction"
    needs: frozenset[str] = frozenset()

    def __call__(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """See `Term`."""
        weight = jnp.minimum(jnp.square((1 - seen.t) / seen.t), self.gamma)
        if seen.own is not None:
            weight = jnp.where(seen.own, 0.0, weight)

        def distance(x0_hat: jax.Array) -> jax.Array:
            return jnp.mean(expand(weight, x0_hat) * jnp.square(x0_hat - seen.x_0))

        return jax.value_and_grad(distance)(seen.x0_hat)
