"""Low-rank adaptation of a frozen network (LoRA, Hu et al. 2021).

A dense layer with kernel W `[I, O]` computes x W + (alpha / r) x A B, where A `[I, r]` and
B `[r, O]` are trained and W is constant. B starts at zero, so that the adapted network at first
equals the frozen one.

Any network made of `models.layers.Linear` can be adapted, whatever its family. A layer that stands
for several layers in published files, such as one product for queries, keys and values, has an A
and a B for each of these: A `[I, P, r]` and B `[P, r, ...]`, where P is 1 for other layers. In
stacked blocks a layer axis precedes all other dimensions.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ladd_jax.errors import UserError
from ladd_jax.models.base import Backbone, Params, next_key
from ladd_jax.models.layers import Dtype, Linear
from ladd_jax.parallel.mesh import gather
from ladd_jax.ranges import NOT_NEGATIVE, check_numbers

LOW_RANK = "low_rank"
"""Name of a layer's adapters in a tree of parameters, next to its `kernel` and `bias`."""

_SHARDED = "embed"
"""The logical axis that is sharded over `fsdp`."""

BASE = "base"
"""Name of the tree of constant parameters among the frozen ones, unless it is shared with another
network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which layers are adapted, and how.

    Attributes:
      rank: r; with 0 nothing is adapted, and the whole network is trained.
      alpha: the product of A and B is multiplied by alpha / r; 0 stands for r, a factor of 1.
      layers: patterns of names of dense layers, such as `*/image/qkv`: paths in the tree of
        parameters, joined by slashes, where `*` stands for anything.
    """

    rank: int = 0
    alpha: float = 0.0
    layers: tuple[str, ...] = ("*block*",)

    def __post_init__(self) -> None:
        check_numbers(self, {"rank": NOT_NEGATIVE, "alpha": NOT_NEGATIVE})
        if self.rank and not self.layers:
            raise UserError(
                f"layers is () and rank {self.rank}: name layers, such as *block*, or use rank 0"
            )

    @property
    def scale(self) -> float:
        """The factor of the product of A and B."""
        return self.alpha / self.rank if self.alpha else 1.0


class LowRank(nnx.Module):
    """The adapter of one dense layer: `[..., I] -> [..., *O]`."""

    def __init__(self, layer: Linear, lora: LoRA, *, rngs: nnx.Rngs, param_dtype: Dtype):
        kernel, axes, parts = layer.kernel[...], layer.axes, layer.parts
        stacked = kernel.shape[: kernel.ndim - len(axes)]
        inputs, *outputs = kernel.shape[len(stacked) :]
        # The first of several output axes is that of the parts.
        kept = slice(parts > 1, None)
        out = axes[1:][kept]
        # Both are sharded over `fsdp` like other parameters, along the rank if their other
        # dimension is not sharded.
        self.axes: dict[str, tuple[str | None, ...]] = {
            "down": (axes[0], None, None if axes[0] == _SHARDED else _SHARDED),
            "up": (None, None if _SHARDED in out else _SHARDED, *out),
        }
        # Uniform within the inverse square root of the inputs, as in PEFT.
        shape, bound = (*stacked, inputs, parts, lora.rank), inputs**-0.5
        down = jax.random.uniform(next_key(rngs), shape, param_dtype, -bound, bound)
        up = jnp.zeros((*stacked, parts, lora.rank, *outputs[kept]), param_dtype)
        self.down = nnx.Param(down, axes=self.axes["down"])
        self.up = nnx.Param(up, axes=self.axes["up"])
        self.scale = lora.scale
        self.dtype = layer.dtype
        self.parts = parts

    def __call__(self, x: jax.Array) -> jax.Array:
        down, up = (
            gather(array[...].astype(self.dtype), self.axes[name])
            for name, array in (("down", self.down), ("up", self.up))
        )
        outputs = "abcdefgh"[: up.ndim - 2]
        inner = self.scale * jnp.tensordot(x, down, 1)
        y = jnp.einsum(f"...pr,pr{outputs}->...p{outputs}", inner, up)
        return y if self.parts > 1 else jnp.squeeze(y, -1 - len(outputs))


class Adapted(Backbone):
    """A network whose parameters are only its adapters.

    Its `shapes`, `axes` and `init` are those of the adapters. Methods that compute take all
    parameters, which `complete` puts together from the adapters and the constant ones.
    """

    def __init__(
        self, network: Backbone, lora: LoRA, param_dtype: Dtype = jnp.float32, name: str = BASE
    ):
        """Adapts a network.

        Args:
          network: the network; it stays as it is.
          lora: how it is adapted; a rank above 0.
          param_dtype: dtype of the adapters.
          name: name of the tree of the network's parameters among the frozen ones.

        Raises:
          UserError: a pattern does not match any dense layer.
        """

        def build(rngs: nnx.Rngs) -> nnx.Module:
            module = network.build(rngs)
            _adapt(module, lora, rngs, param_dtype)
            return module

        super().__init__(
            build,
            blocks=network.blocks,
            width=network.width,
            patch=network.patch,
            summary=network.summary_name,
            summary_width=network.summary_width,
        )
        self.lora = lora
        self.base = network
        self.constants = {name: network}
        self._name = name
        self.shapes = _adapters(self.shapes)
        self.axes = _adapters(self.axes)

    def init(self, key: jax.Array) -> Params:
        """Adapters that change nothing yet, from a PRNG key; jit-compatible."""
        return _adapters(super().init(key))

    def begin(self, key: jax.Array, start: Params) -> Params:
        """See `Backbone.begin`: `start` stays constant."""
        return self.init(key)

    def complete(self, params: Params, frozen: dict[str, Any]) -> Params:
        """See `Backbone.complete`."""
        return _joined(frozen[self._name], params)

    def scaled(self, params: Params) -> Params:
        """Equivalent adapters with their rank as alpha, by multiplying B by the scale."""
        scale = self.lora.scale
        return jax.tree.map_with_path(
            lambda path, leaf: leaf if path[-1].key == "down" else scale * leaf, params
        )

    def merge(self, params: Params, base: Params, dtype: Dtype) -> Params:
        """Parameters of an equivalent network without adapters.

        Args:
          params: the adapters.
          base: parameters of the network.
          dtype: dtype of the result; kernels are added in float32.
        """
        return _merged(base, params, self.lora.scale, jnp.dtype(dtype))


def _adapt(module: nnx.Module, lora: LoRA, rngs: nnx.Rngs, param_dtype: Dtype) -> None:
    layers = {
        "/".join(map(str, path)): node
        for path, node in nnx.iter_graph(module)
        if isinstance(node, Linear)
    }
    for pattern in lora.layers:
        if not fnmatch.filter(layers, pattern):
            raise UserError(
                f"lora.layers has {pattern}, which does not match any dense layer: use a name such "
                f"as {min(layers)}, with * for any part of it"
            )
    for name in sorted(layers):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in lora.layers):
            layer = layers[name]
            layer.low_rank = LowRank(layer, lora, rngs=rngs, param_dtype=param_dtype)


def _adapters(tree: Params) -> Params:
    """The adapters in a tree with the structure of the parameters."""
    found = {}
    for name, inner in tree.items():
        if name == LOW_RANK:
            found[name] = inner
        elif isinstance(inner, dict) and (below := _adapters(inner)):
            found[name] = below
    return found


def _joined(base: Params, adapters: Params) -> Params:
    """Both trees in one."""
    return base | {
        name: inner if name == LOW_RANK else _joined(base[name], inner)
        for name, inner in adapters.items()
    }


def _merged(base: Params, adapters: Params, scale: float, dtype: Dtype) -> Params:
    made = {
        name: _merged(inner, adapters.get(name, {}), scale, dtype)
        if isinstance(inner, dict)
        else inner.astype(dtype)
        for name, inner in base.items()
    }
    if LOW_RANK in adapters:
        change = scale * _product(adapters[LOW_RANK], base["kernel"].shape)
        made["kernel"] = (base["kernel"].astype(jnp.float32) + change).astype(dtype)
    return made


def _product(adapters: Params, shape: tuple[int, ...]) -> jax.Array:
    """A B of one layer, float32, in the shape of its kernel."""
    down, up = adapters["down"], adapters["up"]
    up = up.reshape(*down.shape[:-3], *down.shape[-2:], -1)
    return jnp.einsum("...ipr,...pro->...ipo", down, up, precision="highest").reshape(shape)


def add_adapters(params: Params, added: Sequence[tuple[Params, float]]) -> Params:
    """Parameters of a network with adapters permanently added to its kernels.

    Adapters are added kernel by kernel, all in float32, so that only a few of them are on a device
    at once. The result has the dtypes and shardings of `params`; the original buffers of changed
    kernels are deleted.

    Args:
      params: parameters on devices.
      added: pairs of a tree of adapters, with any P, and the factor of its products. The adapters
        are numpy arrays, equal on all processes.
    """
    if not any(adapters for adapters, _ in added):
        return params
    made: Params = {}
    for name, inner in params.items():
        below = [(adapters.get(name, {}), scale) for adapters, scale in added]
        made[name] = add_adapters(inner, below) if isinstance(inner, dict) else inner
    here = [(adapters[LOW_RANK], scale) for adapters, scale in added if LOW_RANK in adapters]
    if here:
        made["kernel"] = _added(made["kernel"].sharding)(made["kernel"], here)
    return made


@functools.lru_cache(maxsize=16)
def _added(sharding: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    def add(kernel: jax.Array, adapters: Sequence[tuple[Params, jax.Array]]) -> jax.Array:
        changes = [scale * _product(matrices, kernel.shape) for matrices, scale in adapters]
        return (kernel.astype(jnp.float32) + sum(changes)).astype(kernel.dtype)

    return jax.jit(add, out_shardings=sharding, donate_argnums=0)
