"""Latent Consistency Models (Luo et al. 2023), the baseline of the paper, for rectified flow.

The student is sampled like LADD's: by the consistency sampler, unguided.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ladd_jax.models.base import Backbone, Model, Params
from ladd_jax.objectives.base import (
    Batch,
    Metrics,
    TrainState,
    first_state,
    updated_if_finite,
)
from ladd_jax.objectives.consistency import Consistency
from ladd_jax.training.optimizers import Optimizer


@dataclasses.dataclass(frozen=True)
class LCM:
    """Consistency distillation alone, without a critic.

    Attributes:
      consistency: the loss.
      optimizer: optimizer of the student.
      ema_decay: decay of the student's moving average, which the student follows, too.
    """

    consistency: Consistency
    optimizer: Optimizer
    ema_decay: float = 0.999

    @property
    def heads(self) -> None:
        """None."""

    @property
    def heads_optimizer(self) -> None:
        """None."""

    @property
    def reads_noise_keys(self) -> bool:
        """No."""
        return False

    @property
    def student(self) -> Backbone:
        """What is trained."""
        return self.consistency.student

    @property
    def trained(self) -> Backbone:
        """The student."""
        return self.student

    @property
    def accumulation(self) -> int:
        """Micro-batches that a batch is taken in."""
        return self.consistency.accumulation

    @property
    def networks(self) -> dict[str, Model]:
        """The networks whose parameters come in `frozen`, by name."""
        return self.consistency.networks

    @property
    def forward_units(self) -> tuple[int, int]:
        """(student, teacher): see `Consistency.forward_units`."""
        return self.consistency.forward_units, 0

    @property
    def followed_units(self) -> int:
        """The part of the student's `forward_units` that the followed network takes."""
        return self.consistency.followed_units

    def init(self, key: jax.Array, params: Params) -> TrainState:
        """State before the first step; the arguments are those of `LADD.init`."""
        student_key, state_key = jax.random.split(key)
        return first_state(state_key, self.student.begin(student_key, params), self.optimizer)

    def step(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """One update, or none where the gradient is not finite.

        `frozen` is the same as for `Consistency.hold`.
        """
        held = self.consistency.hold(
            jax.random.fold_in(state.key, state.step), state, frozen, batch
        )
        new, norm, skipped = updated_if_finite(state, self.optimizer, held.gradient, self.ema_decay)
        metrics = {
            "loss/consistency": held.value,
            "gradient_norm/student": norm,
            "x0_hat_std": jnp.std(held.x0_hat),
            "skipped": skipped.astype(jnp.float32),
        }
        return new, metrics
