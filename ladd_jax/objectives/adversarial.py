"""Adversarial losses on logits, positive for real. The paper leaves the form open."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """Element-wise losses of logits.

    Attributes:
      real: the discriminator's, on real samples.
      fake: the discriminator's, on fake samples.
      generator: the generator's, on fake samples.
    """

    real: Callable[[jax.Array], jax.Array]
    fake: Callable[[jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]


ADVERSARIAL_LOSSES = {
    # ADD's (Sauer et al. 2023), which LADD inherits.
    "hinge": AdversarialLoss(
        real=lambda logits: jax.nn.relu(1 - logits),
        fake=lambda logits: jax.nn.relu(1 + logits),
        generator=lambda logits: -logits,
    ),
    # The non-saturating loss of Goodfellow et al. 2014.
    "softplus": AdversarialLoss(
        real=lambda logits: jax.nn.softplus(-logits),
        fake=jax.nn.softplus,
        generator=lambda logits: jax.nn.softplus(-logits),
    ),
    # Least squares (Mao et al. 2017) with targets 1 and -1.
    "lsgan": AdversarialLoss(
        real=lambda logits: jnp.square(logits - 1),
        fake=lambda logits: jnp.square(logits + 1),
        generator=lambda logits: jnp.square(logits - 1),
    ),
}
