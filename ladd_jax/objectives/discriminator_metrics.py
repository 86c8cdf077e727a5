"""The metrics that are logged of the heads' judgement."""

import jax
import jax.numpy as jnp

from ladd_jax.objectives.adversarial import Statistics

BANDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Edges of the bands of t_hat in which the discriminator's accuracy is reported."""


def discriminator_metrics(
    fake: Statistics,
    real: Statistics,
    accuracy: jax.Array,
    t_fake: jax.Array,
    t_real: jax.Array,
) -> dict[str, jax.Array]:
    """Means over heads, values per head `[K]`, accuracy by band of t_hat (NaN: none in band).

    Args:
      fake: statistics `[K]` on fake samples.
      real: statistics `[K]` on real samples.
      accuracy: share of correct locations `[B, 2, K]`, fake then real.
      t_fake: t_hat of the fake samples `[B]`.
      t_real: t_hat of the real samples `[B]`.
    """
    metrics = {
        "logit/real": real["logit"],
        "logit/fake": fake["logit"],
        "accuracy/head": jnp.mean(accuracy, axis=(0, 1)),
        "accuracy": jnp.mean(accuracy),
    }
    t_hat = jnp.concatenate([t_fake, t_real])
    by_sample = jnp.mean(accuracy, axis=-1).T.reshape(-1)  # fake, then real
    for low, high in zip(BANDS[:-1], BANDS[1:], strict=True):
        inside = (t_hat >= low) & (t_hat < high)
        metrics[f"accuracy/t_hat_{low:.2f}_{high:.2f}"] = jnp.mean(by_sample, where=inside)
    return metrics
