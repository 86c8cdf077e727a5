"""Stacks of blocks with the same structure: making them, scanning them, and their backward pass.

B batch, N image tokens, D width, L blocks.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ladd_jax.models.base import next_key
from ladd_jax.models.residuals import leave_out, put_back
from ladd_jax.parallel.mesh import constrain

Run = Callable[[Any, jax.Array, Any, Any], tuple[jax.Array, Any]]
"""One block: `(parameters, x [B, N, D], side, shared) -> (x, side)`.

`side` is a tree of arrays `[B, ...]` that are passed from block to block along with the image
tokens, and `shared` a tree that every block reads.
"""


def stack(build: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules of one structure as one module whose parameters have a leading layer axis."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    keys = jax.random.split(next_key(rngs), count)
    return nnx.merge(graphdef, jax.vmap(lambda key: nnx.split(build(nnx.Rngs(key)))[1])(keys))


def on_batch(tree: Any) -> Any:
    """Shards arrays `[B, ...]` over the mesh by their batch, with the other dimensions whole."""
    return jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), tree)


def scan_with_way_back(
    run: Run,
    states: Any,
    layers: jax.Array,
    carry: tuple[jax.Array, Any, jax.Array],
    shared: Any,
    unroll: int,
) -> tuple[tuple[jax.Array, Any, jax.Array], Callable[..., tuple[jax.Array, Any]]]:
    """Scans blocks, and gives their backward pass with the parameters as constants.

    `jax.vjp` of the whole scan would stack each block's input again, in addition to `features`, and
    the parameters as well. So each block's vjp is stored without the arrays that the backward scan
    has anyway: the block's input, its parameters, and what all blocks share.

    Args:
      run: function of a block.
      states: parameters of the blocks, stacked.
      layers: int32, the blocks' indices in the network.
      carry: image tokens, side, and features `[L + 1, B, N, D]`, which already hold the first
        block's input and get each block's output at the next index.
      shared: what every block reads.
      unroll: number of blocks in one step of the scan.

    Returns:
      the carry, and `back(features, features_bar, x_bar, side_bar)`, which gives the cotangents of
      the first block's inputs from the cotangents of the last block's outputs and of the features.
    """

    def forward(carry: Any, layer_and_state: Any) -> tuple[Any, Any]:
        (x, side, features), (layer, state) = carry, layer_and_state
        (y, side), vjp = jax.vjp(lambda x, side: run(state, x, side, shared), x, side)
        y, side = on_batch((y, side))
        features = jax.lax.dynamic_update_index_in_dim(features, y, layer + 1, 0)
        return (y, side, features), leave_out(vjp, (x, state, shared))

    carry, vjps = jax.lax.scan(forward, carry, (layers, states), unroll=unroll)

    def back(
        features: jax.Array, features_bar: jax.Array, x_bar: jax.Array, side_bar: Any
    ) -> tuple[jax.Array, Any]:
        def body(bars: Any, layer_state_and_vjp: Any) -> tuple[Any, None]:
            layer, state, vjp = layer_state_and_vjp
            x_bar, side_bar = put_back(vjp, (features[layer], state, shared))(on_batch(bars))
            return (x_bar + features_bar[layer], side_bar), None

        bars, _ = jax.lax.scan(
            body, (x_bar, side_bar), (layers, states, vjps), reverse=True, unroll=unroll
        )
        return bars

    return carry, back
