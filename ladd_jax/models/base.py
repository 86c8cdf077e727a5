"""Networks as pure functions of a parameter tree, and the interface that the method needs."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ladd_jax.errors import UserError

Params = dict[str, Any]
"""Nested dict of arrays."""

Cond = dict[str, jax.Array]
"""What a network is given besides x_t and t: arrays `[B, ...]` by name, such as the text.

Apart from the names below, only a family of networks and the sources of its data know the names.
The arrays of the empty prompt (`null`) have no batch dimension.
"""

GUIDANCE = "guidance"
"""Name in a cond of the guidance scale that a student is given, float32 `[B, 1]`, or of both
scales, on the text and on the image, `[B, 2]`."""

CHANNELS = "channels"
"""Name in a cond of what the data join to the channels of x_t, `[B, H, W, J]`. It is replaced by
zeros for the prediction without the picture in guidance on a picture."""

OTHER = "other"
"""Name in a cond of the latents `[B, H, W, C]` that a record's own latents were compared with in a
pair. It is not given to networks."""

PREFERENCE = "preference"
"""Name in a cond of the preference in a pair, float32 `[B, 1]`: 1 for the record's own latents, -1
for the other ones, 0 for neither. It is not given to networks."""

Tap = Callable[[jax.Array, jax.Array], Any]
"""`tap(block int32 [], tokens [B, N, D]) -> tree`: reads the image tokens after a block."""


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
    return nnx.Param(init(next_key(rngs), shape, dtype), axes=axes)


def next_key(rngs: nnx.Rngs) -> jax.Array:
    """The key that `rngs.params()` returns, at a cost that does not grow with each key.

    While tracing, `rngs.params()` itself reads a tracer's sharding for each key. JAX then formats
    an error that nobody sees, and searches all equations so far to do so.
    """
    stream = rngs.params
    count = stream.count.get_value()
    stream.count.set_value(count + 1)
    return jax.random.fold_in(stream.key.get_value(), count)


class Structure(NamedTuple):
    """What tracing a module's constructor gives.

    Attributes:
      graphdef: the module without its parameters.
      shapes: tree like the parameters, of `jax.ShapeDtypeStruct`.
      axes: tree like the parameters, of tuples of logical axis names.
    """

    graphdef: Any
    shapes: Params
    axes: Params


def structure_of(build: Callable[[nnx.Rngs], nnx.Module]) -> Structure:
    """Traces the function that makes a module."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    named: Params = {}
    for path, variable in nnx.to_flat_state(state):
        axes = variable.get_metadata()["axes"]
        # Parameters of stacked blocks have one more dimension than the block declares.
        axes = ("layers",) * (len(variable.get_value().shape) - len(axes)) + axes
        node: dict[Any, Any] = named
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = axes
    # Without the mesh that this may be called in: a structure may be kept for another one.
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), nnx.to_pure_dict(state)
    )
    return Structure(graphdef, shapes, named)


class Model:
    """Structure of a network without its parameters.

    One `Model` is used with several parameter trees (student, teacher, EMA). `axes` and `shapes`
    are trees like the parameters, of logical axis names and of `jax.ShapeDtypeStruct`. `build`
    makes the module.

    If only a part of the network is trained, such as adapters, the parameters are that part, and
    `constants` holds the network with the constant parameters, by the name of their tree among the
    frozen ones. `own_layers` names layers that a student has in addition to those of the network
    that it begins with.
    """

    own_layers: tuple[str, ...] = ()

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], structure: Structure | None = None):
        """Describes a network.

        Args:
          build: makes the module.
          structure: what `structure_of(build)` gives, if it is at hand: tracing takes a while.
        """
        self.build = build
        self.constants: dict[str, Model] = {}
        self._graphdef, *trees = structure or structure_of(build)
        # Dicts of its own, since several networks may share a structure.
        self.shapes, self.axes = jax.tree.map(lambda leaf: leaf, trees)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters from a PRNG key; jit-compatible."""
        return nnx.to_pure_dict(nnx.split(self.build(nnx.Rngs(key)))[1])

    def begin(self, key: jax.Array, start: Params) -> Params:
        """The parameters that a training starts with.

        Args:
          key: raw PRNG key of everything that is drawn.
          start: parameters of a whole network, in any dtype. The trained ones are copied, because a
            step donates its state, which would invalidate buffers shared with another network.
            Parameters of `own_layers` are drawn if `start` does not have them.
        """
        new = [name for name in self.own_layers if name not in start]
        if new:
            drawn = self.init(key)
            start = start | {name: drawn[name] for name in new}
        return jax.tree.map(
            lambda leaf, own: jnp.array(leaf, own.dtype, copy=True), start, self.shapes
        )

    def complete(self, params: Params, frozen: dict[str, Any]) -> Params:
        """All parameters that the network computes with, from the trained and the constant ones.

        Args:
          params: trained parameters, as `begin` makes them.
          frozen: constant trees by name, including those of `constants`.
        """
        return params

    def __call__(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """The module's `__call__` with these parameters."""
        return self.bind(params)(*args, **kwargs)

    def bind(self, params: Params) -> Any:
        """The module with these parameters, to call its other methods."""
        return nnx.merge(self._graphdef, params)


class Backbone(Model):
    """A network that predicts velocity and can expose its image tokens, as the method needs.

    A family of networks makes one of an NNX module that has `__call__(x_t, t, cond, tap=None)` and
    `features_vjp(x_t, t, cond)`. Shapes: B batch, H W latent grid, C channels, L blocks,
    N image tokens, D width.

    Attributes:
      blocks: number of blocks L.
      width: features of an image token D.
      patch: side of the square of latent pixels that becomes one token; N is HW / patch^2.
      summary_width: length of the vector that summarises a cond.
      summary_name: name of that vector in a cond.
    """

    def __init__(
        self,
        build: Callable[[nnx.Rngs], nnx.Module],
        *,
        blocks: int,
        width: int,
        patch: int,
        summary: str,
        summary_width: int,
        own_layers: tuple[str, ...] = (),
        structure: Structure | None = None,
    ):
        """Describes a network.

        Args:
          build: makes the module.
          blocks: number of blocks L.
          width: features of an image token D.
          patch: side of a patch.
          summary: name of the array `[B, summary_width]` in a cond that summarises it.
          summary_width: length of that vector.
          own_layers: layers that are initialized if the network that a student begins with does not
            have them; they are initialized so that they change nothing.
          structure: see `Model`.
        """
        super().__init__(build, structure)
        self.blocks, self.width, self.patch = blocks, width, patch
        self.summary_width = summary_width
        self.summary_name = summary
        self.own_layers = own_layers

    def __call__(
        self, params: Params, x_t: jax.Array, t: jax.Array, cond: Cond, tap: Tap | None = None
    ) -> Any:
        """Velocity float32 `[B, H, W, C]` at `x_t [B, H, W, C]` and `t [B]`.

        With `tap`, it returns the velocity and what the tap returned for each block, stacked
        `[L, ...]`. The velocity of a network that is cut is None.
        """
        return self.bind(params)(x_t, t, cond, tap=tap)

    def features_vjp(
        self, params: Params, x_t: jax.Array, t: jax.Array, cond: Cond
    ) -> tuple[jax.Array | None, jax.Array, Callable[[jax.Array], jax.Array]]:
        """The velocity, all image tokens, and the backward pass from these to `x_t`.

        Returns:
          v; the image tokens before the first block and after each, `[L + 1, B, N, D]`, in memory
          only once; and a function from their cotangent to the cotangent of `x_t`, which treats
          parameters as constants.
        """
        return self.bind(params).features_vjp(x_t, t, cond)

    def grid(self, x_t: jax.Array) -> tuple[int, int]:
        """Rows and columns (h, w) of the image tokens of latents, hw = N."""
        return x_t.shape[1] // self.patch, x_t.shape[2] // self.patch

    def summary(self, cond: Cond) -> jax.Array:
        """The vector `[B, summary_width]` that summarises a cond, to condition heads on."""
        return cond[self.summary_name]


class PictureDecoder(Model):
    """A network that decodes latents to pictures, through which training backpropagates.

    `decoder(params, latents [B, H, W, C])` gives float32 `[B, H r, W r, 1 or 3]` in [-1, 1], except
    for overshoot.

    Attributes:
      channels: number of latent channels C.
      reduction: side of a latent pixel in pixels, r.
      flops: `flops(height, width)` gives the multiplications and additions for one sample of
        latents of this size.
    """

    def __init__(
        self,
        build: Callable[[nnx.Rngs], nnx.Module],
        *,
        channels: int,
        reduction: int,
        flops: Callable[[int, int], int],
    ):
        super().__init__(build)
        self.channels, self.reduction, self.flops = channels, reduction, flops


def parameter_count(model: Model) -> int:
    """Number of scalars in the parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.shapes))
