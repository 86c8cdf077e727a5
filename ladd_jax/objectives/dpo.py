"""Diffusion-DPO for rectified flow (Wallace et al. 2023, equation 14): adapters of the data
generator learn which of two pictures people prefer.

    d(x_0) = |v_theta(x_t, t) - v|^2 - |v_ref(x_t, t) - v|^2
    loss = -log sigmoid(-beta / 2 (d(preferred) - d(other)))

v_ref is the network without the adapters, and both pictures have one t and one noise, as in the
authors' code. Squares are means over a latent, so that beta does not depend on its size.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ladd_jax.diffusion.flow import interpolate, velocity
from ladd_jax.models.base import OTHER, PREFERENCE, Cond, Params
from ladd_jax.models.lora import BASE, Adapted
from ladd_jax.objectives.accumulation import accumulate
from ladd_jax.objectives.base import (
    Batch,
    Metrics,
    OneNetwork,
    TrainState,
    updated_if_finite,
)
from ladd_jax.objectives.flow_matching import (
    VelocitySettings,
    draw_points,
    drop_conditions,
)
from ladd_jax.ranges import POSITIVE, check_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOSettings(VelocitySettings):
    """How preferences are learned; times, empty prompts and the average are as in flow matching.

    Attributes:
      beta: scale of the distances in the loss. The larger it is, the less the network departs from
        the one that it began as.
    """

    beta: float = 2000.0

    def __post_init__(self) -> None:
        check_numbers(self, {"beta": POSITIVE})
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class DPO(DPOSettings, OneNetwork):
    """Direct preference optimization.

    Besides `latents`, a batch has `OTHER` and `PREFERENCE` in its cond. Pairs of which neither
    picture was preferred add nothing to the loss.

    Attributes:
      model: the network, which predicts velocity; its adapters are trained, and preferences are
        measured relative to the network without them.
    """

    model: Adapted

    @property
    def forward_units(self) -> tuple[int, int]:
        """(student, teacher): forward and backward through the network for each of two pictures,
        and forward through the one without adapters."""
        return 8, 0

    def step(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """One update, or none where the gradient is not finite.

        `frozen["null"]` is the cond of the empty prompt, `frozen["base"]` has the parameters of the
        network without adapters.
        """
        given = dict(batch["cond"])
        own, other, sign = batch["latents"], given.pop(OTHER), given.pop(PREFERENCE)[:, 0]
        time_key, noise_key, drop_key = jax.random.split(
            jax.random.fold_in(state.key, state.step), 3
        )
        t, eps = draw_points(self, time_key, noise_key, own)
        cond = drop_conditions(drop_key, self.text_dropout, given, frozen["null"])

        def part(samples: tuple[Any, ...]) -> tuple[Params, tuple[jax.Array, ...], Any]:
            def loss(adapters: Params) -> tuple[jax.Array, tuple[jax.Array, ...]]:
                return self._loss(adapters, frozen, *samples)

            gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
            return gradient, metrics, ()

        samples = own, other, sign, eps, t, cond
        gradient, (value, decided, agrees, margin), _ = accumulate(
            part, samples, self.accumulation, self.model
        )
        new, norm, skipped = updated_if_finite(state, self.optimizer, gradient, self.ema_decay)
        # A batch of ties reports zeros instead of 0 / 0.
        decided = jnp.maximum(decided, jnp.finfo(jnp.float32).tiny)
        metrics = {
            "loss": value,
            "accuracy": agrees / decided,
            "margin": margin / decided,
            "gradient_norm": norm,
            "skipped": skipped.astype(jnp.float32),
            "learning_rate": jnp.asarray(self.optimizer.schedule()(state.step)),
        }
        return new, metrics

    def _loss(
        self,
        adapters: Params,
        frozen: dict[str, Any],
        own: jax.Array,
        other: jax.Array,
        sign: jax.Array,
        eps: jax.Array,
        t: jax.Array,
        cond: Cond,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """The loss, and means over the pairs: the loss, the share with a preference, the share of
        preferences that the network agrees with, and the margin by which it does."""
        whole = self.model.complete(adapters, frozen)

        def distance(x_0: jax.Array) -> jax.Array:  # d, [B]
            x_t, v = interpolate(x_0, eps, t), velocity(x_0, eps)
            learned = self.model(whole, x_t, t, cond)
            known = self.model.base(frozen[BASE], x_t, t, cond)
            return _square(learned - v) - _square(known - v)

        # Above 0 where the network moved closer to the preferred picture than to the other one.
        margin = -0.5 * self.beta * sign * (distance(own) - distance(other))
        decided = jnp.abs(sign)
        value = jnp.mean(decided * jax.nn.softplus(-margin))
        agrees = jnp.mean(decided * (margin > 0))
        return value, (value, jnp.mean(decided), agrees, jnp.mean(margin))


def _square(difference: jax.Array) -> jax.Array:
    """Mean over a latent of the squares, `[B]`."""
    return jnp.mean(jnp.square(difference), axis=(1, 2, 3))
