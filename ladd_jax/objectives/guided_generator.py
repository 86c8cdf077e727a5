"""The guided data generator, as objectives that ask it at each step see it."""

import jax

from ladd_jax.diffusion.samplers import Velocity, guided
from ladd_jax.models.base import GUIDANCE, Backbone, Cond, Params


def guided_generator(
    generator: Backbone, params: Params, cond: Cond, null: Cond, guidance: float
) -> Velocity:
    """Its velocity, with the guidance that each sample was made with.

    Args:
      generator: the data generator, which is never told a scale.
      params: its parameters.
      cond: condition of the samples, arrays `[B, ...]`.
      null: the empty prompt's, arrays `[...]`.
      guidance: scale of samples whose cond does not name their own.
    """
    given = {name: array for name, array in cond.items() if name != GUIDANCE}
    scale = cond[GUIDANCE][:, 0] if GUIDANCE in cond else guidance

    def velocity(x: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        return generator(params, x, t, cond)

    return guided(velocity, given, null, scale)
