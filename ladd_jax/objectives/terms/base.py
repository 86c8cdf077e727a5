"""What a term of the student's loss is given and returns."""

from typing import Any, NamedTuple, Protocol

import jax

from ladd_jax.models.base import Cond, Params
from ladd_jax.objectives.critics.base import Noise, Opened
from ladd_jax.objectives.terms.ramp import Ramp

PREDICTED_X0 = "predicted_x0"
"""A term needs `Seen.fake.predicted_x0()`: the frozen network must run to its end, and is not
cut."""

REAL_FEATURES = "real_features"
"""A term needs `Seen.real`: the features of real samples are then kept, which they are not
otherwise."""

FEATURE_GRADIENT = "feature_gradient"
"""A term needs `Seen.fake.pull`: one more backward pass through the frozen network."""


class Seen(NamedTuple):
    """What a step knows about a batch, or a micro-batch, when it computes the student's loss.

    Attributes:
      x0_hat: the student's prediction `[B, H, W, C]`.
      x_0: the latents of the data `[B, H, W, C]`.
      x_t: the student's input `[B, H, W, C]`.
      t: the time of the input, float32 `[B]`.
      own: whether x_t comes from the student's own sampling and not from x_0, bool `[B]`; None if
        no x_t does.
      paired: whether x_t is the noise from which the data generator made x_0, bool `[B]`; None if
        no x_t is.
      cond: condition of the samples.
      noise: noise that the fake samples are re-noised with.
      heads: parameters of the critic's heads, after their update.
      fake: `x0_hat`, opened by the critic.
      real: `x_0`, opened by the critic; None where no term needs it.
    """

    x0_hat: jax.Array
    x_0: jax.Array
    x_t: jax.Array
    t: jax.Array
    own: jax.Array | None
    paired: jax.Array | None
    cond: Cond
    noise: Noise
    heads: Params
    fake: Opened
    real: Opened | None


class Term(Protocol):
    """A part of the student's loss.

    Attributes:
      name: name of the term; its metric is `loss/name`.
      weight: factor of the term in the student's loss.
      needs: those of `PREDICTED_X0`, `REAL_FEATURES` and `FEATURE_GRADIENT` that the term needs
        from the step. Everything else in `Seen` is always there.
    """

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """The loss [], without its weight, and its gradient at `x0_hat [B, H, W, C]`."""
        ...


def total(
    terms: tuple[Term, ...], seen: Seen, ramp: Ramp, step: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """Gradient of the weighted sum of terms at `x0_hat`, and the terms' metrics.

    Args:
      terms: the terms, at least one.
      seen: what the step knows about the batch.
      ramp: factors of the weights.
      step: number of updates done, int32 [].
    """
    metrics, gradient = {}, None
    for term in terms:
        metrics[f"loss/{term.name}"], own = term(seen)
        weight = ramp.weight(term.name, term.weight, step)
        own = own if isinstance(weight, float | int) and weight == 1 else weight * own
        gradient = own if gradient is None else gradient + own
    assert gradient is not None, "a student needs a loss"
    return gradient, metrics
