"""The network whose velocity an objective follows: the guided data generator, or what `finetune`
made of it."""

import dataclasses
from typing import Any

import jax

from ladd_jax.diffusion.samplers import ALWAYS, Velocity, guided
from ladd_jax.models.base import GUIDANCE, Backbone, Cond


@dataclasses.dataclass(frozen=True)
class Followed:
    """A constant network that says where samples of the data come from.

    Attributes:
      network: the network, which predicts velocity.
      tree: name of its parameters among the frozen ones.
      guidance: the scale that it is guided by; or, where each sample has a scale of its own in its
        cond, the least and the largest of those. None: it is not guided, and where the student is
        told a scale, so is this network.
      interval: the first and the last t with guidance.
      image_guidance: the same as `guidance`, on the picture that is joined by channels; 1 for none.
        Samples with a scale of their own on the picture have one on the text, too.
    """

    network: Backbone
    tree: str = "teacher"
    guidance: float | tuple[float, ...] | None = None
    interval: tuple[float, float] = ALWAYS
    image_guidance: float | tuple[float, ...] = 1.0

    @property
    def passes(self) -> int:
        """Forward passes for one velocity, where it is guided."""
        if self.guidance is None:
            return 1
        return 3 if self.image_guidance != 1 else 1 + (self.guidance != 1)

    def velocity(self, frozen: dict[str, Any], cond: Cond) -> Velocity:
        """Its velocity for samples with a condition.

        Args:
          frozen: constant trees: its parameters, and `null`, the cond of the empty prompt.
          cond: arrays `[B, ...]`.
        """

        def model(x: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
            return self.network(frozen[self.tree], x, t, cond)

        if self.guidance is None:
            return guided(model, cond, frozen["null"], 1.0)
        # A guided network is never told the scale.
        given = {name: array for name, array in cond.items() if name != GUIDANCE}
        scales = [
            cond[GUIDANCE][:, number] if isinstance(scale, tuple) else scale
            for number, scale in enumerate((self.guidance, self.image_guidance))
        ]
        return guided(model, given, frozen["null"], scales[0], self.interval, scales[1])
