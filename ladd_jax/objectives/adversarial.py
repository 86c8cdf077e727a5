"""Adversarial losses on logits, positive for real. The paper leaves the form open.

A head is `head(inputs) -> logits [B, ...]`, one critic's small trainable part as a function of its
input alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ladd_jax.diffusion.flow import expand

Head = Callable[[jax.Array], jax.Array]

Statistics = dict[str, Any]
"""Of one head: `loss []`, mean `logit []`, `accuracy [B]`, the share of correct locations, and
`penalty []`, where there is one.

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


@dataclasses.dataclass(frozen=True)
class RelativisticLoss:
    """Loss of the difference of two logits, a fake sample's and its real one's at one location.

    What both share, such as the prompt, falls out of the difference (Jolicoeur-Martineau 2018;
    Huang et al. 2024, R3GAN, which adds the penalty on fake samples, too).

    Attributes:
      of_difference: the heads' loss of real - fake, and the student's of fake - real.
    """

    of_difference: Callable[[jax.Array], jax.Array]


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss | RelativisticLoss] = {
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
    "relativistic": RelativisticLoss(lambda difference: jax.nn.softplus(-difference)),
}


def in_pairs(fake: Any, real: Any) -> Any:
    """Trees of arrays `[B, ...]` as one of `[2B, ...]`, a fake sample and its real one in turn.

    In turn, since each device of a mesh then has pairs of its own.
    """
    return jax.tree.map(
        lambda a, b: jnp.stack([a, b], axis=1).reshape(2 * len(a), *a.shape[1:]), fake, real
    )


def of_pairs(both: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The fake and the real samples `[B, ...]` of `in_pairs`."""
    both = both.reshape(-1, 2, *both.shape[1:])
    return both[:, 0], both[:, 1]


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


class Due(NamedTuple):
    """When a penalty is asked for, and what it draws.

    Attributes:
      step: int32 [], updates done.
      keys: raw PRNG keys `[B, 2]`, one of each sample, of noise on its inputs; None for a penalty
        that draws none.
    """

    step: jax.Array
    keys: jax.Array | None = None


class Penalty(Protocol):
    """What is added to the heads' loss for each head and its inputs.

    Attributes:
      name: its metric.
      keyed: whether it is given `Due.keys`.
    """

    @property
    def name(self) -> str: ...

    @property
    def keyed(self) -> bool: ...

    def __call__(self, head: Head, inputs: jax.Array, due: Due) -> tuple[jax.Array, jax.Array]:
        """The penalty [], with its weight, and what is logged of it: NaN where it is not due.

        Args:
          head: the head.
          inputs: what it reads `[B, ...]`.
          due: when, and what noise is drawn by.
        """
        ...


@dataclasses.dataclass(frozen=True)
class R1:
    """R1 (Mescheder et al. 2018) on a head's own inputs: half its squared gradient, times gamma.

    With `noise` it is the approximate R1 of Lin et al. 2025 (APT, arXiv 2501.08316): the squared
    difference of the summed logits under a little noise, which takes no gradient of a gradient.
    Over the noise's variance it estimates the same quantity, so that gamma means the same.

    Attributes:
      gamma: its weight.
      interval: steps between penalties, each multiplied by the interval.
      noise: standard deviation of the noise, as a multiple of the root mean square of the inputs of
        a sample, which grow along a network's depth; 0 takes the gradient itself.
    """

    gamma: float
    interval: int = 1
    noise: float = 0.0
    name: str = "r1"

    @property
    def keyed(self) -> bool:
        """See `Penalty`."""
        return self.noise > 0

    def __call__(self, head: Head, inputs: jax.Array, due: Due) -> tuple[jax.Array, jax.Array]:
        """See `Penalty`; what is logged is the squared gradient."""

        def of_gradient(inputs: jax.Array) -> jax.Array:
            gradient = jax.grad(lambda x: jnp.sum(head(x)))(inputs.astype(jnp.float32))
            return jnp.sum(jnp.square(gradient)) / inputs.shape[0]

        def of_difference(inputs: jax.Array) -> jax.Array:
            assert due.keys is not None
            eps = jax.vmap(lambda key: jax.random.normal(key, inputs.shape[1:]))(due.keys)
            inputs = inputs.astype(jnp.float32)
            places = tuple(range(1, inputs.ndim))
            size = self.noise * jnp.sqrt(jnp.mean(jnp.square(inputs), axis=places) + 1e-12)
            difference = head(inputs + expand(size, inputs) * eps) - head(inputs)
            summed = jnp.sum(difference.reshape(len(inputs), -1), axis=1)
            return jnp.mean(jnp.square(summed / size))

        squared = of_difference if self.noise else of_gradient
        is_due = due.step % self.interval == 0
        found = jax.lax.cond(is_due, squared, lambda _: jnp.zeros(()), inputs)
        # NaN is left out of the mean that is logged.
        return 0.5 * self.gamma * self.interval * found, jnp.where(is_due, found, jnp.nan)


def real_loss(form: AdversarialLoss, penalty: Penalty | None, due: Due) -> HeadLoss:
    """Loss of a head on real samples, with the penalty there.

    Args:
      form: the adversarial loss.
      penalty: the penalty; None for none.
      due: when, and its noise.
    """

    def loss(head: Head, inputs: jax.Array) -> tuple[jax.Array, Statistics]:
        logits = head(inputs)
        value = jnp.mean(form.real(logits))
        statistics = _statistics(logits, logits > 0, value)
        if penalty is not None:
            added, statistics["penalty"] = penalty(head, inputs, due)
            value += added
        return value, statistics

    return loss


def pair_loss(
    form: RelativisticLoss, penalty: Penalty | None, due: Due, weight: jax.Array | None = None
) -> HeadLoss:
    """Loss of a head on `in_pairs`, with the penalty on real and on fake inputs, such as R1 and R2.

    Its statistics are those of the fake samples under `fake`, of the real ones under `real`; their
    losses are half of the pair's each, and a location is correct where the real one has the larger
    logit.

    Args:
      form: the adversarial loss.
      penalty: the penalty; None for none.
      due: when, and its noise, with a key of each sample of the pairs.
      weight: of each pair `[B]`; None: 1.
    """

    def loss(head: Head, inputs: jax.Array) -> tuple[jax.Array, Statistics]:
        logits = head(inputs)
        fake, real = of_pairs(logits)
        values = form.of_difference(real - fake)
        if weight is not None:
            values *= expand(weight, values)
        value = jnp.mean(values)
        statistics = {
            "fake": _statistics(fake, real > fake, value / 2),
            "real": _statistics(real, real > fake, value / 2),
        }
        if penalty is not None:
            added, statistics["real"]["penalty"] = penalty(head, inputs, due)
            # A mean over both kinds of sample, where each has its weight.
            value += 2 * added
        return value, statistics

    return loss


def student_loss_at(form: AdversarialLoss) -> Callable[[Head, jax.Array], jax.Array]:
    """Loss of the student at one head, `(head, inputs) -> []`."""
    return lambda head, inputs: jnp.mean(form.student(head(inputs)))


def student_pair_loss_at(form: RelativisticLoss) -> Callable[[Head, jax.Array], jax.Array]:
    """Loss of the student at one head that reads `in_pairs`, `(head, inputs) -> []`."""

    def loss(head: Head, inputs: jax.Array) -> jax.Array:
        fake, real = of_pairs(head(inputs))
        return jnp.mean(form.of_difference(fake - real))

    return loss


def _statistics(logits: jax.Array, correct: jax.Array, loss: jax.Array) -> Statistics:
    locations = tuple(range(1, logits.ndim))
    return {
        "loss": loss,
        "logit": jnp.mean(logits),
        "accuracy": jnp.mean(correct.astype(jnp.float32), axis=locations),
    }
