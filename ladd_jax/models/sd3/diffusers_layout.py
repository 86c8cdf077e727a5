"""The layout of Hugging Face diffusers: a folder with `config.json` and `SD3Transformer2DModel`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.models.sd3.positions import fit_positions, table_side
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.weights.files import StoredTensor
from ladd_jax.weights.layout import Layout, stored

CLASS_NAME = "SD3Transformer2DModel"

LAYOUT = Layout(
    top={
        "patch_embedding": stored("pos_embed.proj", convolution=True),
        "context_embedding": stored("context_embedder"),
        "time_mlp.up": stored("time_text_embed.timestep_embedder.linear_1"),
        "time_mlp.down": stored("time_text_embed.timestep_embedder.linear_2"),
        "pooled_mlp.up": stored("time_text_embed.text_embedder.linear_1"),
        "pooled_mlp.down": stored("time_text_embed.text_embedder.linear_2"),
        # Where there are only two chunks, diffusers has the scale before the shift.
        "final_modulation": stored("norm_out.linear", reverse=True),
        "final": stored("proj_out"),
    },
    block={
        "image.modulation": stored("norm1.linear"),
        "image.qkv": stored("attn.to_q", "attn.to_k", "attn.to_v"),
        "image.norm_q": stored("attn.norm_q"),
        "image.norm_k": stored("attn.norm_k"),
        "image.out": stored("attn.to_out.0"),
        "image.qkv2": stored("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "image.norm_q2": stored("attn2.norm_q"),
        "image.norm_k2": stored("attn2.norm_k"),
        "image.out2": stored("attn2.to_out.0"),
        "image.mlp.up": stored("ff.net.0.proj"),
        "image.mlp.down": stored("ff.net.2"),
        "context.modulation": stored("norm1_context.linear"),
        "context.qkv": stored("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "context.norm_q": stored("attn.norm_added_q"),
        "context.norm_k": stored("attn.norm_added_k"),
        "context.out": stored("attn.to_add_out"),
        "context.mlp.up": stored("ff_context.net.0.proj"),
        "context.mlp.down": stored("ff_context.net.2"),
    },
    last_block={"context.modulation": stored("norm1_context.linear", reverse=True)},
    blocks="transformer_blocks.{}.",
    positions="pos_embed.pos_embed",
)

_FIELDS = (
    "num_layers", "attention_head_dim", "num_attention_heads", "in_channels", "out_channels",
    "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "patch_size",
    "pos_embed_max_size",
)  # fmt: skip


def read_config(file: Path, tensors: Mapping[str, StoredTensor], **fields: Any) -> MMDiTConfig:
    """The architecture that a `config.json` describes; positions come from their table.

    Args:
      file: the `config.json`.
      tensors: of the files beside it.
      **fields: other fields of the result.

    Raises:
      UserError: no JSON, another class, a field that is missing or of no use.
    """
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): get it again") from error
    name = values.get("_class_name", CLASS_NAME) if isinstance(values, dict) else type(values)
    if name != CLASS_NAME:
        raise UserError(f"{file} describes a {name}: name the folder of a {CLASS_NAME}")
    for field in _FIELDS:
        if type(values.get(field)) is not int:
            raise UserError(
                f"{field} is {values.get(field)!r} in {file}: it must be a whole number"
            )
    width = values["num_attention_heads"] * values["attention_head_dim"]
    if values["caption_projection_dim"] != width:
        raise UserError(
            f"caption_projection_dim is {values['caption_projection_dim']} in {file}: it must be "
            f"num_attention_heads x attention_head_dim = {width}"
        )
    if values.get("qk_norm") not in (None, "rms_norm"):
        raise UserError(f"qk_norm is {values['qk_norm']!r} in {file}: use null or 'rms_norm'")
    base, start = 1.0, 0.0
    table = tensors.get(LAYOUT.positions)
    if table is not None and table_side(table) == values["pos_embed_max_size"]:
        base, start = fit_positions(table)
    return MMDiTConfig(
        depth=values["num_layers"],
        width=width,
        num_heads=values["num_attention_heads"],
        in_channels=values["in_channels"],
        out_channels=values["out_channels"],
        context_width=values["joint_attention_dim"],
        pooled_width=values["pooled_projection_dim"],
        patch=values["patch_size"],
        qk_norm=values.get("qk_norm") is not None,
        dual_attention=tuple(values.get("dual_attention_layers") or ()),
        position_table=values["pos_embed_max_size"],
        position_base=base,
        position_start=start,
        **fields,
    )


def config_json(config: MMDiTConfig, sample_size: int) -> dict[str, Any]:
    """The `config.json` of an architecture.

    Args:
      config: of the network.
      sample_size: side of the latents that pipelines make where nobody says another.

    Raises:
      UserError: the layout has no name for it.
    """
    if config.mlp_ratio != 4:
        raise UserError(
            f"diffusers knows an mlp_ratio of 4 and the network has {config.mlp_ratio}: "
            f"use layout='stability'"
        )
    return {
        "_class_name": CLASS_NAME,
        "attention_head_dim": config.width // config.num_heads,
        "caption_projection_dim": config.width,
        "dual_attention_layers": list(config.dual_attention),
        "in_channels": config.in_channels,
        "joint_attention_dim": config.context_width,
        "num_attention_heads": config.num_heads,
        "num_layers": config.depth,
        "out_channels": config.out_channels,
        "patch_size": config.patch,
        "pooled_projection_dim": config.pooled_width,
        "pos_embed_max_size": config.position_table,
        "qk_norm": "rms_norm" if config.qk_norm else None,
        "sample_size": sample_size,
    }
