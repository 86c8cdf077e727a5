"""The paper's critic: heads on the blocks of the frozen teacher, which sees re-noised latents.

B batch, H W latent grid, C channels, h w token grid, N = hw, D width, L blocks, K heads.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.errors import UserError
from ladd_jax.models.base import GUIDANCE, Backbone, Cond, Model, Params
from ladd_jax.models.heads import one_head, refreshed
from ladd_jax.models.layers import timestep_embedding
from ladd_jax.objectives.adversarial import Head, HeadLoss, Statistics, in_pairs, of_pairs
from ladd_jax.objectives.critics.base import Noise, Opened


@dataclasses.dataclass(frozen=True)
class FeatureCritic:
    """Independent heads on the image tokens after the teacher's blocks.

    Attributes:
      teacher: the network under the heads; its parameters are `frozen["teacher"]`. Cut after the
        last hooked block it has no velocity.
      head: one head, `head(params, tokens, grid, t_hat, condition) -> logits [B, h, w]`.
      heads: their stack, one for each hooked block, under the name `heads`.
      hooked_blocks: blocks with a head; empty is all of them, as in the paper.
      guidance_range: the least and the largest scale that samples were guided by. Heads are told
        `cond["guidance"] [B, 1]` then, as sinusoids after the summary, which one number beside a
        long vector could not stand out from. Empty: they are not.
    """

    teacher: Backbone
    head: Model
    heads: Model
    hooked_blocks: tuple[int, ...] = ()
    guidance_range: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        (count,) = {leaf.shape[0] for leaf in jax.tree.leaves(self.heads.shapes["heads"])}
        if count != len(self.hooked):
            raise UserError(
                f"{count} heads stand on {len(self.hooked)} hooked blocks: make one for each"
            )
        for block in self.hooked:
            if not 0 <= block < self.teacher.blocks:
                raise UserError(
                    f"hooked_blocks names block {block} of a teacher of {self.teacher.blocks}: "
                    f"use blocks 0 to {self.teacher.blocks - 1}"
                )

    @property
    def hooked(self) -> tuple[int, ...]:
        """Blocks with a head, in order of depth."""
        return tuple(sorted(set(self.hooked_blocks))) or tuple(range(self.teacher.blocks))

    @property
    def networks(self) -> dict[str, Model]:
        """See `Critic.networks`."""
        return {"teacher": self.teacher}

    def judge(
        self,
        heads: Params,
        frozen: dict[str, Any],
        x_0: jax.Array,
        noise: Noise,
        cond: Cond,
        loss: HeadLoss,
    ) -> tuple[Params, Statistics]:
        """See `Critic.judge`.

        Each head runs inside the teacher's scan, as soon as its features exist, so that none are
        kept: the loss is a sum over blocks.
        """
        blocks = self.teacher.blocks
        slots = [self.hooked.index(b) if b in self.hooked else -1 for b in range(blocks)]
        at_head = self.at_head(self._given(x_0, noise, cond))

        judge = jax.grad(_share(loss, at_head, len(self.hooked)), has_aux=True)

        def one(slot: jax.Array, tokens: jax.Array) -> Any:
            return judge(one_head(heads, slot), tokens)

        def tap(block: jax.Array, tokens: jax.Array) -> Any:
            tokens = jax.lax.stop_gradient(tokens)
            if len(self.hooked) == blocks:
                return one(block, tokens)
            slot = jnp.asarray(slots)[block]
            empty = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, slot, tokens)
            )
            return jax.lax.cond(slot >= 0, one, lambda *_: empty, slot, tokens)

        x_t_hat = jax.lax.stop_gradient(interpolate(x_0, noise.eps, noise.t_hat))
        _, results = self.teacher(frozen["teacher"], x_t_hat, noise.t_hat, cond, tap=tap)
        if len(self.hooked) != blocks:
            results = jax.tree.map(lambda leaf: leaf[jnp.asarray(self.hooked)], results)
        gradient, statistics = results
        return {"heads": gradient}, statistics

    def open(
        self, frozen: dict[str, Any], x_0: jax.Array, noise: Noise, cond: Cond
    ) -> "OpenedFeatures":
        """See `Critic.open`: one pass of the teacher, with the way back through it."""
        x_t_hat, renoise_vjp = jax.vjp(lambda x: interpolate(x, noise.eps, noise.t_hat), x_0)
        v, tokens, teacher_vjp = self.teacher.features_vjp(
            frozen["teacher"], x_t_hat, noise.t_hat, cond
        )

        def back(tokens_bar: jax.Array) -> jax.Array:
            (x_0_bar,) = renoise_vjp(teacher_vjp(tokens_bar))
            return x_0_bar

        return OpenedFeatures(self, self._given(x_0, noise, cond), x_t_hat, v, tokens, back)

    def refreshed(self, heads: Params, share: float, key: jax.Array) -> Params:
        """See `Critic.refreshed`."""
        return refreshed(self.heads, heads, share, key)

    def _given(self, x_0: jax.Array, noise: Noise, cond: Cond) -> "Given":
        summary = self.teacher.summary(cond)
        if self.guidance_range:
            low, high = self.guidance_range
            told = timestep_embedding((cond[GUIDANCE][:, 0] - low) / (high - low))
            summary = jnp.concatenate([summary, told.astype(summary.dtype)], axis=-1)
        return Given(self.teacher.grid(x_0), noise.t_hat, summary)

    def at_head(self, given: "Given") -> Callable[[Params], Head]:
        """From one head's parameters to that head as a function of its tokens."""
        return lambda params: lambda tokens: self.head(params, tokens, *given)


def _share(loss: Any, at_head: Callable[[Params], Head], count: int) -> Callable[..., Any]:
    """One head's share in the mean of `count` heads' losses, of its parameters and its tokens."""

    def share(params: Params, tokens: jax.Array) -> Any:
        result = loss(at_head(params), tokens)
        if isinstance(result, tuple):
            value, statistics = result
            return value / count, statistics
        return result / count

    return share


class Given(NamedTuple):
    """What a head is given besides tokens: grid (h, w), t_hat `[B]` and condition `[B, E]`."""

    grid: tuple[int, int]
    t_hat: jax.Array
    summary: jax.Array


@dataclasses.dataclass(frozen=True)
class OpenedFeatures:
    """Latents as image tokens of the teacher: see `Opened`.

    Attributes:
      critic: whose heads read them.
      given: what they are given besides tokens.
      x_t_hat: the re-noised latents `[B, H, W, C]`.
      v: the teacher's velocity there, None where it is cut.
      tokens: before the first block and after each, `[L + 1, B, N, D]`.
      tokens_vjp: from a gradient at `tokens` to one at the latents.
    """

    critic: FeatureCritic
    given: Given
    x_t_hat: jax.Array
    v: jax.Array | None
    tokens: jax.Array
    tokens_vjp: Callable[[jax.Array], jax.Array]

    @property
    def features(self) -> jax.Array:
        """Tokens after the hooked blocks, `[K, B, N, D]`."""
        return self.tokens[jnp.asarray(self.critic.hooked) + 1]

    def judge(self, heads: Params, loss: HeadLoss) -> tuple[Params, Statistics]:
        """See `Opened.judge`."""
        judge = jax.grad(
            _share(loss, self.critic.at_head(self.given), len(self.critic.hooked)), has_aux=True
        )

        def body(_: None, head_and_block: Any) -> tuple[None, Any]:
            params, block = head_and_block
            return None, judge(params, self.tokens[block + 1])

        _, (gradient, statistics) = jax.lax.scan(
            body, None, (heads["heads"], jnp.asarray(self.critic.hooked))
        )
        return {"heads": gradient}, statistics

    def value_and_gradient(
        self, heads: Params, loss: Callable[[Head, jax.Array], jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """See `Opened`: through the heads, then through the teacher's activations."""
        hooked = self.critic.hooked
        share = _share(loss, self.critic.at_head(self.given), len(hooked))

        def body(tokens_bar: jax.Array, head_and_block: Any) -> tuple[jax.Array, jax.Array]:
            params, block = head_and_block
            value, bar = jax.value_and_grad(share, argnums=1)(params, self.tokens[block + 1])
            return jax.lax.dynamic_update_index_in_dim(tokens_bar, bar, block + 1, 0), value

        tokens_bar, values = jax.lax.scan(
            body, jnp.zeros_like(self.tokens), (heads["heads"], jnp.asarray(hooked))
        )
        return jnp.sum(values), self.tokens_vjp(tokens_bar)

    def beside(self, real: Opened) -> "OpenedFeatures":
        """See `Opened.beside`."""
        assert isinstance(real, OpenedFeatures)
        t_hat, summary = in_pairs(self.given[1:], real.given[1:])
        x_t_hat, v = in_pairs((self.x_t_hat, self.v), (real.x_t_hat, real.v))

        def back(tokens_bar: jax.Array) -> jax.Array:
            return self.tokens_vjp(jax.vmap(lambda bar: of_pairs(bar)[0])(tokens_bar))

        return OpenedFeatures(
            critic=self.critic,
            given=Given(self.given.grid, t_hat, summary),
            x_t_hat=x_t_hat,
            v=v,
            tokens=jax.vmap(in_pairs)(self.tokens, real.tokens),
            tokens_vjp=back,
        )

    def pull(self, features_bar: jax.Array) -> jax.Array:
        """See `Opened.pull`."""
        places = jnp.asarray(self.critic.hooked) + 1
        return self.tokens_vjp(jnp.zeros_like(self.tokens).at[places].set(features_bar))

    def predicted_x0(self) -> jax.Array:
        """See `Opened.predicted_x0`.

        Raises:
          UserError: the teacher is cut.
        """
        if self.v is None:
            raise UserError(
                "the teacher is cut and predicts no x_0, which a term of the student's loss asks "
                "for: use the whole network"
            )
        return jax.lax.stop_gradient(predict_x0(self.x_t_hat, self.v, self.given.t_hat))
