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
"""Statistics of one head: `loss []`, mean `logit []`, `accuracy [B]`, the share of correct
locations, and `penalty []`, where there is one.

Statistics of all heads have a leading axis K each.
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
    """Loss of the difference between the logits of a fake and of its real sample at one location.

    What both share, such as the prompt, cancels in the difference (Jolicoeur-Martineau 2018;
    Huang et al. 2024, R3GAN, which also adds the penalty on fake samples).

    Attributes:
      of_difference: the heads' loss as a function of real - fake; the student's is the same
        function of fake - real.
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
    """Two trees of arrays `[B, ...]` as one of `[2B, ...]`: each fake sample, then its real one.

    They are interleaved so that each device of a mesh holds whole pairs.
    """
    return jax.tree.map(
        lambda a, b: jnp.stack([a, b], axis=1).reshape(2 * len(a), *a.shape[1:]), fake, real
    )


def of_pairs(both: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The fake and the real samples `[B, ...]` that `in_pairs` interleaved."""
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
    """When a penalty is evaluated, and with which noise.

    Attributes:
      step: int32 [], updates done.
      keys: raw PRNG keys `[B, 2]`, one for the noise on each sample's inputs; None for a penalty
        that draws none.
    """

    step: jax.Array
    keys: jax.Array | None = None


class Penalty(Protocol):
    """What is added to the heads' loss for each head and its inputs.

    Attributes:
      name: name of its metric.
      keyed: whether it needs `Due.keys`.
    """

    @property
    def name(self) -> str: ...

    @property
    def keyed(self) -> bool: ...

    def __call__(self, head: Head, inputs: jax.Array, due: Due) -> tuple[jax.Array, jax.Array]:
        """The weighted penalty [], and the value to log for it [], NaN where it is not due.

        Args:
          head: the head.
          inputs: what the head reads `[B, ...]`.
          due: the step, and the keys of the penalty's noise.
        """
        ...


@dataclasses.dataclass(frozen=True)
class R1:
    """R1 (Mescheder et al. 2018) on a head's own inputs: half its squared gradient, times gamma.

    With `noise` it is the approximate R1 of Lin et al. 2025 (APT, arXiv 2501.08316): the squared
    difference of the summed logits under a little noise, which takes no gradient of a gradient.
    Divided by the noise's variance it estimates the same quantity, so that gamma means the same.

    Attributes:
      gamma: the penalty's weight.
      interval: steps between penalties, each multiplied by the interval.
      noise: standard deviation of the noise, as a multiple of the root mean square of a sample's
        inputs, which grow along a network's depth; 0 takes the gradient itself.
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
        # The logged mean leaves out NaN.
        return 0.5 * self.gamma * self.interval * found, jnp.where(is_due, found, jnp.nan)


def real_loss(form: AdversarialLoss, penalty: Penalty | None, due: Due) -> HeadLoss:
    """Loss of a head on real samples, with the penalty there.

    Args:
      form: the adversarial loss.
      penalty: the penalty; None for none.
      due: the step, and the keys of the penalty's noise.
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

    Its statistics have those of the fake samples under `fake` and those of the real ones under
    `real`; each has half of the pair's loss, and a location is correct where the real sample has
    the larger logit.

    Args:
      form: the adversarial loss.
      penalty: the penalty; None for none.
      due: the step, and the keys of the penalty's noise, one for each sample of the pairs.
      weight: weight of each pair `[B]`; None for 1.
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
            # The penalty is a mean over fake and real samples; each kind is to have full weight.
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
