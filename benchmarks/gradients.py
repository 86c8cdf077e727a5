"""Steps that keep the student's gradient, and parameters that are not at their initial values."""

import jax
import optax

from ladd_jax.models.base import Backbone, Params
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.objectives.critics.features import FeatureCritic
from ladd_jax.objectives.ladd import LADD
from ladd_jax.training.optimizers import Optimizer


class Recorder(Optimizer):
    """An optimizer that moves nothing and keeps the gradient as its state."""

    def build(self) -> optax.GradientTransformation:
        return optax.chain(optax.trace(0.0), optax.scale(0.0))


def recording(student: Backbone, teacher: Backbone, heads: HeadConfig, blocks: int) -> LADD:
    """A distillation whose step leaves the student's gradient in its optimizer's state.

    Args:
      student: the student's network.
      teacher: the network under the heads.
      heads: sizes of the heads.
      blocks: number of the teacher's blocks, each of which has a head.
    """
    return LADD(
        student=student,
        critic=FeatureCritic(teacher, head(heads), head_stack(heads, blocks)),
        optimizer=Recorder(0.0),
        heads_optimizer=Optimizer(0.0),
        warmup_steps=0,
    )


def shaken(params: Params, key: jax.Array) -> Params:
    """Adds noise to fresh parameters: adaLN's zeros would make every block the identity."""
    keys = jax.random.split(key, len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(
        lambda leaf, key: leaf + 0.05 * jax.random.normal(key, leaf.shape), params, keys
    )
