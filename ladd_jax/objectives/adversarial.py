"""Adversarial losses on logits, positive for real. The paper leaves the form open.

A head is `head(inputs) -> logits [B, ...]`, one critic's small trainable part as a function of its
input alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ladd_jax.diffusion.flow import expand

Head = Callable[[jax.Array], jax.Array]

Statistics = dict[str, Any]
"""Of one head: `loss []`, mean `logit []`, `accuracy [B]`, the share of correct locations; `r1 []`.

Of all heads, each with a leading axis K.
"""

HeadLoss = Callable[[Head, jax.Array], tuple[jax.Array, Statistics]]
"""`(head, inputs) -> (loss [], statistics)`."""


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """Element-wise losses of logits.

    Attributes:
      real: the heads' loss on real samples.
      fake: the heads' loss on fake samples.
      student: the student's loss on its samples, which are the fake ones.
    """

    real: Callable[[jax.Array], jax.Array]
    fake: Callable[[jax.Array], jax.Array]
    student: Callable[[jax.Array], jax.Array]


ADVERSARIAL_LOSSES = {
    # ADD's (Sauer et al. 2023), which LADD inherits.
    "hinge": AdversarialLoss(
        real=lambda logits: jax.nn.relu(1 - logits),
        fake=lambda logits: jax.nn.relu(1 + logits),
        student=lambda logits: -logits,
    ),
    # The non-saturating loss of Goodfellow et al. 2014.
    "softplus": AdversarialLoss(
        real=lambda logits: jax.nn.softplus(-logits),
        fake=jax.nn.softplus,
        student=lambda logits: jax.nn.softplus(-logits),
    ),
    # Least squares (Mao et al. 2017) with targets 1 and -1.
    "lsgan": AdversarialLoss(
        real=lambda logits: jnp.square(logits - 1),
        fake=lambda logits: jnp.square(logits + 1),
        student=lambda logits: jnp.square(logits - 1),
    ),
}


def fake_loss(form: AdversarialLoss, weight: jax.Array | None = None) -> HeadLoss:
    """Loss of a head on fake samples, each with a weight (`[B]`; None: 1)."""

    def loss(head: Head, inputs: jax.Array) -> tuple[jax.Array, Statistics]:
        logits = head(inputs)
        values = form.fake(logits)
        if weight is not None:
            values *= expand(weight, values)
        value = jnp.mean(values)
        return value, _statistics(logits, logits < 0, value)

    return loss


def real_loss(form: AdversarialLoss, r1_gamma: float, r1_interval: int, step: Any) -> HeadLoss:
    """Loss of a head on real samples, with R1 (Mescheder et al. 2018) on the head's own input.

    Args:
      form: the adversarial loss.
      r1_gamma: weight of the penalty; 0 leaves it out.
      r1_interval: steps between penalties, each multiplied by the interval.
      step: int32 [], updates done.
    """

    def r1(head: Head, inputs: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: jnp.sum(head(x)))(inputs.astype(jnp.float32))
        return jnp.sum(jnp.square(gradient)) / inputs.shape[0]

    def loss(head: Head, inputs: jax.Array) -> tuple[jax.Array, Statistics]:
        logits = head(inputs)
        value = jnp.mean(form.real(logits))
        statistics = _statistics(logits, logits > 0, value)
        if r1_gamma:
            due = step % r1_interval == 0
            penalty = jax.lax.cond(due, lambda x: r1(head, x), lambda _: jnp.zeros(()), inputs)
            # NaN is left out of the mean that is logged.
            statistics["r1"] = jnp.where(due, penalty, jnp.nan)
            value += 0.5 * r1_gamma * r1_interval * penalty
        return value, statistics

    return loss


def student_loss_at(form: AdversarialLoss) -> Callable[[Head, jax.Array], jax.Array]:
    """Loss of the student at one head, `(head, inputs) -> []`."""
    return lambda head, inputs: jnp.mean(form.student(head(inputs)))


def _statistics(logits: jax.Array, correct: jax.Array, loss: jax.Array) -> Statistics:
    locations = tuple(range(1, logits.ndim))
    return {
        "loss": loss,
        "logit": jnp.mean(logits),
        "accuracy": jnp.mean(correct.astype(jnp.float32), axis=locations),
    }
