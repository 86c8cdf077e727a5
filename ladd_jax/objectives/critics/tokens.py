"""The common part of critics with heads on the tokens of a frozen transformer.

B batch, h w token grid, N = hw, D width, L blocks, K heads.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ladd_jax.errors import UserError
from ladd_jax.models.base import GUIDANCE, Cond, Model, Params, Tap
from ladd_jax.models.heads import one_head
from ladd_jax.models.layers import timestep_embedding
from ladd_jax.objectives.adversarial import Head, HeadLoss, Statistics, in_pairs, of_pairs


class Given(NamedTuple):
    """What a head is given besides tokens: grid (h, w), t_hat `[B]` and condition `[B, E]`.

    t_hat is None where the critic sees no noise.
    """

    grid: tuple[int, int]
    t_hat: jax.Array | None
    summary: jax.Array


class OnTokens(Protocol):
    """A critic with heads on tokens."""

    @property
    def hooked(self) -> tuple[int, ...]:
        """Blocks with a head, in order of depth."""
        ...

    def at_head(self, given: Given) -> Callable[[Params], Head]:
        """A function from one head's parameters to that head as a function of its tokens."""
        ...


def check_hooked(
    heads: Model, hooked: Sequence[int], blocks: int, network: str, field: str
) -> None:
    """Raises UserError unless there is one head for each hooked block, and all blocks exist.

    Args:
      heads: the stack of heads.
      hooked: the hooked blocks.
      blocks: number of blocks of the network.
      network: what messages call the network.
      field: the field that names the blocks.
    """
    (count,) = {leaf.shape[0] for leaf in jax.tree.leaves(heads.shapes["heads"])}
    if count != len(hooked):
        raise UserError(f"{count} heads stand on {len(hooked)} hooked blocks: make one for each")
    for block in hooked:
        if not 0 <= block < blocks:
            raise UserError(
                f"{field} names block {block} of {network} of {blocks}: use blocks 0 to "
                f"{blocks - 1}"
            )


def told(summary: jax.Array, cond: Cond, guidance_ranges: Sequence[Sequence[float]]) -> jax.Array:
    """The vector that heads are conditioned on, `[B, E]`.

    Args:
      summary: the vector that sums up the cond.
      cond: the cond, which has the guidance `[B, n]` if heads are given it.
      guidance_ranges: the smallest and the largest value of each of n scales. The scales follow the
        summary as sinusoids, since a single number would be lost beside a long vector. Empty: heads
        are not given the guidance.
    """
    parts = [summary]
    for number, (low, high) in enumerate(guidance_ranges):
        scale = timestep_embedding((cond[GUIDANCE][:, number] - low) / (high - low))
        parts.append(scale.astype(summary.dtype))
    return jnp.concatenate(parts, axis=-1)


def judging_tap(
    critic: OnTokens, heads: Params, given: Given, loss: HeadLoss, blocks: int
) -> tuple[Tap, Callable[[Any], tuple[Params, Statistics]]]:
    """A tap that runs each head inside the network's scan, so that no tokens are kept.

    Args:
      critic: the critic that has the heads.
      heads: parameters of the heads.
      given: what the heads are given besides tokens.
      loss: loss of each head; the mean over heads is differentiated.
      blocks: number of blocks that the network scans.

    Returns:
      The tap, and a function from its results, stacked `[L, ...]`, to those of `Critic.judge`.
    """
    hooked = critic.hooked
    slots = [hooked.index(b) if b in hooked else -1 for b in range(blocks)]
    judge = jax.grad(_share(loss, critic.at_head(given), len(hooked)), has_aux=True)

    def one(slot: jax.Array, tokens: jax.Array) -> Any:
        return judge(one_head(heads, slot), tokens)

    def tap(block: jax.Array, tokens: jax.Array) -> Any:
        tokens = jax.lax.stop_gradient(tokens)
        if len(hooked) == blocks:
            return one(block, tokens)
        slot = jnp.asarray(slots)[block]
        empty = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, slot, tokens)
        )
        return jax.lax.cond(slot >= 0, one, lambda *_: empty, slot, tokens)

    def judged(results: Any) -> tuple[Params, Statistics]:
        if len(hooked) != blocks:
            results = jax.tree.map(lambda leaf: leaf[jnp.asarray(hooked)], results)
        gradient, statistics = results
        return {"heads": gradient}, statistics

    return tap, judged


def _share(loss: Any, at: Callable[[Params], Head], count: int) -> Callable[..., Any]:
    """One head's share of the mean of `count` heads' losses, as a function of parameters and
    tokens."""

    def share(params: Params, tokens: jax.Array) -> Any:
        result = loss(at(params), tokens)
        if isinstance(result, tuple):
            value, statistics = result
            return value / count, statistics
        return result / count

    return share


@dataclasses.dataclass(frozen=True)
class OpenedTokens:
    """Latents as tokens that heads read, with the backward pass: the common part of `Opened`.

    Attributes:
      critic: the critic whose heads read the tokens.
      given: what the heads are given besides tokens.
      tokens: tokens of a network `[T, B, N, D]`, including those of the hooked blocks.
      places: indices along T of the tokens that the heads read.
      tokens_vjp: function from a gradient at `tokens` to one at the latents.
    """

    critic: OnTokens
    given: Given
    tokens: jax.Array
    places: tuple[int, ...]
    tokens_vjp: Callable[[jax.Array], jax.Array]

    @property
    def features(self) -> jax.Array:
        """Tokens after the hooked blocks, `[K, B, N, D]`."""
        return self.tokens[jnp.asarray(self.places)]

    def judge(self, heads: Params, loss: HeadLoss) -> tuple[Params, Statistics]:
        """See `Opened.judge`."""
        judge = jax.grad(
            _share(loss, self.critic.at_head(self.given), len(self.places)), has_aux=True
        )

        def body(_: None, head_and_place: Any) -> tuple[None, Any]:
            params, place = head_and_place
            return None, judge(params, self.tokens[place])

        _, (gradient, statistics) = jax.lax.scan(
            body, None, (heads["heads"], jnp.asarray(self.places))
        )
        return {"heads": gradient}, statistics

    def value_and_gradient(
        self, heads: Params, loss: Callable[[Head, jax.Array], jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """See `Opened`: backward through the heads, then through the network."""
        share = _share(loss, self.critic.at_head(self.given), len(self.places))

        def body(tokens_bar: jax.Array, head_and_place: Any) -> tuple[jax.Array, jax.Array]:
            params, place = head_and_place
            value, bar = jax.value_and_grad(share, argnums=1)(params, self.tokens[place])
            return jax.lax.dynamic_update_index_in_dim(tokens_bar, bar, place, 0), value

        tokens_bar, values = jax.lax.scan(
            body, jnp.zeros_like(self.tokens), (heads["heads"], jnp.asarray(self.places))
        )
        return jnp.sum(values), self.tokens_vjp(tokens_bar)

    def pull(self, features_bar: jax.Array) -> jax.Array:
        """See `Opened.pull`."""
        places = jnp.asarray(self.places)
        return self.tokens_vjp(jnp.zeros_like(self.tokens).at[places].set(features_bar))

    def tokens_beside(self, real: "OpenedTokens") -> dict[str, Any]:
        """The fields above for these samples and real ones, in the order of `in_pairs`."""

        def back(tokens_bar: jax.Array) -> jax.Array:
            return self.tokens_vjp(jax.vmap(lambda bar: of_pairs(bar)[0])(tokens_bar))

        return {
            "critic": self.critic,
            "given": Given(self.given.grid, *in_pairs(self.given[1:], real.given[1:])),
            "tokens": jax.vmap(in_pairs)(self.tokens, real.tokens),
            "places": self.places,
            "tokens_vjp": back,
        }
