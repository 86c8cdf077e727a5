"""What every training target shares: its state, its signature.

An objective is an object with

    init(key, params) -> TrainState
    step(state, frozen, batch) -> (state, metrics)
    forward_units: what a step asks for, in forward passes of student and teacher

and with the attributes that decide the layout of its step's program: the network that is trained,
its optimizer, what changes beside it, and the networks that stay as they are.

`step` is pure and compiled by the caller, once for each bucket shape. `frozen` holds, by name, the
trees that training reads and never changes (`teacher`, `generator`, `base`, `null`); it is an
argument so that none of them is baked into the program. `batch` holds `latents [B, H, W, C]` and
`cond`, a dict of arrays `[B, ...]`; for an objective that `reads_noise_keys` also `noise_keys`,
uint32 `[B, 2]`, the raw PRNG keys of the noise from which the data generator made the latents.
`metrics` is a flat dict of scalars and small vectors, all float32; `skipped` in it is 1 where a
gradient was not finite and nothing was updated, else 0. If it has `student_updated`, that is 0 in a
step that leaves the student alone, where the student's losses and gradient norm are NaN.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from ladd_jax.diffusion.flow import predict_x0
from ladd_jax.models.base import Backbone, Cond, Model, Params
from ladd_jax.training.ema import update_ema
from ladd_jax.training.optimizers import Optimizer

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training needs to go on.

    Attributes:
      step: int32 [], updates done. The data position is a function of it.
      key: raw PRNG key, never changed; each step folds its number in.
      params: what is trained: the network (the student), or adapters of it.
      ema: exponential moving average of `params`.
      heads: the discriminator's parameters, or what else changes beside the student, such as the
        teacher of progressive distillation; empty where nothing does.
      optimizer: optimizer state of `params`.
      heads_optimizer: optimizer state of `heads`; empty where no gradient moves them.
    """

    step: jax.Array
    key: jax.Array
    params: Params
    ema: Params
    heads: Params
    optimizer: Any
    heads_optimizer: Any


def first_state(
    key: jax.Array,
    params: Params,
    optimizer: Optimizer,
    heads: Params | None = None,
    heads_optimizer: Optimizer | None = None,
) -> TrainState:
    """The state before the first step; the EMA is a copy, so that donation cannot delete it.

    Args:
      key: raw PRNG key of the steps.
      params: what is trained.
      optimizer: optimizer of `params`.
      heads: what changes beside it, if anything.
      heads_optimizer: optimizer of `heads`, where a gradient moves them.
    """
    heads = {} if heads is None else heads
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        heads=heads,
        optimizer=optimizer.build().init(params),
        heads_optimizer=() if heads_optimizer is None else heads_optimizer.build().init(heads),
    )


def student_x0(
    student: Backbone,
    params: Params,
    frozen: dict[str, Any],
    x_t: jax.Array,
    t: jax.Array,
    cond: Cond,
) -> jax.Array:
    """A student's x_0 `[B, H, W, C]` from a point between the data and noise.

    Args:
      student: the student, which predicts velocity.
      params: its trained parameters.
      frozen: constant trees, including those of `student.constants`.
      x_t: the point `[B, H, W, C]`.
      t: its time, float32 `[B]`.
      cond: arrays `[B, ...]`.
    """
    whole = student.complete(params, frozen)
    return predict_x0(x_t, student(whole, x_t, t, cond), t)


def updated(
    state: TrainState,
    optimizer: Optimizer,
    gradient: Params,
    ema_decay: float,
    since: jax.Array | int = 0,
) -> TrainState:
    """The state after an update of `params`, which its average follows.

    Args:
      state: state before the step.
      optimizer: optimizer of `params`.
      gradient: gradient of the loss at `params`.
      ema_decay: decay of the average.
      since: step at which the average began.
    """
    updates, moments = optimizer.build().update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        ema=update_ema(state.ema, params, ema_decay, state.step - since),
        optimizer=moments,
    )


def unless_skipped(skipped: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """The state after a step: `new`, or, where it is skipped, `old` with the step counted.

    A skipped step counts, too, because the count is also the position in the data: the next step
    then has other data.

    Args:
      skipped: bool [], whether a gradient is not finite. Decided on the device, so that no host
        waits.
      new: state after the update.
      old: state before it.
    """
    kept = jax.tree.map(lambda a, b: jnp.where(skipped, b, a), new, old)
    return dataclasses.replace(kept, step=new.step)


def updated_if_finite(
    state: TrainState,
    optimizer: Optimizer,
    gradient: Params,
    ema_decay: float,
    since: jax.Array | int = 0,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """The end of a step that trains `params` alone; arguments are those of `updated`.

    Returns:
      The state after the step, the gradient's norm, and whether the norm is not finite, in which
      case nothing was updated.
    """
    norm = optax.tree.norm(gradient)
    skipped = ~jnp.isfinite(norm)
    new = updated(state, optimizer, gradient, ema_decay, since)
    return unless_skipped(skipped, new, state), norm, skipped


class Objective(Protocol):
    """The signature of a training target.

    Attributes:
      trained: the network that is trained, which predicts velocity; `TrainState.params` are its
        parameters.
      optimizer: optimizer of these parameters.
      heads: what changes beside it, such as a critic's heads; None for nothing.
      heads_optimizer: optimizer of the heads, where a gradient moves them.
      accumulation: micro-batches that a batch is taken in.
      networks: the networks whose parameters come in `frozen`, by name.
      reads_noise_keys: whether a batch has `noise_keys`.
    """

    @property
    def trained(self) -> Backbone: ...

    @property
    def optimizer(self) -> Optimizer: ...

    @property
    def heads(self) -> Model | None: ...

    @property
    def heads_optimizer(self) -> Optimizer | None: ...

    @property
    def accumulation(self) -> int: ...

    @property
    def networks(self) -> dict[str, Model]: ...

    @property
    def reads_noise_keys(self) -> bool: ...

    @property
    def forward_units(self) -> tuple[float, float]:
        """(student, teacher): forward passes over the batch that a step's model FLOPs amount to."""
        ...

    def init(self, key: jax.Array, params: Params) -> TrainState:
        """State before the first step."""
        ...

    def step(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """One update."""
        ...


class StudentObjective(Objective, Protocol):
    """The signature of a target that makes a student of few steps, for the stage `distil`.

    Attributes:
      student: what is trained, by the paper's name.
    """

    @property
    def student(self) -> Backbone: ...

    @property
    def followed_units(self) -> float:
        """The part of the student's `forward_units` that the followed network takes."""
        ...


@dataclasses.dataclass(frozen=True)
class OneNetwork:
    """What all targets share that train one network and nothing beside it.

    Attributes:
      model: the network, which predicts velocity.
      optimizer: optimizer of its trained parameters.
    """

    model: Backbone
    optimizer: Optimizer

    @property
    def trained(self) -> Backbone:
        """The network, or its adapters."""
        return self.model

    @property
    def networks(self) -> dict[str, Model]:
        """The network that adapters belong to; none where the whole network is trained."""
        return self.model.constants

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

    def init(self, key: jax.Array, params: Params) -> TrainState:
        """State before the first step.

        Args:
          key: raw PRNG key of the steps.
          params: what is trained.
        """
        return first_state(key, params, self.optimizer)
