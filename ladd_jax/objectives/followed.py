"""The network whose velocity an objective follows: the guided data generator, or what `finetune`
has made of it."""

import dataclasses
from typing import Any

import jax

from ladd_jax.diffusion.samplers import Velocity, guided
from ladd_jax.models.base import GUIDANCE, Backbone, Cond


@dataclasses.dataclass(frozen=True)
class Followed:
    """A constant network that says where samples of the data come from.

    Attributes:
      network: predicts velocity.
      tree: name of its parameters among the frozen ones.
      guidance: the scale that it is guided by, where a sample's cond does not name its own. None:
        it has learned guided samples and is not guided again; it is told the scale as the student
        is.
    """

    network: Backbone
    tree: str = "teacher"
    guidance: float | None = None

    @property
    def passes(self) -> int:
        """Forward passes for one velocity."""
        return 1 if self.guidance in (None, 1) else 2

    def velocity(self, frozen: dict[str, Any], cond: Cond) -> Velocity:
        """Its velocity for samples of a condition.

        Args:
          frozen: constant trees: its parameters, and `null`, the cond of the empty prompt.
          cond: arrays `[B, ...]`.
        """

        def model(x: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
            return self.network(frozen[self.tree], x, t, cond)

        if self.guidance is None:
            return guided(model, cond, frozen["null"], 1.0)
        # The data generator is never told a scale.
        given = {name: array for name, array in cond.items() if name != GUIDANCE}
        scale = cond[GUIDANCE][:, 0] if GUIDANCE in cond else self.guidance
        return guided(model, given, frozen["null"], scale)
