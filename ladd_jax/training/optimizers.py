"""Optimizers: AdamW with its schedule, and an Adam whose state takes less memory than optax's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ladd_jax.errors import UserError
from ladd_jax.ranges import DECAY, NOT_NEGATIVE, POSITIVE, check_choice, check_numbers


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """Float32 to bfloat16, up or down with the probability that keeps the mean at `x`.

    Rounding to nearest would drop every change of less than 1/512 of a value.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # The 16 bits that bfloat16 drops carry into those that it keeps.
    carried = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = (carried >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def scale_by_adam(
    beta1: float, beta2: float, epsilon: float, moment_dtype: Any
) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, computed in float32, with less state kept from step to step.

    Args:
      beta1: decay of the first moment. With 0 it is the gradient itself and none is kept.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment.
      moment_dtype: dtype of the moments that are kept. Bfloat16 is rounded stochastically, by a key
        that follows from the count of updates: a second moment with a decay near 1 changes by less
        than half the distance between two bfloat16 numbers, and rounded to nearest it would stay
        where it is.
    """
    adam = optax.scale_by_adam(beta1, beta2, epsilon)

    def keep(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        moments = (state.mu if beta1 else (), state.nu)
        if moment_dtype == jnp.bfloat16:
            leaves, structure = jax.tree.flatten(moments)
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.count), len(leaves))
            moments = jax.tree.unflatten(structure, map(round_stochastically, leaves, keys))
        return optax.ScaleByAdamState(state.count, *moments)

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        state = adam.init(params)
        first, second = optax.tree.cast((state.mu if beta1 else (), state.nu), moment_dtype)
        return optax.ScaleByAdamState(state.count, first, second)

    def update(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        updates = optax.tree.cast(updates, jnp.float32)
        second = optax.tree.cast(state.nu, jnp.float32)
        # Multiplied by a beta1 of 0, anything will do. Zeros that XLA knows would let it simplify
        # the formula, which then rounds differently than with a first moment.
        first = optax.tree.cast(state.mu, jnp.float32) if beta1 else second
        updates, state = adam.update(updates, optax.ScaleByAdamState(state.count, first, second))
        return updates, keep(state)

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up, optional cosine decay and clipping by global norm.

    Attributes:
      learning_rate: rate after the warm-up; 0 leaves parameters as they are.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: decoupled weight decay.
      warmup_steps: steps in which the rate rises from zero to `learning_rate`.
      decay_steps: length of a cosine to zero counted from step 0, warm-up included; 0 is constant.
      clip_norm: largest global norm of the gradient; 0 does not clip.
      moment_dtype: dtype of the moments that are kept, float32 or bfloat16 (see `scale_by_adam`).
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0
    clip_norm: float = 0.0
    moment_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice(self.moment_dtype, "moment_dtype", "float32", "bfloat16")
        names = ("weight_decay", "warmup_steps", "decay_steps", "clip_norm")
        check_numbers(
            self,
            {"learning_rate": NOT_NEGATIVE, "beta1": DECAY, "beta2": DECAY, "epsilon": POSITIVE}
            | dict.fromkeys(names, NOT_NEGATIVE),
        )
        if self.decay_steps and self.decay_steps <= self.warmup_steps:
            raise UserError(
                f"decay_steps is {self.decay_steps} and warmup_steps is {self.warmup_steps}: use "
                f"more decay_steps, which count the warm-up as well, or 0 for no decay"
            )

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
            scale_by_adam(self.beta1, self.beta2, self.epsilon, jnp.dtype(self.moment_dtype)),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(self.schedule()),
        )
        if self.clip_norm:
            return optax.chain(optax.clip_by_global_norm(self.clip_norm), adam)
        return adam
