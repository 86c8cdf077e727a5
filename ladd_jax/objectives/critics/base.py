"""What LADD asks of a critic.

A critic looks at clean latents that it re-noises itself, or decodes, or takes as they are. Its K
heads are trained; whatever they stand on is frozen and comes in `frozen`.

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
      eps: `[B, H, W, C]`.
      t_hat: float32 `[B]`.
    """

    eps: jax.Array
    t_hat: jax.Array


class Opened(Protocol):
    """Latents as the critic sees them, with the way back to them; belongs to one trace.

    Attributes:
      features: what the heads read, a leading axis K first, for terms that compare features.
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
        """These samples and real ones, as `adversarial.in_pairs` has them.

        What goes back to latents goes back to these alone.
        """
        ...

    def pull(self, features_bar: jax.Array) -> jax.Array:
        """The gradient at the latents of a gradient at `features`."""
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
        """The frozen networks that the heads stand on, by the name of their tree in `frozen`."""
        ...

    def units(self, passes: float, predictions: float) -> dict[str, float]:
        """Forward passes of its networks that a step's model FLOPs amount to, by their names.

        The name `teacher` is for the network of that name, whose FLOPs its family knows; `flops`
        has the others.

        Args:
          passes: of all that the heads stand on: forward and backward on fakes, forward on real
            samples, and what terms and settings ask for besides.
          predictions: of x_0, which terms of the student's loss ask for.
        """
        ...

    def flops(self, height: int, width: int) -> dict[str, int]:
        """Multiplications and additions of a forward pass over one sample, by the network's name.

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
        """Gradient of the heads and statistics `[K, ...]` on latents; forward alone, keeps nothing.

        Args:
          heads: the trainable parameters.
          frozen: trees that training never changes, by name.
          x_0: latents `[B, H, W, C]`, constants here.
          noise: what they are re-noised with.
          cond: what belongs to them.
          loss: of each head; the mean over heads is differentiated.
        """
        ...

    def open(self, frozen: dict[str, Any], x_0: jax.Array, noise: Noise, cond: Cond) -> Opened:
        """The latents' features, kept once, and the way back to the latents."""
        ...

    def refreshed(self, heads: Params, share: float, key: jax.Array) -> Params:
        """The heads, of which each is made anew with a probability; `key` is a raw PRNG key."""
        ...
