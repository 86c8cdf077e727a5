"""Model FLOPs of the MMDiT, which follow from its formula and not from how it is computed."""

from ladd_jax.models.layers import TIME_WIDTH
from ladd_jax.models.sd3.transformer import MMDiTConfig


def forward_flops(config: MMDiTConfig, height: int, width: int, text_length: int) -> int:
    """Multiplications and additions of one forward pass over one image.

    Only matrix products are counted, next to which all else is negligible: a product of `[m, k]`
    and `[k, n]` has `2 m k n`. For each of L blocks, with N image and T text tokens of width D and
    an MLP of r D:

        queries, keys, values and the projection after them   8 (N + T) D^2
        MLP                                                   4 r (N + T) D^2
        logits, and sums of values                            4 (N + T)^2 D
        adaLN of both streams                                 2 x 12 D^2

    The last block has neither text queries nor anything that follows from them; a network that is
    cut has neither that block nor the layer after it. A dual block has a second attention over only
    the image tokens, `8 N D^2 + 4 N^2 D`, and 3 more chunks of adaLN. A backward pass takes as many
    for the gradient of the activations, and as many again for the parameters.

    Args:
      config: the network.
      height: rows of the latents.
      width: columns of the latents.
      text_length: T, text tokens.
    """
    d, p = config.width, config.patch
    n, t = height * width // p**2, text_length
    channels = config.in_channels + (0 if config.cut else config.out_channels)
    total = 2 * n * p * p * channels * d
    total += 2 * t * config.context_width * d
    total += 2 * (TIME_WIDTH + config.pooled_width + 2 * d) * d
    scales = config.guided * (1 + config.image_guided)
    total += scales * 2 * (TIME_WIDTH + d) * d
    if not config.cut:
        total += 2 * 2 * d * d
    for layer in range(config.blocks):
        last = layer == config.depth - 1
        processed = n if last else n + t  # Tokens that ask queries and go through the MLP.
        total += 6 * (n + t) * d * d + 2 * processed * d * d
        total += 4 * processed * (n + t) * d
        total += 4 * config.mlp_ratio * processed * d * d
        total += 2 * (8 if last else 12) * d * d
        if layer in config.dual_attention:
            total += 8 * n * d * d + 4 * n * n * d + 2 * 3 * d * d
    return total
