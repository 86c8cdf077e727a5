"""The gradient of a step as its result, on networks that are not at their start."""

import jax
import optax

from ladd_jax.models.base import Params
from ladd_jax.training.optimizers import Optimizer


class Recorder(Optimizer):
    """Moves nothing; its state is the gradient."""

    def build(self) -> optax.GradientTransformation:
        return optax.chain(optax.trace(0.0), optax.scale(0.0))


def shaken(params: Params, key: jax.Array) -> Params:
    """Fresh parameters without the zeros of adaLN, which would make every block the identity."""
    keys = jax.random.split(key, len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(
        lambda leaf, key: leaf + 0.05 * jax.random.normal(key, leaf.shape), params, keys
    )
