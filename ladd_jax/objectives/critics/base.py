"""The interface that LADD needs of a critic.

A critic is given clean latents, which it re-noises, decodes, or takes as they are. Its K heads are
trained. The networks under them are frozen, and their parameters come in `frozen`.

B batch, H W latent grid, C channels, K heads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from ladd_jax.models.base import Cond, Model, Params
from ladd_jax.objectives.adversarial import Head, HeadLoss, Statistics


class Noise(NamedTuple):
    """What latents are re-noised with.

    Attributes:
      eps: the noise, `[B, H, W, C]`.
      t_hat: the noise level, float32 `[B]`.
    """

    eps: jax.Array
    t_hat: jax.Array


class Opened(Protocol):
    """Latents as the critic sees them, with the backward pass to them; valid within one trace.

    Attributes:
      features: what the heads read, with K as its first axis, for terms that compare features.
    """

    @property
    def features(self) -> jax.Array:
        """What the heads read, `[K, B, ...]`."""
        ...

    def judge(self, heads: Params, loss: HeadLoss) -> tuple[Params, Statistics]:
        """Gradient of the heads for the mean of their losses, and statistics `[K, ...]`."""
        ...

    def value_and_gradient(
        self, heads: Params, loss: Callable[[Head, jax.Array], jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Mean over the heads of `loss(head, inputs)`, and its gradient at the latents."""
        ...

    def beside(self, real: "Opened") -> "Opened":
        """These samples and real ones, in the order of `adversarial.in_pairs`.

        Gradients go back to the latents of these samples only.
        """
        ...

    def pull(self, features_bar: jax.Array) -> jax.Array:
        """The gradient at the latents for a gradient at `features`."""
        ...

    def predicted_x0(self) -> jax.Array:
        """The frozen network's own prediction of x_0 from the re-noised latents, `[B, H, W, C]`.

        A constant for the student.
        """
        ...


class Critic(Protocol):
    """Tells real from fake."""

    @property
    def heads(self) -> Model:
        """The trainable parameters: shapes, axes, initialisation."""
        ...

    @property
    def networks(self) -> dict[str, Model]:
        """The frozen networks under the heads, by the name of their parameters in `frozen`."""
        ...

    def units(self, passes: float, predictions: float) -> dict[str, float]:
        """A step's model FLOPs in forward passes of each network, by the network's name.

        FLOPs of a pass come from the family for the name `teacher`, and from `flops` for others.

        Args:
          passes: number of passes through everything under the heads: forward and backward on
            fakes, forward on real samples, and what terms and settings need besides.
          predictions: number of predictions of x_0 that terms of the student's loss need.
        """
        ...

    def flops(self, height: int, width: int) -> dict[str, int]:
        """Multiplications and additions of a forward pass on one sample, by the network's name.

        Args:
          height: rows of the latents.
          width: columns of the latents.
        """
        ...

    def judge(
        self,
        heads: Params,
        frozen: dict[str, Any],
        x_0: jax.Array,
        noise: Noise,
        cond: Cond,
        loss: HeadLoss,
    ) -> tuple[Params, Statistics]:
        """Gradient of the heads and statistics `[K, ...]` on latents.

        The frozen networks only run forward, and no features are kept.

        Args:
          heads: the trainable parameters.
          frozen: parameters that training never changes, by name.
          x_0: latents `[B, H, W, C]`, constants here.
          noise: what the latents are re-noised with.
          cond: cond of the samples.
          loss: loss of each head; the mean over heads is differentiated.
        """
        ...

    def open(self, frozen: dict[str, Any], x_0: jax.Array, noise: Noise, cond: Cond) -> Opened:
        """The latents' features, kept for all uses, and the backward pass to the latents."""
        ...

    def refreshed(self, heads: Params, share: float, key: jax.Array) -> Params:
        """The heads, each initialised again with probability `share`; `key` is a raw PRNG key."""
        ...
