"""Removes arrays from a vjp's residuals that the backward pass can get elsewhere."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Place:
    """A placeholder in a vjp for leaf `index` of the arrays at hand."""

    index: int


def leave_out(vjp: Any, at_hand: Any) -> Any:
    """Replaces arrays in a vjp by placeholders if the caller has them anyway.

    The function that `jax.vjp` returns is a tree of the arrays that the backward pass needs. If a
    scan returns it, each of these arrays is stacked, even one that is an input of the scan.

    Args:
      vjp: the function that `jax.vjp` returned.
      at_hand: tree of the arrays to replace; they are compared by identity, not by value.
    """
    places = {id(leaf): _Place(i) for i, leaf in enumerate(jax.tree.leaves(at_hand))}
    return jax.tree.map(lambda leaf: places.get(id(leaf), leaf), vjp)


def put_back(vjp: Any, at_hand: Any) -> Any:
    """The inverse of `leave_out`, with the same arrays or those of another step of a scan."""
    leaves = jax.tree.leaves(at_hand)
    return jax.tree.map(
        lambda leaf: leaves[leaf.index] if isinstance(leaf, _Place) else leaf,
        vjp,
        is_leaf=lambda node: isinstance(node, _Place),
    )
