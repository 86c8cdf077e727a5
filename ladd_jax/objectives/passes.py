"""The inputs and the results of LADD's passes through the networks.

B batch, H W latent grid, C channels, K heads.
"""

from typing import Any, NamedTuple

import jax
import optax

from ladd_jax.models.base import Cond, Params
from ladd_jax.objectives.adversarial import Statistics
from ladd_jax.objectives.base import Metrics
from ladd_jax.objectives.critics.base import Noise
from ladd_jax.training.optimizers import Optimizer


class Drawn(NamedTuple):
    """A batch with everything that is drawn for it, before it is split into micro-batches.

    Attributes:
      x_0: latents of the data `[B, H, W, C]`.
      cond: their condition, arrays `[B, ...]`.
      x_t: what the student is given `[B, H, W, C]`.
      t: the time of x_t, float32 `[B]`.
      misaligned: for pairs of latents and another sample's cond: that cond, and the pair's weight
        `[B]`, whose mean over the batch is 1; None without such pairs.
      own: where x_t is from the student's own sampling and not from x_0, bool `[B]`; None where
        none is.
      paired: where x_t is the noise that the data generator made x_0 from, bool `[B]`; None where
        none is.
      fake_noise: noise and t_hat for the student's samples.
      real_noise: noise and t_hat for the data.
      penalty_keys: raw PRNG keys `[B, 2]` of the noise that the penalty on the heads draws; None
        where it draws none.
    """

    x_0: jax.Array
    cond: Cond
    x_t: jax.Array
    t: jax.Array
    misaligned: tuple[Cond, jax.Array] | None
    own: jax.Array | None
    paired: jax.Array | None
    fake_noise: Noise
    real_noise: Noise
    penalty_keys: jax.Array | None


class Heads(NamedTuple):
    """The critic's trainable parameters, and the state of their optimizer."""

    params: Params
    optimizer: Any

    def updated(self, optimizer: Optimizer, gradient: Params) -> "Heads":
        """The same after an update."""
        updates, moments = optimizer.build().update(gradient, self.optimizer, self.params)
        return Heads(optax.apply_updates(self.params, updates), moments)


class Verdict(NamedTuple):
    """How the heads judged a batch.

    Attributes:
      gradient: the heads' gradient.
      statistics: of each head `[K]`, on fake and on real samples.
      accuracy: share of correct locations `[B, 2, K]`, of the fake sample and of the real one.
    """

    gradient: Params
    statistics: tuple[Statistics, Statistics]
    accuracy: jax.Array


class Passes(NamedTuple):
    """What the passes through the networks give, whatever their order.

    Attributes:
      student_gradient: gradient of the student's loss.
      losses: the student's losses, by metric.
      x0_hat: the student's predictions `[B, H, W, C]`.
      heads: the heads after all of their updates.
      verdict: verdict of the heads just before the update that sees the same re-noised predictions
        as the student's loss.
    """

    student_gradient: Params
    losses: Metrics
    x0_hat: jax.Array
    heads: Heads
    verdict: Verdict
