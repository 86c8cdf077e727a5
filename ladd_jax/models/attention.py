"""Attention over tokens: one function, which chooses a kernel for the kind of device.

B batch, N queries, M keys, K heads, D/K head width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention

from ladd_jax.models.residuals import leave_out, put_back
from ladd_jax.parallel.mesh import device_kind, on_each_device

ATTENDED = "attended"
"""Checkpoint name of the output of attention, which with q, k and v is all that a fused backward
pass needs."""

LANES = 128
"""Width of a TPU's vector register; Splash needs block lengths that are multiples of it."""

# With fewer keys the logits are small, and padding would cost more than they do.
_SPLASH_MINIMUM = 512

# Largest block of queries and of keys. It compiles for v5e, v5p and v6e, forward and backward, with
# heads up to 128 wide, and pads SD3's 4096 + 333 tokens by only 1 per cent.
_BLOCK_LIMIT = 896


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention without mask, scaled by `1 / sqrt(head width)`.

    TPUs run Splash (Pallas), and NVIDIA GPUs from Ampere on run cuDNN's flash attention, which does
    not support float32. Neither stores an array of `[B, K, N, M]`. All other cases use
    `softmax_attention`, which stores the softmax's weights.

    Args:
      q: `[B, N, K, D/K]` queries.
      k: `[B, M, K, D/K]` keys.
      v: `[B, M, K, D/K]` values.

    Returns:
      `[B, N, K, D/K]` in the dtype of `q`; logits and softmax are float32.
    """
    # The kernel is chosen while tracing, by the devices of the mesh in use and not by this
    # process's backend, because programs for a TPU pod are also compiled on hosts without one.
    # Choosing when lowering (`jax.lax.platform_dependent`) would trace all kernels, keep what the
    # backward pass of each of them needs, and fail if cuDNN is not installed.
    kind = device_kind()
    width = q.shape[-1]
    if kind.startswith("TPU") and k.shape[1] >= _SPLASH_MINIMUM and width <= LANES:
        return splash(q, k, v, limit=_BLOCK_LIMIT)
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if kind.startswith("NVIDIA") and half and width % 8 == 0 and width <= 128:
        return cudnn(q, k, v)
    return softmax_attention(q, k, v)


@jax.custom_vjp
def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attention` in plain operations, for any device, storing a single array of `[B, K, N, M]`.

    If JAX differentiated it, it would store both exponentials and weights, and on a CPU reading and
    writing these arrays would take longer than the products. So it has its own gradient, that of
    flash attention (Dao et al. 2022, section 3.1) without the blocks.

    Args:
      q: `[B, N, K, D/K]` queries.
      k: `[B, M, K, D/K]` keys.
      v: `[B, M, K, D/K]` values.

    Returns:
      `[B, N, K, D/K]` in the dtype of `q`.
    """
    return _attend(q, k, v)[0]


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
    """The result, and what its gradient needs: arguments, result, and the softmax's weights."""
    logits = _product("bnkd,bmkd->bknm", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(logits).astype(v.dtype)
    out = _product("bknm,bmkd->bnkd", weights, v).astype(q.dtype)
    out = checkpoint_name(out, ATTENDED)
    return out, (q, k, v, out, weights)


def _attend_backward(kept: Any, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    q, k, v, out, weights = kept
    # For each query, the mean of the weights' gradients, weighted by these weights: sum_m p_m dp_m.
    mean = _product("bnkd,bnkd->bkn", cotangent, out)[..., None]
    d_weights = _product("bnkd,bmkd->bknm", cotangent, v)
    d_logits = (weights * (d_weights - mean) / math.sqrt(q.shape[-1])).astype(q.dtype)
    return (
        _product("bknm,bmkd->bnkd", d_logits, k).astype(q.dtype),
        _product("bknm,bnkd->bmkd", d_logits, q).astype(k.dtype),
        _product("bknm,bnkd->bmkd", weights, cotangent).astype(v.dtype),
    )


softmax_attention.defvjp(_attend, _attend_backward)


def keep_attended(primitive: Any, *_: Any, **params: Any) -> bool:
    """A policy of `jax.checkpoint` with which fused attention is not recomputed.

    It keeps the output and, for a fused kernel, the softmax's normalizer, float32 `[B, K, N]`.
    `softmax_attention` has to recompute its weights, at half the cost of a forward pass.
    """
    if primitive.name == "name":
        return params["name"] == ATTENDED
    # cuDNN's attention has no checkpoint names, but is a single primitive.
    return primitive.name == "dot_product_attention_fwd_wrapper"


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attention` by cuDNN's flash attention; each device runs it on its own samples and heads.

    Args:
      q: `[B, N, K, D/K]` queries, bfloat16 or float16, D/K a multiple of 8 up to 128.
      k: `[B, M, K, D/K]` keys.
      v: `[B, M, K, D/K]` values.

    Returns:
      `[B, N, K, D/K]` in the dtype of `q`.

    Raises:
      RuntimeError: cuDNN is not installed.
      NotImplementedError: cuDNN does not support the head width.
    """
    return on_each_device(_cudnn, "batch", None, "heads", None)(q, k, v)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    (b, n, *_), m = q.shape, k.shape[1]
    if n % 2 == 0 and m % 2 == 0:
        return attend(q, k, v)
    # JAX refuses the gradient for odd lengths, and SD3's text has 333 tokens. So one more query and
    # key of zeros is added, which the sequence lengths mask.
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = [jnp.full((b,), length, jnp.int32) for length in (n, m)]
    out = attend(q, k, v, query_seq_lengths=lengths[0], key_value_seq_lengths=lengths[1])
    return out[:, :n]


def block_size(length: int, limit: int) -> int:
    """The block length, a multiple of 128 up to `limit`, for which `length` is padded the least.

    Among equals it is the longest. Many short blocks are avoided, since they would not keep a
    matrix unit busy.
    """
    lanes = -(-length // LANES)
    longest = min(limit // LANES, lanes)
    sizes = range(min(3, -(-longest // 2)), longest + 1)
    return LANES * min(sizes, key=lambda size: (-(-lanes // size) * size, -size))


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, *, limit: int, interpret: bool = False
) -> jax.Array:
    """`attention` by JAX's Splash kernel; each device runs it on its own samples and heads.

    Lengths are padded to whole blocks. Segment ids mask padded keys; padded queries are cut off.

    Args:
      q: `[B, N, K, D/K]` queries.
      k: `[B, M, K, D/K]` keys.
      v: `[B, M, K, D/K]` values.
      limit: largest block, a multiple of 128.
      interpret: whether to interpret the kernel, which works on any backend but is slow.

    Returns:
      `[B, N, K, D/K]` in the dtype of `q`.
    """

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return _splash(q, k, v, limit, interpret)

    return on_each_device(run, "batch", None, "heads", None)(q, k, v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _splash(q: jax.Array, k: jax.Array, v: jax.Array, limit: int, interpret: bool) -> jax.Array:
    attend, laid = _laid_out(q, k, v, limit, interpret)
    return attend(*laid).transpose(0, 2, 1, 3)[:, : q.shape[1]]


def _laid_out(
    q: jax.Array, k: jax.Array, v: jax.Array, limit: int, interpret: bool
) -> tuple[Callable[..., jax.Array], list[jax.Array]]:
    """The kernel, for `[B, K, N, D/K]`, and q, k, v in that form, padded to whole blocks."""
    (_, n, heads, width), m = q.shape, k.shape[1]
    block_q, block_kv = block_size(n, limit), block_size(m, limit)
    # q is scaled here, since the kernel does not scale the logits.
    laid = [_heads_first(q / math.sqrt(width), block_q)]
    laid += [_heads_first(x, block_kv) for x in (k, v)]
    queries, keys = laid[0].shape[2], laid[1].shape[2]
    # A fused backward kernel recomputes the logits once; two kernels would do so twice. It writes a
    # gradient of q for each block of keys, of which there are few, and sums these afterwards.
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask(
            [splash_attention.FullMask((queries, keys)) for _ in range(heads)]
        ),
        block_sizes=splash_attention.BlockSizes(
            block_q=block_q, block_kv=block_kv,
            block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )  # fmt: skip
    segments = None
    if keys > m:
        segments = splash_attention.SegmentIds(
            q=jnp.zeros(queries, jnp.int32), kv=(jnp.arange(keys) >= m).astype(jnp.int32)
        )

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)

    return attend, laid


def _heads_first(x: jax.Array, block: int) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
    return padded.transpose(0, 2, 1, 3)


def _splash_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, limit: int, interpret: bool
) -> tuple[jax.Array, Any]:
    """The result, and a gradient function that stores it in the form in which it is returned.

    The kernel's own gradient stores `[B, K, N, D/K]`, which TPUs pad to rows of 128. With heads 64
    wide that would take twice the memory, in each block of a network.
    """
    (b, n, heads, width), m = q.shape, k.shape[1]
    attend, laid = _laid_out(q, k, v, limit, interpret)
    out, vjp = jax.vjp(attend, *laid)
    queries = out.shape[2]
    merged = out.transpose(0, 2, 1, 3).reshape(b, queries, heads * width)
    merged = checkpoint_name(merged, ATTENDED)

    def backward(merged: jax.Array, vjp: Any, cotangent: jax.Array) -> Any:
        out = merged.reshape(b, queries, heads, width).transpose(0, 2, 1, 3)
        cotangents = put_back(vjp, out)(_heads_first(cotangent, block_size(n, limit)))
        q_bar, k_bar, v_bar = (x.transpose(0, 2, 1, 3) for x in cotangents)
        return q_bar[:, :n] / math.sqrt(width), k_bar[:, :m], v_bar[:, :m]

    result = merged.reshape(b, queries, heads, width)[:, :n]
    return result, jax.tree_util.Partial(backward, merged, leave_out(vjp, out))


def _splash_backward(_: int, __: bool, backward: Any, cotangent: jax.Array) -> Any:
    return backward(cotangent)


_splash.defvjp(_splash_forward, _splash_backward)
