"""Moment matching (Starodubcev et al. 2025, SwD): the distance to real samples in mean features.

A sample's features are means over its tokens, after the blocks that the heads read anyway. So there
is no further forward pass, but one more backward pass through the frozen network. Both samples of a
pair have the same condition, t_hat and noise.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ladd_jax.objectives.terms.base import FEATURE_GRADIENT, REAL_FEATURES, Seen

_CORNER = 1e-3
"""c of the pseudo-Huber distance sqrt(|d|^2 + c^2) - c."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Pseudo-Huber distance of mean features, summed over blocks and averaged over samples.

    Attributes:
      weight: see `Term`.
      t_hat: the largest t_hat at which samples are compared; above it the distance counts as 0.
    """

    weight: float
    t_hat: float = 1.0
    name: str = "moments"
    needs: frozenset[str] = frozenset({REAL_FEATURES, FEATURE_GRADIENT})

    def __call__(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """See `Term`."""
        assert seen.real is not None
        # The axes between batch and features: a critic may give tokens or a grid.
        places = tuple(range(2, seen.real.features.ndim - 1))
        real = jnp.mean(seen.real.features.astype(jnp.float32), axis=places)
        compared = seen.noise.t_hat <= self.t_hat

        def distance(features: jax.Array) -> jax.Array:
            d = jnp.mean(features.astype(jnp.float32), axis=places) - real
            huber = jnp.sqrt(jnp.sum(jnp.square(d), axis=-1) + _CORNER**2) - _CORNER
            return jnp.mean(jnp.sum(jnp.where(compared, huber, 0.0), axis=0))

        value, features_bar = jax.value_and_grad(distance)(seen.fake.features)
        return value, seen.fake.pull(features_bar)
