"""A Flax NNX module seen as a pure function of a parameter tree."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ladd_jax.errors import UserError

Params = dict[str, Any]
"""Nested dict of arrays."""


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    init: jax.nn.initializers.Initializer,
    axes: tuple[str | None, ...],
    dtype: Any,
) -> nnx.Param:
    """Declares one parameter: its shape, initializer and logical axes, in one place.

    `axes` names each dimension for the sharding rules of `ladd_jax.parallel.mesh`.
    """
    if len(axes) != len(shape):
        raise UserError(f"axes {axes} do not name the {len(shape)} dimensions of {shape}")
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes)


class Model:
    """Structure of a network without its parameters.

    Several parameter trees (student, teacher, EMA) serve one `Model`. `axes` and `shapes` are
    trees like the parameters: logical axis names, and `jax.ShapeDtypeStruct`.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]):
        self._build = build
        module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        self._graphdef, state = nnx.split(module)
        self.shapes: Params = nnx.to_pure_dict(state)
        self.axes: Params = {}
        for path, variable in nnx.to_flat_state(state):
            axes = variable.get_metadata()["axes"]
            # Stacked blocks have one more dimension than the block's own declaration.
            axes = ("layers",) * (len(variable.get_value().shape) - len(axes)) + axes
            node: dict[Any, Any] = self.axes
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = axes

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters from a PRNG key; jit-compatible."""
        return nnx.to_pure_dict(nnx.split(self._build(nnx.Rngs(key)))[1])

    def __call__(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """The module's `__call__` with these parameters."""
        return self.bind(params)(*args, **kwargs)

    def bind(self, params: Params) -> Any:
        """The module with these parameters, for its other methods."""
        return nnx.merge(self._graphdef, params)


def stack(build: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules of one structure as one module whose parameters have a leading layer axis."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    keys = jax.random.split(rngs.params(), count)
    return nnx.merge(graphdef, jax.vmap(lambda key: nnx.split(build(nnx.Rngs(key)))[1])(keys))


def detach(vjp: Any, known: list[jax.Array]) -> tuple[list[jax.Array], Callable[..., Any]]:
    """Takes out of a vjp what it keeps and its caller has anyway.

    Args:
      vjp: of `jax.vjp`, a tree of the arrays that it keeps.
      known: arrays that may be among them: the very same, as values are not compared.

    Returns:
      The other arrays, and `attach(known, others)`, which makes the vjp again, of this trace or of
      one that is alike.
    """
    kept, structure = jax.tree.flatten(vjp)
    places = {id(array): place for place, array in enumerate(known)}
    sources = [places.get(id(array)) for array in kept]

    def attach(known: list[jax.Array], others: list[jax.Array]) -> Any:
        rest = iter(others)
        arrays = [next(rest) if source is None else known[source] for source in sources]
        return jax.tree.unflatten(structure, arrays)

    return [array for array in kept if id(array) not in places], attach
