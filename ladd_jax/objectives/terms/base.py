"""What a term of the student's loss is given and gives back."""

from typing import Any, NamedTuple, Protocol

import jax

from ladd_jax.models.base import Cond, Params
from ladd_jax.objectives.critics.base import Noise, Opened
from ladd_jax.objectives.terms.ramp import Ramp

PREDICTED_X0 = "predicted_x0"
"""`Seen.fake.predicted_x0()`: the frozen network is run to its end for it, and not cut."""

REAL_FEATURES = "real_features"
"""`Seen.real`: the features of real samples are kept then, where otherwise they pass by."""

FEATURE_GRADIENT = "feature_gradient"
"""`Seen.fake.pull`: the frozen network is gone back through once more than for the heads."""


class Seen(NamedTuple):
    """What a step has of a batch, or a micro-batch, when it comes to the student's loss.

    Attributes:
      x0_hat: the student's prediction `[B, H, W, C]`.
      x_0: the latents of the data `[B, H, W, C]`.
      x_t: what the student was given `[B, H, W, C]`.
      t: at which time, float32 `[B]`.
      own: where x_t is from the student's own sampling and not from x_0, bool `[B]`; None where
        none is.
      paired: where x_t is the noise that the data generator made x_0 of, bool `[B]`; None where
        none is.
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
      name: its metric is `loss/name`.
      weight: its factor in the student's loss.
      needs: which of `PREDICTED_X0`, `REAL_FEATURES` and `FEATURE_GRADIENT` it asks of the step;
        all else in `Seen` is there anyway.
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
    """Gradient of the weighted sum of terms at `x0_hat`, and their metrics.

    Args:
      terms: at least one.
      seen: what the step has.
      ramp: what the weights are multiplied by.
      step: int32 [], updates done.
    """
    metrics, gradient = {}, None
    for term in terms:
        metrics[f"loss/{term.name}"], own = term(seen)
        weight = ramp.weight(term.name, term.weight, step)
        own = own if isinstance(weight, float | int) and weight == 1 else weight * own
        gradient = own if gradient is None else gradient + own
    assert gradient is not None, "a student needs a loss"
    return gradient, metrics
