"""What both layouts of SD3's transformer share: stacks of blocks, and inference from shapes.

The two layouts, of diffusers and of Stability AI, provide the names; see `weights.layout`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ladd_jax.errors import UserError
from ladd_jax.models.base import Params
from ladd_jax.models.sd3.positions import fit_positions, table_side
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.weights.files import StoredTensor
from ladd_jax.weights.layout import only, patch_kernel, same, stacked
from ladd_jax.weights.sizes import check_depth

HEADS = "num_heads"
"""Metadata with the number of heads, which shapes only reveal for networks with QK norm."""

_HEAD_WIDTH = 64
"""Width of an attention head in the whole family."""


def network_layout(
    config: MMDiTConfig, shapes: Params, top: Params, block: Callable[[int, bool], Params]
) -> Params:
    """The layout of a network.

    Args:
      config: the network's architecture.
      shapes: the network's shapes.
      top: layout of the layers outside of blocks.
      block: `block(number, last)` gives the layout of a block with all options; `last` is true for
        the network's last block.
    """
    layout = dict(top)
    for name, inner in shapes.items():
        if name == "last_block":
            layout[name] = block(config.depth - 1, True)
        elif name.startswith("blocks_"):
            start = int(name.removeprefix("blocks_"))
            count = jax.tree.leaves(inner)[0].shape[0]
            layout[name] = stacked([block(start + i, False) for i in range(count)])
    return only(layout, shapes)


def patches(name: str, patch: int) -> Params:
    """The embedding of patches, which is a convolution in the files."""
    return {"kernel": patch_kernel(f"{name}.weight", patch), "bias": same(f"{name}.bias")}


def rms_norm(name: str) -> Params:
    """A normalisation with only a scale."""
    return {"scale": same(f"{name}.weight")}


def shape_of(
    file: Path, tensors: Mapping[str, StoredTensor], name: str, dimensions: int
) -> tuple[int, ...]:
    """The shape of a tensor that the architecture is inferred from.

    Raises:
      UserError: it is missing, has another number of dimensions, or is empty.
    """
    if name not in tensors:
        raise UserError(f"tensor {name} is missing in {file}: it is not an MMDiT")
    if len(tensors[name].shape) != dimensions or 0 in tensors[name].shape:
        raise UserError(
            f"tensor {name} in {file} has shape {list(tensors[name].shape)}: "
            f"it must have {dimensions} dimensions, none of them 0"
        )
    return tensors[name].shape


@dataclasses.dataclass(frozen=True)
class Deciding:
    """Names of the tensors of a layout from which the architecture is inferred.

    Attributes:
      layer: pattern of the names of a block's tensors, which captures the block's number and a part
        that only tensors of a second attention have.
      patches: the embedding of patches.
      positions: the position table.
      norm: scale of a query's norm in the first block.
      out: the last projection.
      context: the embedding of text tokens.
      pooled: the first layer over the pooled text.
      hidden: the first layer of an MLP; empty if all networks of the layout have the default width.
    """

    layer: str
    patches: str
    positions: str
    norm: str
    out: str
    context: str
    pooled: str
    hidden: str = ""


def infer_config(
    names: Deciding,
    file: Path,
    tensors: Mapping[str, StoredTensor],
    metadata: Mapping[str, str],
    **fields: Any,
) -> MMDiTConfig:
    """The architecture that names and shapes describe.

    Args:
      names: names of a layout.
      file: the file, for messages.
      tensors: its tensors, without their prefix.
      metadata: the file's metadata.
      **fields: other fields of the result.

    Raises:
      UserError: one of these tensors is missing or has another number of dimensions.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        return shape_of(file, tensors, name, dimensions)

    layers: dict[int, bool] = {}
    for name in tensors:
        if match := re.match(names.layer, name):
            layer = int(match[1])
            layers[layer] = layers.get(layer, False) or match[2] is not None
    depth = max(layers, default=0) + 1
    check_depth(depth, tensors, file)
    width, channels, patch, _ = shape(names.patches, 4)
    heads, qk_norm = heads_of(file, tensors, metadata, names.norm, width)
    shape(names.positions, 3)
    base, start = fit_positions(tensors[names.positions])
    if names.hidden:
        fields["mlp_ratio"] = shape(names.hidden, 2)[0] // width
    return MMDiTConfig(
        depth=depth,
        width=width,
        num_heads=heads,
        in_channels=channels,
        out_channels=shape(names.out, 2)[0] // patch**2,
        context_width=shape(names.context, 2)[1],
        pooled_width=shape(names.pooled, 2)[1],
        patch=patch,
        qk_norm=qk_norm,
        dual_attention=tuple(layer for layer, dual in sorted(layers.items()) if dual),
        position_table=table_side(tensors[names.positions]),
        position_base=base,
        position_start=start,
        **fields,
    )


def heads_of(
    file: Path,
    tensors: Mapping[str, StoredTensor],
    metadata: Mapping[str, str],
    norm: str,
    width: int,
) -> tuple[int, bool]:
    """Number of attention heads, and whether queries and keys are normalised.

    Args:
      file: the file, for messages.
      tensors: the network's tensors.
      metadata: the file's metadata.
      norm: name of the scale of a query's norm, which is as wide as a head.
      width: features of an image token.

    Raises:
      UserError: the metadata's number of heads is not a number.
    """
    head_width = shape_of(file, tensors, norm, 1)[0] if norm in tensors else _HEAD_WIDTH
    stated = metadata.get(HEADS, str(max(1, width // head_width)))
    if not re.fullmatch(r"[1-9]\d{0,8}", stated):
        raise UserError(
            f"the metadata of {file} has {stated[:60]!r} as {HEADS}: it must be a whole number, "
            f"get the file again"
        )
    return int(stated), norm in tensors
