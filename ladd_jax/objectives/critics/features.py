"""The paper's critic: heads on blocks of the frozen teacher, which sees re-noised latents.

B batch, H W latent grid, C channels, h w token grid, N = hw, D width, L blocks, K heads.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.errors import UserError
from ladd_jax.models.base import Backbone, Cond, Model, Params
from ladd_jax.models.heads import refreshed
from ladd_jax.objectives.adversarial import Head, HeadLoss, Statistics, in_pairs
from ladd_jax.objectives.critics.base import Noise, Opened
from ladd_jax.objectives.critics.tokens import (
    Given,
    OpenedTokens,
    check_hooked,
    judging_tap,
    told,
)


@dataclasses.dataclass(frozen=True)
class FeatureCritic:
    """Independent heads on the image tokens after the teacher's blocks.

    Attributes:
      teacher: the network under the heads, whose parameters are `frozen["teacher"]`. If it is cut
        after the last hooked block, it predicts no velocity.
      head: one head, `head(params, tokens, grid, t_hat, condition) -> logits [B, h, w]`.
      heads: stack of heads, one for each hooked block, under the name `heads`.
      hooked_blocks: blocks with a head; empty: all blocks, as in the paper.
      guidance_ranges: the smallest and the largest value of each guidance scale of the samples, if
        heads are given the scales; see `tokens.told`.
    """

    teacher: Backbone
    head: Model
    heads: Model
    hooked_blocks: tuple[int, ...] = ()
    guidance_ranges: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        blocks = self.teacher.blocks
        check_hooked(self.heads, self.hooked, blocks, "a teacher", "hooked_blocks")

    @property
    def hooked(self) -> tuple[int, ...]:
        """Blocks with a head, in order of depth."""
        return tuple(sorted(set(self.hooked_blocks))) or tuple(range(self.teacher.blocks))

    @property
    def networks(self) -> dict[str, Model]:
        """See `Critic.networks`."""
        return {"teacher": self.teacher}

    def units(self, passes: float, predictions: float) -> dict[str, float]:
        """See `Critic.units`: the passes that the heads read predict x_0 as well."""
        return {"teacher": passes}

    def flops(self, height: int, width: int) -> dict[str, int]:
        """See `Critic.flops`: empty, since the teacher is the only network."""
        return {}

    def judge(
        self,
        heads: Params,
        frozen: dict[str, Any],
        x_0: jax.Array,
        noise: Noise,
        cond: Cond,
        loss: HeadLoss,
    ) -> tuple[Params, Statistics]:
        """See `Critic.judge`."""
        given = self._given(x_0, noise, cond)
        tap, judged = judging_tap(self, heads, given, loss, self.teacher.blocks)
        x_t_hat = jax.lax.stop_gradient(interpolate(x_0, noise.eps, noise.t_hat))
        _, results = self.teacher(frozen["teacher"], x_t_hat, noise.t_hat, cond, tap=tap)
        return judged(results)

    def open(
        self, frozen: dict[str, Any], x_0: jax.Array, noise: Noise, cond: Cond
    ) -> "OpenedFeatures":
        """See `Critic.open`: one forward pass of the teacher, and its backward pass."""
        x_t_hat, renoise_vjp = jax.vjp(lambda x: interpolate(x, noise.eps, noise.t_hat), x_0)
        v, tokens, teacher_vjp = self.teacher.features_vjp(
            frozen["teacher"], x_t_hat, noise.t_hat, cond
        )

        def back(tokens_bar: jax.Array) -> jax.Array:
            (x_0_bar,) = renoise_vjp(teacher_vjp(tokens_bar))
            return x_0_bar

        return OpenedFeatures(
            critic=self,
            given=self._given(x_0, noise, cond),
            tokens=tokens,
            # One more, since the tokens before the first block come first.
            places=tuple(block + 1 for block in self.hooked),
            tokens_vjp=back,
            x_t_hat=x_t_hat,
            v=v,
        )

    def refreshed(self, heads: Params, share: float, key: jax.Array) -> Params:
        """See `Critic.refreshed`."""
        return refreshed(self.heads, heads, share, key)

    def _given(self, x_0: jax.Array, noise: Noise, cond: Cond) -> Given:
        summary = told(self.teacher.summary(cond), cond, self.guidance_ranges)
        return Given(self.teacher.grid(x_0), noise.t_hat, summary)

    def at_head(self, given: Given) -> Callable[[Params], Head]:
        """See `OnTokens.at_head`."""
        return lambda params: lambda tokens: self.head(params, tokens, *given)


@dataclasses.dataclass(frozen=True)
class OpenedFeatures(OpenedTokens):
    """Latents as image tokens of the teacher, before the first block and after each: see `Opened`.

    Attributes:
      x_t_hat: the re-noised latents `[B, H, W, C]`.
      v: the teacher's velocity at `x_t_hat`; None if the teacher is cut.
    """

    x_t_hat: jax.Array
    v: jax.Array | None

    def beside(self, real: Opened) -> "OpenedFeatures":
        """See `Opened.beside`."""
        assert isinstance(real, OpenedFeatures)
        x_t_hat, v = in_pairs((self.x_t_hat, self.v), (real.x_t_hat, real.v))
        return OpenedFeatures(**self.tokens_beside(real), x_t_hat=x_t_hat, v=v)

    def predicted_x0(self) -> jax.Array:
        """See `Opened.predicted_x0`.

        Raises:
          UserError: the teacher is cut.
        """
        if self.v is None:
            raise UserError(
                "the teacher is cut and predicts no x_0, which a term of the student's loss "
                "needs: use the whole network"
            )
        assert self.given.t_hat is not None
        return jax.lax.stop_gradient(predict_x0(self.x_t_hat, self.v, self.given.t_hat))
