"""The multimodal diffusion transformer of Stable Diffusion 3 and 3.5 (Esser et al. 2024).

Two streams of tokens, image and text, each with its own weights, meet in joint attention. Adjacent
blocks of the same kind are stacked on a leading layer axis, scanned and rematerialised.

B batch, H W latent grid, C channels, P patch, N = HW/P^2 image tokens, T text tokens, D width,
L layers, K attention heads.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ladd_jax.errors import UserError
from ladd_jax.models.attention import attention, keep_attended
from ladd_jax.models.base import (
    CHANNELS,
    GUIDANCE,
    Backbone,
    Cond,
    Structure,
    Tap,
    structure_of,
)
from ladd_jax.models.layers import (
    MLP,
    TIME_WIDTH,
    Dtype,
    Linear,
    RMSNorm,
    gelu_tanh,
    modulated_norm,
    timestep_embedding,
)
from ladd_jax.models.sd3.positions import position_embedding
from ladd_jax.models.stack import on_batch, scan_with_way_back, stack
from ladd_jax.parallel.mesh import constrain
from ladd_jax.ranges import check_choice

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": keep_attended,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots_attention": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, keep_attended
    ),
}


_GUIDANCE_LAYERS = ("guidance_up", "guidance_down")
"""Attributes that only a guided MMDiT has."""

_IMAGE_GUIDANCE_LAYERS = ("image_guidance_up", "image_guidance_down")
"""Attributes that only an MMDiT with a guidance scale on the image has."""


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """Architecture of an MMDiT.

    Attributes:
      depth: number of blocks L.
      width: D; SD3 has 64 * depth.
      num_heads: K; SD3 has depth.
      in_channels: channels read; those beyond `out_channels` are joined to x_t from `cond`.
      out_channels: latent channels of the velocity.
      context_width: width of the text tokens (SD3: 4096).
      pooled_width: width of the pooled text vector (SD3: 2048).
      patch: side of a patch in latent pixels.
      mlp_ratio: hidden width of the block's MLP over D.
      qk_norm: whether queries and keys have an RMSNorm (SD3.5).
      dual_attention: blocks with a second attention over only image tokens (SD3.5-Medium).
      position_table: side of the sincos table that grids are cropped from, in patches.
      position_base: positions of neighbours in the table differ by position_base / position_table.
        `diffusers` makes new tables with the side of the base resolution's grid in patches.
      position_start: position of the table's first row and column. Esser et al. count from the
        corner of a centred grid of 64 patches, four patches being 1: a table of 192 starts at -16
        and has a base of 48, one of 384 starts at -40 and has a base of 96.
      remat: what is stored of a block for the backward pass: `none` recomputes nothing, `full`
        stores only the block's inputs, `attention` also the output of attention, `dots` also
        matrix products with weights, `dots_attention` both.
      unroll: blocks in one step of the scan; with more the program runs faster and compiles longer.
      cut: number of blocks that are kept, leaving out all that follows; 0 for all. A network that
        is cut has no velocity, only the tokens that `tap` reads.
      quantized: whether the kernels of the blocks are int8, see `models.quantized`; only for
        constant parameters.
      guided: whether it is given a guidance scale, `cond["guidance"]`, and computes in one pass
        what guidance computes in two (Meng et al. 2023). A new embedding of the scale adds zeros.
      image_guided: whether it is also given a second scale, of guidance on the picture that is
        joined by channels, with an embedding of its own.
      dtype: dtype of computation.
      param_dtype: dtype of parameters.
    """

    depth: int
    width: int
    num_heads: int
    in_channels: int = 16
    out_channels: int = 16
    context_width: int = 4096
    pooled_width: int = 2048
    patch: int = 2
    mlp_ratio: int = 4
    qk_norm: bool = False
    dual_attention: tuple[int, ...] = ()
    position_table: int = 192
    position_base: float = 64.0
    position_start: float = 0.0
    remat: str = "full"
    unroll: int = 1
    cut: int = 0
    quantized: bool = False
    guided: bool = False
    image_guided: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"width {self.width} is not divisible by num_heads {self.num_heads}: "
                f"use a multiple, such as {64 * self.num_heads}"
            )
        if self.width % 4:
            raise UserError(
                f"width {self.width} is not divisible by 4, as sincos positions need it: "
                f"use {self.width + 4 - self.width % 4}"
            )
        check_choice(self.remat, "remat", *REMAT_POLICIES)
        outside = [layer for layer in self.dual_attention if not 0 <= layer < self.depth]
        if outside:
            raise UserError(
                f"dual_attention names block {outside[0]} of a depth of {self.depth}: "
                f"use blocks 0 to {self.depth - 1}"
            )
        if not 0 <= self.cut < self.depth:
            raise UserError(
                f"cut is {self.cut} of a depth of {self.depth}: use 0 for the whole network, or "
                f"fewer blocks than it has"
            )

    @property
    def blocks(self) -> int:
        """Number of blocks that there are."""
        return self.cut or self.depth


class _Stream(nnx.Module):
    """One modality's part of a block: adaLN, projections around the attention, MLP.

    A `pre_only` stream only gives queries, keys and values (the context of the last block). A
    `dual` stream has a second set of projections for attention within the stream.
    """

    def __init__(
        self, config: MMDiTConfig, *, rngs: nnx.Rngs, pre_only: bool = False, dual: bool = False
    ):
        d, k = config.width, config.num_heads
        options: dict[str, Any] = {
            "rngs": rngs,
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
            "quantized": config.quantized,
        }
        self.chunks = 2 if pre_only else 9 if dual else 6
        self.modulation = Linear(
            d, (self.chunks, d), ("embed", None, "mlp"), init=initializers.zeros, **options
        )
        qkv_axes = ("embed", None, "heads", None)
        qkv: dict[str, Any] = options | {"parts": 3}
        self.qkv = Linear(d, (3, k, d // k), qkv_axes, **qkv)
        self.qkv2 = Linear(d, (3, k, d // k), qkv_axes, **qkv) if dual else None
        norm = config.qk_norm
        norms = {"rngs": rngs, "param_dtype": config.param_dtype}
        self.norm_q = RMSNorm(d // k, **norms) if norm else None
        self.norm_k = RMSNorm(d // k, **norms) if norm else None
        self.norm_q2 = RMSNorm(d // k, **norms) if norm and dual else None
        self.norm_k2 = RMSNorm(d // k, **norms) if norm and dual else None
        if dual:
            self.out2 = Linear(d, d, ("heads", "embed"), **options)
        if not pre_only:
            self.out = Linear(d, d, ("heads", "embed"), **options)
            self.mlp = MLP(d, config.mlp_ratio * d, d, gelu_tanh, **options)

    def before(self, x: jax.Array, c: jax.Array) -> tuple[list[jax.Array], tuple[jax.Array, ...]]:
        """The adaLN chunks, `[B, D]` each, and q, k, v `[B, N, K, D/K]`."""
        chunks = list(jnp.moveaxis(self.modulation(jax.nn.silu(c)), 1, 0))
        y = modulated_norm(x, *chunks[:2])
        return chunks, self._project(y, self.qkv, self.norm_q, self.norm_k)

    def after(self, x: jax.Array, chunks: list[jax.Array], attended: jax.Array) -> jax.Array:
        """The stream `[B, N, D]` after attention and MLP; `attended` is `[B, N, K, D/K]`."""
        gate, shift_mlp, scale_mlp, gate_mlp = chunks[2:6]
        y = x + gate[:, None] * self.out(_merge_heads(attended))
        if self.qkv2 is not None:
            shift, scale, gate2 = chunks[6:]
            q, k, v = self._project(
                modulated_norm(x, shift, scale), self.qkv2, self.norm_q2, self.norm_k2
            )
            y += gate2[:, None] * self.out2(_merge_heads(attention(q, k, v)))
        return y + gate_mlp[:, None] * self.mlp(modulated_norm(y, shift_mlp, scale_mlp))

    @staticmethod
    def _project(
        x: jax.Array, qkv: Linear, norm_q: RMSNorm | None, norm_k: RMSNorm | None
    ) -> tuple[jax.Array, ...]:
        # With a split, the gradients of q, k and v come back in the layout that the product's
        # gradient needs. Moving the axis to the front would transpose them back and forth.
        q, k, v = (part[:, :, 0] for part in jnp.split(qkv(x), 3, axis=2))
        return (norm_q(q) if norm_q else q), (norm_k(k) if norm_k else k), v


def _merge_heads(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:2], -1)


class _Block(nnx.Module):
    """Joint attention of image and text, then an MLP for each."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs, dual: bool, last: bool):
        self.image = _Stream(config, rngs=rngs, dual=dual)
        self.context = _Stream(config, rngs=rngs, pre_only=last)
        self.last = last

    def __call__(
        self, x: jax.Array, context: jax.Array, c: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        n = x.shape[1]
        chunks, qkv = self.image.before(x, c)
        context_chunks, context_qkv = self.context.before(context, c)
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(qkv, context_qkv, strict=True))
        if self.last:
            # Nothing reads the text tokens after the last block, so they need no queries.
            q = q[:, :n]
        attended = attention(q, k, v)
        x = self.image.after(x, chunks, attended[:, :n])
        if not self.last:
            context = self.context.after(context, context_chunks, attended[:, n:])
        return x, context


class MMDiT(nnx.Module):
    """Velocity of rectified flow from noisy latents, time and text."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, p = config.width, config.patch
        options: dict[str, Any] = {
            "rngs": rngs,
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
        }
        self.patch_embedding = Linear(p * p * config.in_channels, d, (None, "embed"), **options)
        self.context_embedding = Linear(config.context_width, d, (None, "embed"), **options)
        small = initializers.normal(0.02)
        self.time_mlp = MLP(TIME_WIDTH, d, d, jax.nn.silu, init=small, **options)
        self.pooled_mlp = MLP(config.pooled_width, d, d, jax.nn.silu, init=small, **options)

        # The last block's context stream has other parameters, so it is not part of a stack.
        runs: list[tuple[str, int]] = []
        start = 0
        stacked = config.cut or config.depth - 1
        kinds = [layer in config.dual_attention for layer in range(stacked)]
        for dual, run in itertools.groupby(kinds):
            count = len(list(run))
            name = f"blocks_{start}"

            def build(rngs: nnx.Rngs, dual: bool = dual) -> nnx.Module:
                return _Block(config, rngs=rngs, dual=dual, last=False)

            setattr(self, name, stack(build, count, rngs))
            runs.append((name, count))
            start += count
        self.runs = tuple(runs)
        for up, down in _guidance_layers(config):
            setattr(self, up, Linear(TIME_WIDTH, d, ("embed", "mlp"), init=small, **options))
            zeros = initializers.zeros
            last = Linear(d, d, ("mlp", "embed"), init=zeros, bias=False, **options)
            setattr(self, down, last)
        if config.cut:
            return
        self.last_block = _Block(
            config, rngs=rngs, dual=config.depth - 1 in config.dual_attention, last=True
        )
        self.final_modulation = Linear(
            d, (2, d), ("embed", None, "mlp"), init=initializers.zeros, **options
        )
        self.final = Linear(
            d, p * p * config.out_channels, ("embed", None), init=initializers.zeros, **options
        )

    def __call__(self, x_t: jax.Array, t: jax.Array, cond: Cond, tap: Tap | None = None) -> Any:
        """Predicts the velocity.

        Args:
          x_t: noisy latents `[B, H, W, out_channels]`; H and W are multiples of the patch.
          t: float32 `[B]` in [0, 1], 1 being pure noise.
          cond: `context [B, T, context_width]`, text tokens; `pooled [B, pooled_width]`, text
            vector; if the network reads more channels than it predicts, `channels
            [B, H, W, in_channels - out_channels]`, which are joined to `x_t`; and, if it is
            guided, `guidance [B, 1]`, the scale, or `[B, 2]` with the scale on the image.
          tap: reads the image tokens `[B, N, D]` after each block.

        Returns:
          float32 `[B, H, W, out_channels]`, or None if the network is cut; with `tap`, also what it
          returned, stacked `[L, ...]`.

        Raises:
          UserError: the grid is not divisible by the patch or exceeds the position table, or a
            network that is cut is asked for the velocity alone.
        """
        config = self.config
        if config.cut and tap is None:
            raise UserError(
                f"a network cut to {config.cut} of {config.depth} blocks has no velocity: give a "
                f"tap, or use the whole network"
            )
        grid = self._grid(x_t)
        x = self._embed(x_t, cond)
        context, c = self._condition(t, cond)

        def after(
            layer: jax.Array, x: jax.Array, context: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], Any]:
            x, context = on_batch((x, context))
            return (x, context), None if tap is None else tap(layer, x)

        taps = []
        start = 0
        for name, count in self.runs:
            graphdef, state = nnx.split(getattr(self, name))

            def body(
                carry: tuple[jax.Array, jax.Array],
                layer_and_state: tuple[jax.Array, Any],
                graphdef: Any = graphdef,
            ) -> tuple[tuple[jax.Array, jax.Array], Any]:
                layer, state = layer_and_state
                run = _rematerialised(graphdef, config.remat, scanned=True)
                return after(layer, *run(state, *carry, c))

            layers = start + jnp.arange(count)
            (x, context), tapped = jax.lax.scan(
                body, (x, context), (layers, state), unroll=config.unroll
            )
            taps.append(tapped)
            start += count

        if config.cut:
            return None, _concatenate(taps)
        graphdef, state = nnx.split(self.last_block)
        run = _rematerialised(graphdef, config.remat, scanned=False)
        (x, _), tapped = after(jnp.asarray(start), *run(state, x, context, c))
        taps.append(jax.tree.map(lambda leaf: leaf[None], tapped))

        v = self._velocity(x, c, grid)
        return v if tap is None else (v, _concatenate(taps))

    def features_vjp(
        self, x_t: jax.Array, t: jax.Array, cond: Cond
    ) -> tuple[jax.Array | None, jax.Array, Callable[[jax.Array], jax.Array]]:
        """The velocity, all blocks' image tokens, and the backward pass from these to `x_t`.

        The backward pass recomputes each block from the tokens that are returned, so that there is
        only one copy of them; `jax.vjp` of a call with a tap would store two. Parameters are
        treated as constants.

        Args:
          x_t: noisy latents `[B, H, W, in_channels]`.
          t: float32 `[B]`.
          cond: the condition, as in a call.

        Returns:
          v float32 `[B, H, W, out_channels]`, or None if the network is cut; the features, which
          are the image tokens before the first block and after each, `[L + 1, B, N, D]` in the
          dtype of computation, where L counts the blocks that there are; and a function from the
          features' cotangent to the cotangent of `x_t`, in its dtype, which is only valid within
          the same trace.

        Raises:
          UserError: the grid is not divisible by the patch or exceeds the position table.
        """
        config = self.config
        grid = self._grid(x_t)
        x, embed_vjp = jax.vjp(lambda x_t: self._embed(x_t, cond), x_t)
        context, c = self._condition(t, cond)
        features = jnp.pad(x[None], ((0, config.blocks), (0, 0), (0, 0), (0, 0)))
        features = constrain(features, None, "batch", None, None)
        ways_back = []
        start = 0
        for name, count in self.runs:
            graphdef, states = nnx.split(getattr(self, name))
            run = _rematerialised(graphdef, config.remat, scanned=True)
            (x, context, features), back = scan_with_way_back(
                run, states, start + jnp.arange(count), (x, context, features), c, config.unroll
            )
            ways_back.append(back)
            start += count
        if config.cut:
            v = None
        else:
            graphdef, state = nnx.split(self.last_block)
            run = _rematerialised(graphdef, config.remat, scanned=False)
            x, last_vjp = jax.vjp(lambda x, context: run(state, x, context, c)[0], x, context)
            x = on_batch(x)
            features = features.at[start + 1].set(x)
            v = self._velocity(x, c, grid)

        def back_to_x_t(features_bar: jax.Array) -> jax.Array:
            x_bar, context_bar = features_bar[-1], jnp.zeros_like(context)
            if not config.cut:
                x_bar, context_bar = last_vjp(on_batch(x_bar))
                x_bar += features_bar[-2]
            for back in reversed(ways_back):
                x_bar, context_bar = back(features, features_bar, x_bar, context_bar)
            (x_t_bar,) = embed_vjp(x_bar)
            return x_t_bar

        return v, features, back_to_x_t

    def _grid(self, x_t: jax.Array) -> tuple[int, int]:
        """Rows and columns of patches."""
        _, height, width, _ = x_t.shape
        p = self.config.patch
        if height % p or width % p:
            raise UserError(
                f"latents of {height}x{width} are not divisible by the patch of {p}: "
                f"use {height - height % p}x{width - width % p}"
            )
        return height // p, width // p

    def _embed(self, x_t: jax.Array, cond: Cond) -> jax.Array:
        """Image tokens `[B, N, D]`, with their positions."""
        p = self.config.patch
        if self.config.in_channels > self.config.out_channels:
            x_t = jnp.concatenate([x_t, cond[CHANNELS].astype(x_t.dtype)], axis=-1)
        b, *_, channels = x_t.shape
        rows, columns = self._grid(x_t)
        x = x_t.astype(self.config.dtype).reshape(b, rows, p, columns, p, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, p * p * channels)
        x = self.patch_embedding(x)
        positions = position_embedding(rows, columns, self.config).astype(self.config.dtype)
        return constrain(x + positions.reshape(1, rows * columns, -1), "batch", None, None)

    def _condition(self, t: jax.Array, cond: Cond) -> tuple[jax.Array, jax.Array]:
        """Text tokens `[B, T, D]`, and what modulates every block `[B, D]`."""
        context = on_batch(self.context_embedding(cond["context"]))
        c = self.time_mlp(timestep_embedding(t)) + self.pooled_mlp(cond["pooled"])
        for number, (up, down) in enumerate(_guidance_layers(self.config)):
            # The embedded guidance scale is added to the modulation.
            embedded = _guidance_embedding(cond[GUIDANCE][:, number])
            c += getattr(self, down)(jax.nn.silu(getattr(self, up)(embedded)))
        return context, c

    def _velocity(self, x: jax.Array, c: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Velocity from the last block's tokens, float32 `[B, H, W, out_channels]`."""
        (rows, columns), p = grid, self.config.patch
        shift, scale = jnp.moveaxis(self.final_modulation(jax.nn.silu(c)), 1, 0)
        v = self.final(modulated_norm(x, shift, scale)).astype(jnp.float32)
        v = v.reshape(len(x), rows, columns, p, p, self.config.out_channels)
        v = v.transpose(0, 1, 3, 2, 4, 5)
        return v.reshape(len(x), rows * p, columns * p, self.config.out_channels)


def _rematerialised(graphdef: Any, remat: str, *, scanned: bool) -> Callable[..., Any]:
    """A block as a function of `(state, x, context, c)`, recomputed in the backward pass."""

    def apply(state: Any, x: jax.Array, context: jax.Array, c: jax.Array) -> Any:
        return nnx.merge(graphdef, state)(x, context, c)

    policy = REMAT_POLICIES[remat]
    if policy is None:
        # Not even a checkpoint that saves everything, since it puts barriers between operations.
        return apply
    # Preventing CSE is not needed inside a scan, where nothing can be shared with the forward pass.
    return jax.checkpoint(apply, policy=policy, prevent_cse=not scanned)


def _concatenate(taps: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *taps)


@functools.lru_cache(maxsize=64)
def _structure(config: MMDiTConfig) -> Structure:
    # A run asks for each of its networks some ten times.
    return structure_of(lambda rngs: MMDiT(config, rngs=rngs))


def mmdit(config: MMDiTConfig) -> Backbone:
    """The network of a configuration, as a function of its parameters."""
    return Backbone(
        lambda rngs: MMDiT(config, rngs=rngs),
        blocks=config.blocks,
        width=config.width,
        patch=config.patch,
        summary="pooled",
        summary_width=config.pooled_width,
        own_layers=tuple(name for layers in _guidance_layers(config) for name in layers),
        structure=_structure(config),
    )


def _guidance_layers(config: MMDiTConfig) -> tuple[tuple[str, ...], ...]:
    """The names of the two layers of each guidance scale that a network is given."""
    of_image = (_IMAGE_GUIDANCE_LAYERS,) * config.image_guided
    return (_GUIDANCE_LAYERS, *of_image) if config.guided else ()


def _guidance_embedding(scale: jax.Array) -> jax.Array:
    """Sinusoids of guidance scales `[B]`, with usual scales of 1 to 10 in the range of times."""
    return timestep_embedding(scale / 10)


def fixed_guidance(params: Any, *scales: float) -> Any:
    """Parameters of an unguided network that does what a guided network does at one scale.

    Args:
      params: parameters of a guided network, which are not changed.
      scales: the guidance scale, followed by the scale on the image for a network that has both.

    Returns:
      the parameters, with the contribution of the scales added in float32 to the last bias of
      `time_mlp`.
    """
    last = dict(params["time_mlp"]["down"])
    bias = last["bias"].astype(jnp.float32)
    layers = (_GUIDANCE_LAYERS, _IMAGE_GUIDANCE_LAYERS)[: len(scales)]
    for (up_name, down_name), scale in zip(layers, scales, strict=True):
        up, down = params[up_name], params[down_name]
        x = _guidance_embedding(jnp.full(1, scale))[0]
        x = jax.nn.silu(x @ up["kernel"].astype(x.dtype) + up["bias"].astype(x.dtype))
        bias += x @ down["kernel"].astype(x.dtype)
    last["bias"] = bias.astype(last["bias"].dtype)
    gone = {name for names in layers for name in names}
    rest = {name: leaf for name, leaf in params.items() if name not in gone}
    return rest | {"time_mlp": rest["time_mlp"] | {"down": last}}


def widened(params: Any, config: MMDiTConfig) -> Any:
    """Parameters of an equivalent network that reads more channels.

    The new channels come after those that the network reads, and have zero weights.

    Args:
      params: parameters of a whole network that reads at most `config.in_channels` channels.
      config: architecture of the network that reads them all.
    """
    kernel = params["patch_embedding"]["kernel"]
    by_pixel = kernel.reshape(config.patch**2, -1, config.width)
    new = config.in_channels - by_pixel.shape[1]
    wide = jnp.pad(by_pixel, ((0, 0), (0, new), (0, 0))).reshape(-1, config.width)
    return params | {"patch_embedding": params["patch_embedding"] | {"kernel": wide}}


def cut_params(params: Any, shapes: Any) -> Any:
    """The parameters of a whole network that are left when it is cut.

    Args:
      params: parameters of the whole network, any dtype.
      shapes: `Model.shapes` of the network that is cut.
    """
    if not isinstance(shapes, dict):
        # Cutting only shortens stacks of blocks along their leading axis.
        return params[: shapes.shape[0]]
    return {name: cut_params(params[name], inner) for name, inner in shapes.items()}
