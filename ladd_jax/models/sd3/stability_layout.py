"""A transformer in Stability AI's single files, such as `sd3_medium.safetensors`.

There is no config beside them: the architecture follows from names and shapes. Names may begin
with a prefix, most often `model.diffusion_model.`; then text encoders and autoencoder may be in the
same file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_jax.models.base import Params
from ladd_jax.models.sd3.network_layout import (
    heads_of,
    network_layout,
    patches,
    rms_norm,
    shape_of,
)
from ladd_jax.models.sd3.positions import fit_positions, table_side
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.weights.files import StoredTensor
from ladd_jax.weights.layout import linear

PREFIX = "model.diffusion_model."
"""What this package writes before all names, and most others do."""

MARK = "x_embedder.proj.weight"
"""A tensor that only these networks have."""

POSITIONS = "pos_embed"
"""The position table `[1, S^2, D]`."""


def layout(config: MMDiTConfig, shapes: Params) -> Params:
    """The tensors behind a network, as a tree of `weights.layout`.

    Args:
      config: architecture of the network.
      shapes: its `Model.shapes`, those of a network that is cut too.
    """
    top = {
        "patch_embedding": patches("x_embedder.proj", config.patch),
        "context_embedding": linear("context_embedder"),
        "time_mlp": {"up": linear("t_embedder.mlp.0"), "down": linear("t_embedder.mlp.2")},
        "pooled_mlp": {"up": linear("y_embedder.mlp.0"), "down": linear("y_embedder.mlp.2")},
        "final_modulation": linear("final_layer.adaLN_modulation.1"),
        "final": linear("final_layer.linear"),
    }
    return network_layout(config, shapes, top, _block)


def _block(layer: int, last: bool) -> Params:
    def stream(name: str) -> Params:
        return {
            "modulation": linear(f"{name}.adaLN_modulation.1"),
            "qkv": linear(f"{name}.attn.qkv"),
            "norm_q": rms_norm(f"{name}.attn.ln_q"),
            "norm_k": rms_norm(f"{name}.attn.ln_k"),
            "out": linear(f"{name}.attn.proj"),
            "qkv2": linear(f"{name}.attn2.qkv"),
            "norm_q2": rms_norm(f"{name}.attn2.ln_q"),
            "norm_k2": rms_norm(f"{name}.attn2.ln_k"),
            "out2": linear(f"{name}.attn2.proj"),
            "mlp": {"up": linear(f"{name}.mlp.fc1"), "down": linear(f"{name}.mlp.fc2")},
        }

    del last  # Its names and chunks are those of the others.
    block = f"joint_blocks.{layer}"
    return {"image": stream(f"{block}.x_block"), "context": stream(f"{block}.context_block")}


def infer_config(
    file: Path,
    tensors: Mapping[str, StoredTensor],
    metadata: Mapping[str, str],
    **fields: Any,
) -> MMDiTConfig:
    """The architecture that names and shapes describe.

    Args:
      file: the file, for messages.
      tensors: its tensors, without their prefix.
      metadata: the file's metadata.
      **fields: other fields of the result.

    Raises:
      UserError: a tensor that decides is missing or has another number of dimensions.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        return shape_of(file, tensors, name, dimensions)

    layers: dict[int, bool] = {}
    for name in tensors:
        if match := re.match(r"joint_blocks\.(\d+)\.(x_block\.attn2\.)?", name):
            layer = int(match[1])
            layers[layer] = layers.get(layer, False) or match[2] is not None
    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    heads, qk_norm = heads_of(
        file, tensors, metadata, "joint_blocks.0.x_block.attn.ln_q.weight", width
    )
    shape(POSITIONS, 3)
    base, start = fit_positions(tensors[POSITIONS])
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
        position_table=table_side(tensors[POSITIONS]),
        position_base=base,
        position_start=start,
        **fields,
    )
