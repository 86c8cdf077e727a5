"""Attention over tokens."""

import jax


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention without mask, scaled by `1 / sqrt(head width)`.

    Args:
      q: `[B, N, K, D/K]` queries.
      k: `[B, M, K, D/K]` keys.
      v: `[B, M, K, D/K]` values.

    Returns:
      `[B, N, K, D/K]` in the dtype of `q`; logits and softmax are float32.
    """
    return jax.nn.dot_product_attention(q, k, v)
