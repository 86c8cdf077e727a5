"""Model FLOPs of the encoders of Stable Diffusion 3 and 3.5: CLIP, T5 and the autoencoder."""

from typing import Any

from ladd_jax.models.clip import CLIPTextConfig
from ladd_jax.models.sd3.autoencoder import AutoencoderConfig
from ladd_jax.models.sd3.text import CLIP_LENGTH
from ladd_jax.models.t5 import T5Config

# Architectures in all released pipelines; those of T5 and the autoencoder are the defaults.
_VOCABULARY: dict[str, Any] = dict(vocab_size=49408, max_position_embeddings=CLIP_LENGTH)
CLIP_L = CLIPTextConfig(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    projection_dim=768, **_VOCABULARY,
)  # fmt: skip
CLIP_G = CLIPTextConfig(
    hidden_size=1280, num_hidden_layers=32, num_attention_heads=20, intermediate_size=5120,
    projection_dim=1280, hidden_act="gelu", **_VOCABULARY,
)  # fmt: skip


def encoder_flops(height: int, width: int, text_length: int) -> tuple[int, int]:
    """Multiplications and additions of encoding one prompt, and one picture.

    Args:
      height: rows of the picture's latents.
      width: columns of the latents.
      text_length: T, CLIP's tokens and T5's.
    """
    autoencoder = AutoencoderConfig()
    text = sum(clip_flops(config, CLIP_LENGTH) for config in (CLIP_L, CLIP_G))
    text += t5_flops(T5Config(), text_length - CLIP_LENGTH)
    sides = (height * autoencoder.reduction, width * autoencoder.reduction)
    return text, autoencoder_flops(autoencoder, *sides)


def text_blocks(text_length: int) -> dict[str, tuple[tuple[int, int], ...]]:
    """Blocks of the context that are not zero: CLIP's tokens, which are narrower, and T5's."""
    width = CLIP_L.hidden_size + CLIP_G.hidden_size
    return {"context": ((CLIP_LENGTH, width), (text_length - CLIP_LENGTH, T5Config().d_model))}


def clip_flops(config: CLIPTextConfig, length: int) -> int:
    """FLOPs of CLIP for one prompt of T tokens, `8 T D^2 + 4 T^2 D + 4 T D F` per layer.

    D is the width and F the hidden width of the MLP; masking later tokens does not save any.
    """
    d, t, f = config.hidden_size, length, config.intermediate_size
    layer = 8 * t * d * d + 4 * t * t * d + 4 * t * d * f
    return config.num_hidden_layers * layer + 2 * d * config.projection_dim


def t5_flops(config: T5Config, length: int) -> int:
    """FLOPs of T5's encoder for one prompt of T tokens, `8 T D A + 4 T^2 A + 6 T D F` per layer.

    D is the width, A the width of all heads together, and F the hidden width of the gated MLP.
    """
    d, t, f = config.d_model, length, config.d_ff
    a = config.num_heads * config.d_kv
    return config.num_layers * (8 * t * d * a + 4 * t * t * a + 6 * t * d * f)


def autoencoder_flops(config: AutoencoderConfig, height: int, width: int) -> int:
    """FLOPs of the autoencoder's encoder for one picture, `2 k^2 I O` per place of a convolution.

    Args:
      config: the autoencoder.
      height: rows of the picture.
      width: its columns.
    """
    widths, places = config.block_out_channels, height * width
    total = places * 18 * config.in_channels * widths[0]
    for level, outputs in enumerate(widths):
        inputs = widths[max(level - 1, 0)]
        total += places * _level_flops(inputs, outputs, config.layers_per_block)
        if level < len(widths) - 1:
            places //= 4
            total += places * 18 * outputs * outputs
    total += _middle_flops(config, places)
    return total + places * 18 * widths[-1] * 2 * config.latent_channels


def decoder_flops(config: AutoencoderConfig, height: int, width: int) -> int:
    """FLOPs of the autoencoder's decoder for one picture, counted likewise.

    Args:
      config: the autoencoder.
      height: rows of the latents.
      width: their columns.
    """
    widths, places = config.block_out_channels[::-1], height * width
    total = places * 18 * config.latent_channels * widths[0] + _middle_flops(config, places)
    for level, outputs in enumerate(widths):
        inputs = widths[max(level - 1, 0)]
        total += places * _level_flops(inputs, outputs, config.layers_per_block + 1)
        if level < len(widths) - 1:
            places *= 4
            total += places * 18 * outputs * outputs
    return total + places * 18 * widths[-1] * config.out_channels


def _level_flops(inputs: int, outputs: int, layers: int) -> int:
    """FLOPs per place of the residual blocks of a level."""
    return _residual_flops(inputs, outputs) + (layers - 1) * _residual_flops(outputs, outputs)


def _residual_flops(inputs: int, outputs: int) -> int:
    shortcut = 0 if inputs == outputs else 2 * inputs * outputs
    return 18 * outputs * (inputs + outputs) + shortcut


def _middle_flops(config: AutoencoderConfig, places: int) -> int:
    last = config.block_out_channels[-1]
    total = places * 2 * _residual_flops(last, last)
    if config.mid_block_add_attention:
        total += places * (8 * last * last + 4 * places * last)
    return total
