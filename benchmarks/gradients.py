"""The gradient of a step as its result, on networks that are not at their start."""

import jax
import optax

from ladd_jax.models.base import Backbone, Params
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.objectives.critics.features import FeatureCritic
from ladd_jax.objectives.ladd import LADD
from ladd_jax.training.optimizers import Optimizer


class Recorder(Optimizer):
    """Moves nothing; its state is the gradient."""

    def build(self) -> optax.GradientTransformation:
        return optax.chain(optax.trace(0.0), optax.scale(0.0))


def recording(student: Backbone, teacher: Backbone, heads: HeadConfig, blocks: int) -> LADD:
    """A distillation whose step leaves the student's gradient in its optimizer's state.

    Args:
      student: the student.
      teacher: the network under the heads.
      heads: the heads.
      blocks: blocks of the teacher, each of which has a head.
    """
    return LADD(
        student=student,
        critic=FeatureCritic(teacher, head(heads), head_stack(heads, blocks)),
        optimizer=Recorder(0.0),
        heads_optimizer=Optimizer(0.0),
        warmup_steps=0,
    )


def shaken(params: Params, key: jax.Array) -> Params:
    """Fresh parameters without the zeros of adaLN, which would make every block the identity."""
    keys = jax.random.split(key, len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(
        lambda leaf, key: leaf + 0.05 * jax.random.normal(key, leaf.shape), params, keys
    )
