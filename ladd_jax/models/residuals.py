"""What the backward pass keeps, less what is at hand without it."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Place:
    """Stands in a vjp for leaf `index` of the arrays at hand."""

    index: int


def leave_out(vjp: Any, at_hand: Any) -> Any:
    """A vjp without those of its arrays that its caller has at hand anyway.

    `jax.vjp` gives a tree of the arrays that the backward pass needs. Kept from one scan to the
    next, each of them is stacked, even one that is the scan's own input.

    Args:
      vjp: what `jax.vjp` gave.
      at_hand: tree of arrays that may be among them: the very same ones, values are not compared.
    """
    places = {id(leaf): _Place(i) for i, leaf in enumerate(jax.tree.leaves(at_hand))}
    return jax.tree.map(lambda leaf: places.get(id(leaf), leaf), vjp)


def put_back(vjp: Any, at_hand: Any) -> Any:
    """The inverse of `leave_out`, with the same arrays or those of another turn of a scan."""
    leaves = jax.tree.leaves(at_hand)
    return jax.tree.map(
        lambda leaf: leaves[leaf.index] if isinstance(leaf, _Place) else leaf,
        vjp,
        is_leaf=lambda node: isinstance(node, _Place),
    )
