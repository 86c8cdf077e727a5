"""What every training target shares: its state, its signature, its optimizers.

An objective is an object with

    init(key, params) -> TrainState
    step(state, frozen, batch) -> (state, metrics)
    forward_units: what a step asks for, in forward passes of student and teacher

`step` is pure and compiled by the caller, once for each bucket shape. `frozen` is the tree that
training reads and never changes (the teacher): an argument, so that it is not baked into the
program. `batch` holds `latents [B, H, W, C]`, `context [B, T, Dc]` and `pooled [B, Dp]`.
`metrics` is a flat dict of scalars and small vectors, all float32.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from ladd_jax.models.base import Params
from ladd_jax.training.adam import scale_by_adam

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training needs to go on.

    Attributes:
      step: int32 [], updates done. The data position is a function of it.
      key: raw PRNG key, never changed; each step folds its number in.
      params: the network in training (the student).
      ema: exponential moving average of `params`.
      heads: the discriminator's parameters; empty where there is none.
      optimizer: optimizer state of `params`.
      heads_optimizer: optimizer state of `heads`.
    """

    step: jax.Array
    key: jax.Array
    params: Params
    ema: Params
    heads: Params
    optimizer: Any
    heads_optimizer: Any


class Objective(Protocol):
    """The signature of a training target."""

    @property
    def forward_units(self) -> tuple[int, int]:
        """(student, teacher): forward passes over the batch that a step's model FLOPs amount to."""
        ...

    def init(self, key: jax.Array, params: Params) -> TrainState:
        """State before the first step."""
        ...

    def step(self, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update."""
        ...


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up, optional cosine decay and clipping by global norm.

    Attributes:
      learning_rate: after the warm-up.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: decoupled.
      warmup_steps: from zero to `learning_rate`.
      decay_steps: length of a cosine to zero counted from step 0, warm-up included; 0 is constant.
      clip_norm: largest global norm of the gradient; 0 does not clip.
      moment_dtype: of the moments that are kept, float32 or bfloat16 (see `scale_by_adam`).
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0
    clip_norm: float = 0.0
    moment_dtype: Any = jnp.float32

    def schedule(self) -> optax.Schedule:
        """Learning rate as a function of the step."""
        if self.decay_steps:
            return optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, self.warmup_steps, self.decay_steps
            )
        if self.warmup_steps:
            return optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
        return optax.constant_schedule(self.learning_rate)

    def build(self) -> optax.GradientTransformation:
        """The Optax transformation: the updates of `optax.adamw`."""
        adam = optax.chain(
            scale_by_adam(self.beta1, self.beta2, self.epsilon, self.moment_dtype),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(self.schedule()),
        )
        if self.clip_norm:
            return optax.chain(optax.clip_by_global_norm(self.clip_norm), adam)
        return adam


def update_ema(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """EMA whose decay grows as (1 + step) / (10 + step), so that it forgets the start early.

    Computed in float32 and kept in the dtype of `ema`.
    """
    rate = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def average(e: jax.Array, p: jax.Array) -> jax.Array:
        wide = e.astype(jnp.float32)
        return (wide + rate * (p.astype(jnp.float32) - wide)).astype(e.dtype)

    return jax.tree.map(average, ema, params)
