"""Rectified-flow matching, the data generator's training (Esser et al. 2024, section 3)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ladd_jax.diffusion import times
from ladd_jax.diffusion.flow import expand, interpolate, velocity
from ladd_jax.models.base import CHANNELS, Backbone, Cond, Params
from ladd_jax.objectives.accumulation import accumulate
from ladd_jax.objectives.base import (
    Batch,
    Metrics,
    OneNetwork,
    TrainState,
    updated_if_finite,
)
from ladd_jax.ranges import COUNT, DECAY, FINITE, POSITIVE, SHARE, check_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class VelocitySettings:
    """Where a network's velocity is looked at, and how it is averaged.

    Attributes:
      time_mean: mean of the logit-normal distribution of t.
      time_std: standard deviation of that distribution.
      shift: factor that moves t towards noise (`times.shift`); 1 leaves it as it is.
      text_dropout: share of samples trained on the empty prompt, for classifier-free guidance.
      accumulation: micro-batches that a batch is taken in, to need less memory.
      ema_decay: decay of the moving average.
    """

    time_mean: float = 0.0
    time_std: float = 1.0
    shift: float = 1.0
    text_dropout: float = 0.1
    accumulation: int = 1
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        check_numbers(
            self,
            {
                "time_mean": FINITE,
                "time_std": POSITIVE,
                "shift": POSITIVE,
                "text_dropout": SHARE,
                "accumulation": COUNT,
                "ema_decay": DECAY,
            },
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatchingSettings(VelocitySettings):
    """How a network learns the velocity.

    Attributes:
      image_dropout: share of samples trained without the picture that is joined by channels, for
        guidance on it. Half of the samples that lose their text lose the picture, too, as far as
        the share allows. Shares of 0.1 each are those of InstructPix2Pix (Brooks et al. 2023): 5%
        lose the text alone, 5% the picture alone and 5% both.
    """

    image_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, {"image_dropout": SHARE})
        super().__post_init__()


def draw_points(
    settings: VelocitySettings, time_key: jax.Array, noise_key: jax.Array, x_0: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Times float32 `[B]` and noise `[B, H, W, C]` that a velocity is learned at.

    Args:
      settings: distribution of the times.
      time_key: raw PRNG key of the times.
      noise_key: raw PRNG key of the noise.
      x_0: latents `[B, H, W, C]`.
    """
    t = times.logit_normal(time_key, x_0.shape[0], settings.time_mean, settings.time_std)
    return times.shift(t, settings.shift), jax.random.normal(noise_key, x_0.shape)


def drop_conditions(
    key: jax.Array, share: float, cond: Cond, null: Cond, image_share: float = 0.0
) -> Cond:
    """The cond in which some samples lose their text, their picture or both, for classifier-free
    guidance.

    Args:
      key: raw PRNG key.
      share: probability that a sample's text becomes the empty prompt.
      cond: arrays `[B, ...]`.
      null: arrays of the empty prompt, without the batch axis; what it does not have stays.
      image_share: probability that a sample's picture, which is joined by channels, becomes zeros.
    """
    b = next(iter(cond.values())).shape[0]
    drawn = jax.random.uniform(key, (b,))
    emptied = [(drawn < share, null)]
    if image_share:
        first = min(share / 2, 1 - image_share)
        without = (first <= drawn) & (drawn < first + image_share)
        emptied.append((without, {CHANNELS: jnp.zeros(cond[CHANNELS].shape[1:])}))
    for drop, empty in emptied:
        cond = cond | {
            name: jnp.where(expand(drop, cond[name]), nothing, cond[name])
            for name, nothing in empty.items()
        }
    return cond


def match(
    model: Backbone, params: Params, inputs: tuple[Any, ...], wanted: jax.Array, accumulation: int
) -> tuple[Params, jax.Array]:
    """Gradient of the mean squared distance of a velocity to the wanted one, and that distance.

    Args:
      model: the network, which predicts velocity.
      params: its parameters.
      inputs: x_t, t and cond.
      wanted: velocity `[B, H, W, C]`.
      accumulation: micro-batches that the batch is taken in.
    """

    def part(samples: tuple[Any, ...]) -> tuple[Params, jax.Array, Any]:
        *inputs, wanted = samples

        def loss(params: Params) -> jax.Array:
            return jnp.mean(jnp.square(model(params, *inputs) - wanted))

        value, gradient = jax.value_and_grad(loss)(params)
        return gradient, value, ()

    gradient, value, _ = accumulate(part, (*inputs, wanted), accumulation, model)
    return gradient, value


@dataclasses.dataclass(frozen=True)
class FlowMatching(FlowMatchingSettings, OneNetwork):
    """Regression of the velocity."""

    @property
    def forward_units(self) -> tuple[int, int]:
        """(student, teacher): forward and backward through the network in training."""
        return 3, 0

    def step(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """One update, or none where the gradient is not finite.

        `frozen["null"]` is the cond of the empty prompt.
        """
        x_0, cond, null = batch["latents"], batch["cond"], frozen["null"]
        time_key, noise_key, drop_key = jax.random.split(
            jax.random.fold_in(state.key, state.step), 3
        )
        t, eps = draw_points(self, time_key, noise_key, x_0)
        cond = drop_conditions(drop_key, self.text_dropout, cond, null, self.image_dropout)
        x_t, wanted = interpolate(x_0, eps, t), velocity(x_0, eps)
        gradient, value = match(self.model, state.params, (x_t, t, cond), wanted, self.accumulation)
        new, norm, skipped = updated_if_finite(state, self.optimizer, gradient, self.ema_decay)
        metrics = {
            "loss": value,
            "gradient_norm": norm,
            "skipped": skipped.astype(jnp.float32),
            "learning_rate": jnp.asarray(self.optimizer.schedule()(state.step)),
        }
        return new, metrics
