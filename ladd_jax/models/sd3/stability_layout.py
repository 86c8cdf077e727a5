"""The layout of Stability AI's single files, such as `sd3_medium.safetensors`.

There is no config beside them: the architecture follows from names and shapes. Names may stand
under `model.diffusion_model.`; then text encoders and autoencoder may lie in the same file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.models.sd3.positions import fit_positions, table_side
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.weights.files import StoredTensor
from ladd_jax.weights.layout import Layout, stored

PREFIX = "model.diffusion_model."

HEADS = "num_heads"
"""Metadata that this package writes: only networks with QK norm have heads in their shapes."""

_HEAD_WIDTH = 64
"""Of the whole family."""

LAYOUT = Layout(
    top={
        "patch_embedding": stored("x_embedder.proj", convolution=True),
        "context_embedding": stored("context_embedder"),
        "time_mlp.up": stored("t_embedder.mlp.0"),
        "time_mlp.down": stored("t_embedder.mlp.2"),
        "pooled_mlp.up": stored("y_embedder.mlp.0"),
        "pooled_mlp.down": stored("y_embedder.mlp.2"),
        "final_modulation": stored("final_layer.adaLN_modulation.1"),
        "final": stored("final_layer.linear"),
    },
    block={
        "image.modulation": stored("x_block.adaLN_modulation.1"),
        "image.qkv": stored("x_block.attn.qkv"),
        "image.norm_q": stored("x_block.attn.ln_q"),
        "image.norm_k": stored("x_block.attn.ln_k"),
        "image.out": stored("x_block.attn.proj"),
        "image.qkv2": stored("x_block.attn2.qkv"),
        "image.norm_q2": stored("x_block.attn2.ln_q"),
        "image.norm_k2": stored("x_block.attn2.ln_k"),
        "image.out2": stored("x_block.attn2.proj"),
        "image.mlp.up": stored("x_block.mlp.fc1"),
        "image.mlp.down": stored("x_block.mlp.fc2"),
        "context.modulation": stored("context_block.adaLN_modulation.1"),
        "context.qkv": stored("context_block.attn.qkv"),
        "context.norm_q": stored("context_block.attn.ln_q"),
        "context.norm_k": stored("context_block.attn.ln_k"),
        "context.out": stored("context_block.attn.proj"),
        "context.mlp.up": stored("context_block.mlp.fc1"),
        "context.mlp.down": stored("context_block.mlp.fc2"),
    },
    last_block={},
    blocks="joint_blocks.{}.",
    positions="pos_embed",
)


def without_prefix(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The transformer's tensors under the names of the layout."""
    found = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    return found or dict(tensors)


def read_config(
    file: Path,
    tensors: Mapping[str, StoredTensor],
    metadata: Mapping[str, str],
    **fields: Any,
) -> MMDiTConfig:
    """The architecture that names and shapes describe.

    Args:
      file: for messages.
      tensors: as `without_prefix` gives them.
      metadata: of the file.
      **fields: other fields of the result.

    Raises:
      UserError: a tensor that decides is missing or has another number of dimensions.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"tensor {name} is missing in {file}: it is no MMDiT")
        if len(tensors[name].shape) != dimensions:
            raise UserError(
                f"tensor {name} in {file} has shape {list(tensors[name].shape)}: "
                f"it must have {dimensions} dimensions"
            )
        return tensors[name].shape

    layers: dict[int, bool] = {}
    for name in tensors:
        if match := re.match(r"joint_blocks\.(\d+)\.(x_block\.attn2\.)?", name):
            layer = int(match[1])
            layers[layer] = layers.get(layer, False) or match[2] is not None
    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    head = "joint_blocks.0.x_block.attn.ln_q.weight"
    qk_norm = head in tensors
    head_width = shape(head, 1)[0] if qk_norm else _HEAD_WIDTH
    heads = int(metadata.get(HEADS, max(1, width // head_width)))
    shape(LAYOUT.positions, 3)
    base, start = fit_positions(tensors[LAYOUT.positions])
    return MMDiTConfig(
        depth=max(layers, default=0) + 1,
        width=width,
        num_heads=heads,
        in_channels=channels,
        out_channels=shape("final_layer.linear.weight", 2)[0] // patch**2,
        context_width=shape("context_embedder.weight", 2)[1],
        pooled_width=shape("y_embedder.mlp.0.weight", 2)[1],
        patch=patch,
        mlp_ratio=shape("joint_blocks.0.x_block.mlp.fc1.weight", 2)[0] // width,
        qk_norm=qk_norm,
        dual_attention=tuple(layer for layer, dual in sorted(layers.items()) if dual),
        position_table=table_side(tensors[LAYOUT.positions]),
        position_base=base,
        position_start=start,
        **fields,
    )
