"""The autoencoder and the text encoders in single files.

Such files come without a config: the architecture follows from names and shapes, and what these do
not determine is the same in the whole family. Names are Stability's or diffusers', after any
prefix; tensors are returned under diffusers' names.
"""

import dataclasses
import re
from pathlib import Path

from ladd_jax.errors import UserError
from ladd_jax.models.clip import CLIPTextConfig
from ladd_jax.models.sd3.autoencoder import AutoencoderConfig
from ladd_jax.models.t5 import T5Config
from ladd_jax.weights.prefixes import Tensors, below, prefixes

_OF_AUTOENCODER = "decoder.conv_in.weight"
_OF_CLIP = "text_model.embeddings.token_embedding.weight"
_OF_T5 = "encoder.block.0.layer.0.SelfAttention.q.weight"

# Parts of prefixes such as `text_encoders.clip_l.transformer.` that identify an encoder, in
# Stability's names and in diffusers'.
_ENCODERS = {
    "clip_l": ("clip_l", "text_encoder"),
    "clip_g": ("clip_g", "text_encoder_2"),
    "t5xxl": ("t5xxl", "text_encoder_3"),
}

_HEAD_WIDTH = 64
"""Width of an attention head of both CLIP encoders."""

_ACTIVATIONS = {"clip_l": "quick_gelu", "clip_g": "gelu"}

# Stability counts the decoder's levels from the image, and diffusers from the latents.
_RENAMED = (
    (r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)


def read_autoencoder(file: Path, tensors: Tensors) -> tuple[AutoencoderConfig, dict]:
    """Architecture and tensors of the autoencoder.

    Args:
      file: the file, for messages.
      tensors: the file's tensors.

    Raises:
      UserError: the file has none, or not all of what tells its architecture.
    """
    found = below(_prefix(file, prefixes(tensors, _OF_AUTOENCODER), "autoencoders"), tensors)
    found = {name: x for name, x in found.items() if name.startswith(("encoder.", "decoder."))}
    reversed_levels = _count(r"decoder\.up\.(\d+)\.", found)
    levels = reversed_levels or _count(r"decoder\.up_blocks\.(\d+)\.", found)
    renamed = {}
    for name, tensor in found.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if reversed_levels:
            name = re.sub(
                r"up_blocks\.(\d+)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}", name
            )
        if ".attentions." in name and tensor.shape[2:] == (1, 1):
            # A 1x1 convolution is a matrix.
            tensor = dataclasses.replace(tensor, shape=tensor.shape[:2])
        renamed[name] = tensor

    def width(name: str, axis: int) -> int:
        return _shape(file, renamed, f"{name}.weight", 4, "autoencoder")[axis]

    # Read first, so that the error for a file without an autoencoder says that it has none.
    in_channels = width("encoder.conv_in", 1)
    return AutoencoderConfig(
        block_out_channels=tuple(
            width(f"encoder.down_blocks.{i}.resnets.0.conv1", 0) for i in range(levels)
        ),
        layers_per_block=_count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", renamed),
        in_channels=in_channels,
        out_channels=width("decoder.conv_out", 0),
        latent_channels=width("decoder.conv_in", 1),
        mid_block_add_attention=any(".attentions." in name for name in renamed),
    ), renamed


def read_clip(file: Path, tensors: Tensors, name: str) -> tuple[CLIPTextConfig, dict]:
    """Architecture and tensors of `clip_l` or `clip_g`.

    Args:
      file: the file, for messages.
      tensors: the file's tensors.
      name: which of them.

    Raises:
      UserError: the file has none, or not all of what tells its architecture.
    """
    found = below(_prefix(file, _of_encoder(name, _OF_CLIP, tensors), name), tensors)

    def shape(tensor: str) -> tuple[int, ...]:
        return _shape(file, found, f"{tensor}.weight", 2, f"text encoder {name}")

    vocabulary, width = shape("text_model.embeddings.token_embedding")
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=_count(r"text_model\.encoder\.layers\.(\d+)\.", found),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        intermediate_size=shape("text_model.encoder.layers.0.mlp.fc1")[0],
        max_position_embeddings=shape("text_model.embeddings.position_embedding")[0],
        projection_dim=shape("text_projection")[0],
        hidden_act=_ACTIVATIONS[name],
        # None reads the end at the highest id, since the end token is the last of the vocabulary.
        eos_token_id=None,
    ), found


def read_t5(file: Path, tensors: Tensors) -> tuple[T5Config, dict] | None:
    """Architecture and tensors of T5, or None if the file does not have it.

    Args:
      file: the file, for messages.
      tensors: the file's tensors.

    Raises:
      UserError: a tensor that the architecture is inferred from is missing.
    """
    named = _of_encoder("t5xxl", _OF_T5, tensors)
    if not named:
        return None
    found = below(_prefix(file, named, "t5xxl"), tensors)
    table = "shared" if "shared.weight" in found else "encoder.embed_tokens"

    def shape(tensor: str) -> tuple[int, ...]:
        return _shape(file, found, f"{tensor}.weight", 2, "text encoder t5xxl")

    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = shape(f"{attention}.relative_attention_bias")
    inner, width = shape(f"{attention}.q")
    return T5Config(
        vocab_size=shape(table)[0],
        d_model=width,
        d_kv=inner // heads,
        d_ff=shape("encoder.block.0.layer.1.DenseReluDense.wi_0")[0],
        num_layers=_count(r"encoder\.block\.(\d+)\.", found),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    ), found


def _of_encoder(name: str, mark: str, tensors: Tensors) -> list[str]:
    """The prefixes of an encoder."""
    found = prefixes(tensors, mark)
    return [prefix for prefix in found if not set(_ENCODERS[name]).isdisjoint(prefix.split("."))]


def _prefix(file: Path, found: list[str], what: str) -> str:
    """The only prefix that was found; if there is none, one that no tensor has."""
    if len(found) > 1:
        raise UserError(f"{file} holds several {what} ({', '.join(found)}): give a file of one")
    return found[0] if found else "."


def _count(pattern: str, tensors: Tensors) -> int:
    numbers = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _shape(file: Path, tensors: Tensors, name: str, dimensions: int, what: str) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(
            f"{file} holds no {what}, or not all of it ({name} is missing): give a file with "
            f"encoders, or the folder of a diffusers pipeline"
        )
    if len(tensors[name].shape) != dimensions or 0 in tensors[name].shape:
        raise UserError(
            f"tensor {name} in {file} has shape {list(tensors[name].shape)}: it must have "
            f"{dimensions} dimensions, none of them 0"
        )
    return tensors[name].shape
