"""A transformer in diffusers' layout, `SD3Transformer2DModel`, with or without a `config.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.models.base import Params
from ladd_jax.models.sd3.network_layout import Deciding, network_layout, patches, rms_norm
from ladd_jax.models.sd3.positions import fit_positions, table_side
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.weights.files import StoredTensor
from ladd_jax.weights.layout import linear
from ladd_jax.weights.sizes import check_depth, check_sizes
from ladd_jax.whole_files import read_json

CLASS_NAME = "SD3Transformer2DModel"

POSITIONS = "pos_embed.pos_embed"
"""The position table `[1, S^2, D]`."""

MARK = "pos_embed.proj.weight"
"""A tensor that only these networks have."""

DECIDING = Deciding(
    layer=r"transformer_blocks\.(\d+)\.(attn2\.)?",
    patches=MARK,
    positions=POSITIONS,
    norm="transformer_blocks.0.attn.norm_q.weight",
    out="proj_out.weight",
    context="context_embedder.weight",
    pooled="time_text_embed.text_embedder.linear_1.weight",
)
"""The tensors that the architecture is inferred from without a `config.json`."""


def layout(config: MMDiTConfig, shapes: Params) -> Params:
    """The tensors behind a network, as a tree of `weights.layout`.

    Args:
      config: architecture of the network.
      shapes: its `Model.shapes`, those of a network that is cut too.
    """
    top = {
        "patch_embedding": patches("pos_embed.proj", config.patch),
        "context_embedding": linear("context_embedder"),
        "time_mlp": _mlp("time_text_embed.timestep_embedder", "linear_1", "linear_2"),
        "pooled_mlp": _mlp("time_text_embed.text_embedder", "linear_1", "linear_2"),
        # If there are only two chunks, diffusers has the scale before the shift.
        "final_modulation": linear("norm_out.linear", reverse=True),
        "final": linear("proj_out"),
    }
    return network_layout(config, shapes, top, _block)


def _mlp(name: str, up: str, down: str) -> Params:
    return {"up": linear(f"{name}.{up}"), "down": linear(f"{name}.{down}")}


def _block(layer: int, last: bool) -> Params:
    name = f"transformer_blocks.{layer}"
    attention, dual = f"{name}.attn", f"{name}.attn2"
    return {
        "image": {
            "modulation": linear(f"{name}.norm1.linear"),
            "qkv": linear(*(f"{attention}.to_{part}" for part in "qkv")),
            "norm_q": rms_norm(f"{attention}.norm_q"),
            "norm_k": rms_norm(f"{attention}.norm_k"),
            "out": linear(f"{attention}.to_out.0"),
            "qkv2": linear(*(f"{dual}.to_{part}" for part in "qkv")),
            "norm_q2": rms_norm(f"{dual}.norm_q"),
            "norm_k2": rms_norm(f"{dual}.norm_k"),
            "out2": linear(f"{dual}.to_out.0"),
            "mlp": _mlp(f"{name}.ff.net", "0.proj", "2"),
        },
        "context": {
            "modulation": linear(f"{name}.norm1_context.linear", reverse=last),
            "qkv": linear(*(f"{attention}.add_{part}_proj" for part in "qkv")),
            "norm_q": rms_norm(f"{attention}.norm_added_q"),
            "norm_k": rms_norm(f"{attention}.norm_added_k"),
            "out": linear(f"{attention}.to_add_out"),
            "mlp": _mlp(f"{name}.ff_context.net", "0.proj", "2"),
        },
    }


_FIELDS = (
    "num_layers", "attention_head_dim", "num_attention_heads", "in_channels", "out_channels",
    "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "patch_size",
    "pos_embed_max_size",
)  # fmt: skip


def read_config(file: Path, tensors: Mapping[str, StoredTensor], **fields: Any) -> MMDiTConfig:
    """The architecture that a `config.json` describes; positions come from their table.

    Args:
      file: the `config.json`.
      tensors: the tensors of the files beside it.
      **fields: other fields of the result.

    Raises:
      UserError: it is not JSON, describes another class, or has a field missing or invalid.
    """
    values = read_json(file)
    name = values.get("_class_name", CLASS_NAME)
    if name != CLASS_NAME:
        raise UserError(f"{file} describes a {name}: name the folder of a {CLASS_NAME}")
    check_sizes(values, _FIELDS, file)
    check_depth(values["num_layers"], tensors, file)
    dual = values.get("dual_attention_layers") or ()
    if not isinstance(dual, list | tuple) or not all(type(layer) is int for layer in dual):
        raise UserError(
            f"dual_attention_layers is {str(dual)[:60]} in {file}: it must be a list of numbers"
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
    table = tensors.get(POSITIONS)
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
        dual_attention=tuple(dual),
        position_table=values["pos_embed_max_size"],
        position_base=base,
        position_start=start,
        **fields,
    )


def config_json(config: MMDiTConfig, sample_size: int) -> dict[str, Any]:
    """The `config.json` of an architecture.

    Args:
      config: the network's architecture.
      sample_size: side of the latents that pipelines make by default.

    Raises:
      UserError: the layout has no name for it.
    """
    if config.mlp_ratio != 4:
        raise UserError(
            f"diffusers only supports an mlp_ratio of 4 and the network has {config.mlp_ratio}: "
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
