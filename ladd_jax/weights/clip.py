"""CLIP as `transformers` saves it: where each parameter is, and both towers from a folder."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ladd_jax.errors import NotFoundError, UserError, brief
from ladd_jax.models.base import Model, Params
from ladd_jax.models.clip import ACTIVATIONS, CLIPTextConfig, CLIPTowerConfig, clip_text
from ladd_jax.models.clip_vision import CLIPVisionConfig, clip_vision
from ladd_jax.weights.files import read_headers
from ladd_jax.weights.layout import Tree, linear, matrix, norm, patch_kernel, same
from ladd_jax.weights.source import weight_files
from ladd_jax.weights.transfer import check_tensors, load


@dataclasses.dataclass(frozen=True)
class CLIP:
    """Both towers of a CLIP.

    Attributes:
      text_config: architecture of the text tower.
      text: the text network; `text(params["text"], ids)[1]` are the embeddings.
      vision_config: architecture of the vision tower.
      vision: the vision network; `vision(params["vision"], pixels)` are the embeddings.
      params: parameters by tower.
      scale: factor of the cosine in CLIP's logits; the file holds its logarithm.
    """

    text_config: CLIPTextConfig
    text: Model
    vision_config: CLIPVisionConfig
    vision: Model
    params: dict[str, Params]
    scale: float


def load_clip(directory: Path, mesh: Mesh | None = None) -> CLIP:
    """A CLIP as `CLIPModel.save_pretrained` writes it, in float32.

    Args:
      directory: folder with `config.json` and safetensors.
      mesh: mesh to shard the parameters over.

    Raises:
      NotFoundError: a file is not there.
      UserError: the config belongs to another model, or a tensor is missing, unknown or misshaped.
    """
    text_config, vision_config = read_clip_config(directory)
    text, vision = clip_text(text_config), clip_vision(vision_config)
    tensors = read_headers(weight_files(directory))[0]
    layout = {
        "text": clip_text_layout(text_config),
        "vision": _vision_layout(vision_config),
        "logit_scale": same("logit_scale"),
    }
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    shapes = {"text": text.shapes, "vision": vision.shapes, "logit_scale": scalar}
    # Older files also hold the position indices as a tensor.
    ignored = frozenset(f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision"))
    check_tensors(directory, tensors, layout, shapes, ignored)
    axes = {"text": text.axes, "vision": vision.axes, "logit_scale": ()}
    params = load(tensors, layout, shapes, axes, mesh)
    scale = math.exp(float(params.pop("logit_scale")))
    return CLIP(text_config, text, vision_config, vision, params, scale)


def read_clip_config(directory: Path) -> tuple[CLIPTextConfig, CLIPVisionConfig]:
    """The architectures of both towers.

    Raises:
      NotFoundError: there is no config.
      UserError: it is damaged, belongs to another model, or has an unsupported activation.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise NotFoundError(f"no {path}: give the folder of a CLIP in transformers' layout")
    # Configs leave out the fields that had the defaults of `transformers`, so it fills them in.
    from transformers import CLIPConfig

    config: Any = None
    try:
        kind = CLIPConfig.get_config_dict(directory)[0].get("model_type")
        if kind == "clip":
            config = CLIPConfig.from_pretrained(directory)
    # It reports invalid fields with many types of exception.
    except Exception as error:
        reason = brief(error)
        raise UserError(f"{path} is damaged ({reason}): get it again") from error
    if config is None:
        raise UserError(f"{path} is of a {kind!r} model: give the folder of a CLIP")

    def shared(tower: Any) -> dict[str, Any]:
        if tower.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"{path} has hidden_act {tower.hidden_act!r}, which is not one of "
                f"{', '.join(ACTIVATIONS)}: use another CLIP"
            )
        own = {field.name for field in dataclasses.fields(CLIPTowerConfig)}
        fields = {name: value for name, value in tower.to_dict().items() if name in own}
        # A tower's own projection_dim only counts when the tower is used without the other.
        return fields | {"projection_dim": config.projection_dim, "dtype": jnp.float32}

    text, vision = config.text_config, config.vision_config
    return (
        CLIPTextConfig(
            **shared(text),
            vocab_size=text.vocab_size,
            max_position_embeddings=text.max_position_embeddings,
            # Configs from before 2023 carry a wrong id, 2; the end is then at the highest id.
            eos_token_id=None if text.eos_token_id == 2 else text.eos_token_id,
        ),
        CLIPVisionConfig(
            **shared(vision), image_size=vision.image_size, patch_size=vision.patch_size
        ),
    )


def clip_text_layout(config: CLIPTextConfig) -> Tree:
    """The tensors of the text tower, which are named the same alone or in a CLIP."""
    return {
        "tokens": same("text_model.embeddings.token_embedding.weight"),
        "positions": same("text_model.embeddings.position_embedding.weight"),
        "blocks": _blocks("text_model", config),
        "final_norm": norm("text_model.final_layer_norm"),
        "projection": {"kernel": matrix("text_projection.weight")},
    }


def _vision_layout(config: CLIPVisionConfig) -> Tree:
    embeddings = "vision_model.embeddings"
    patches = patch_kernel(f"{embeddings}.patch_embedding.weight", config.patch_size)
    return {
        "patches": {"kernel": patches},
        "summary": same(f"{embeddings}.class_embedding"),
        "positions": same(f"{embeddings}.position_embedding.weight"),
        # The tensors are misspelt in all files.
        "first_norm": norm("vision_model.pre_layrnorm"),
        "blocks": _blocks("vision_model", config),
        "final_norm": norm("vision_model.post_layernorm"),
        "projection": {"kernel": matrix("visual_projection.weight")},
    }


def _blocks(tower: str, config: CLIPTowerConfig) -> Tree:
    def block(name: str) -> Tree:
        return {
            "norm1": norm(f"{name}.layer_norm1"),
            "qkv": linear(*(f"{name}.self_attn.{part}_proj" for part in "qkv")),
            "out": linear(f"{name}.self_attn.out_proj"),
            "norm2": norm(f"{name}.layer_norm2"),
            "mlp": {"up": linear(f"{name}.mlp.fc1"), "down": linear(f"{name}.mlp.fc2")},
        }

    return {i: block(f"{tower}.encoder.layers.{i}") for i in range(config.num_hidden_layers)}
