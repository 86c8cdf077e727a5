"""Weights that change while a student is trained."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ladd_jax.added_fields import with_fields
from ladd_jax.errors import UserError
from ladd_jax.ranges import NOT_NEGATIVE

Factors = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
    """Factors on the weight of each term: one at first, one in the end, and linear in between.

    Fields have the names of the losses in the log. A term whose factor falls to 0 costs as much as
    before. `ramp_of` adds fields for terms of other packages.

    Attributes:
      steps: the first factor holds until the first of these steps, the last from the second on.
      generator: factors of the adversarial loss, whose weight is 1.
      distillation: factors of `distillation_weight`.
      moments: factors of `moments_weight`.
      paired: factors of `paired_weight`.
      reconstruction: factors of `reconstruction_weight`.
      consistency: factors of `consistency_weight`.
    """

    steps: tuple[int, int] = (0, 0)
    generator: Factors = (1.0, 1.0)
    distillation: Factors = (1.0, 1.0)
    moments: Factors = (1.0, 1.0)
    paired: Factors = (1.0, 1.0)
    reconstruction: Factors = (1.0, 1.0)
    consistency: Factors = (1.0, 1.0)

    def __post_init__(self) -> None:
        first, last = self.steps
        if not 0 <= first <= last:
            raise UserError(
                f"steps is {self.steps}: use two steps from 0, the first not after the second"
            )
        if last and not self.ramped:
            raise UserError(
                f"steps is {self.steps} and all factors are 1, so that no weight changes: give a "
                f"loss factors, or leave the steps at (0, 0)"
            )
        for name in self._names:
            factors = getattr(self, name)
            if not all(factor in NOT_NEGATIVE for factor in factors):
                raise UserError(f"{name} is {factors}: use two numbers of 0 or more")
            if factors != (1, 1) and not last:
                raise UserError(
                    f"{name} is {factors} and steps is {self.steps}, which has no steps to change "
                    f"it in: use steps such as (0, 1000)"
                )

    @property
    def _names(self) -> tuple[str, ...]:
        """Terms whose weights may change."""
        return tuple(field.name for field in dataclasses.fields(self) if field.name != "steps")

    @property
    def ramped(self) -> tuple[str, ...]:
        """Names of the terms whose weights change."""
        return tuple(name for name in self._names if getattr(self, name) != (1.0, 1.0))

    def weight(self, name: str, weight: float, step: jax.Array) -> jax.Array | float:
        """The weight of a term at a step, float32 []; a plain number if it never changes.

        Args:
          name: name of the term; a term without a field here never changes.
          weight: weight of the term without the ramp.
          step: number of updates done, int32 [].
        """
        if name not in self.ramped:
            return weight
        begin, end = self.steps
        first, last = getattr(self, name)
        share = jnp.clip((step - begin) / max(end - begin, 1), 0.0, 1.0)
        return weight * (first + (last - first) * jnp.where(step >= end, 1.0, share))


@functools.cache
def ramp_of(names: tuple[str, ...]) -> type[Ramp]:
    """The class of ramps with factors of further terms, which are 1 by default.

    Args:
      names: names of these terms.

    Raises:
      UserError: a name cannot be the name of a field, or there is a field of that name already.
    """
    if not names:
        return Ramp
    fields = dict.fromkeys(names, (Factors, (1.0, 1.0)))
    return with_fields("Ramp", "a term", fields, functools.partial(_ramp, names), Ramp)


def _ramp(names: tuple[str, ...], values: dict[str, Any]) -> Ramp:
    return ramp_of(names)(**values)
