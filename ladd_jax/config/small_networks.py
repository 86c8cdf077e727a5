"""What configs of small networks set alike: the text, the network, its training from nothing."""

from ml_collections import ConfigDict

from ladd_jax.errors import UserError

LARGEST = 64
"""Side in pixels of the largest square whose pixels are the latents."""


def check_side(side: int, remedy: str = "use one of these") -> None:
    """Raises UserError for a side in pixels at which the pixels cannot be the latents."""
    if not 8 <= side <= LARGEST:
        raise UserError(
            f"resolution {side} is not from 8 to {LARGEST}, where pixels are the latents: {remedy}"
        )


def use_words(config: ConfigDict, length: int) -> None:
    """Sets a random encoder of words, wide enough to keep a few apart in the pooled vector.

    Args:
      config: the config to change.
      length: number of words of a text that are read, and an end token.
    """
    config.data.update(
        dict(
            text_tokens="words",
            text_length=length,
            text_width=128,
            text_layers=2,
            text_heads=4,
            pooled_width=256,
            # The text would otherwise be larger than the pictures.
            text_dtype="float16",
        )
    )


def use_network(
    config: ConfigDict, side: int, patch: int, channels: int, longest: int | None = None
) -> None:
    """Sets a network that trains on a CPU in minutes, and heads for it.

    Args:
      config: the config to change.
      side: side of the square bucket, in latent pixels.
      patch: side of a patch, in latent pixels.
      channels: number of channels of a latent.
      longest: longest side of a bucket, in latent pixels; default: twice the square's.
    """
    longest = 2 * patch * -(-side // patch) if longest is None else longest
    config.model.update(
        dict(
            depth=4,
            width=96,
            num_heads=3,
            channels=channels,
            patch=patch,
            qk_norm=True,
            # In patches.
            position_table=-(-longest // patch),
            position_base=-(-side // patch),
            remat="none",
            dtype="float32",
        )
    )
    config.heads.update(dict(channels=32))


def pretrain(
    config: ConfigDict,
    steps: int,
    *,
    batch_size: int,
    ema_decay: float,
    warmup_steps: int,
    learning_rate: float = 2e-3,
) -> None:
    """Sets the data generator's training, whose rate falls to 0 at its end.

    Args:
      config: the config to change.
      steps: number of its steps.
      batch_size: global batch.
      ema_decay: decay of its average.
      warmup_steps: steps in which its rate rises, a tenth of all steps at most.
      learning_rate: its largest rate.
    """
    config.pretrain.update(dict(steps=steps, batch_size=batch_size, ema_decay=ema_decay))
    config.pretrain.optimizer.update(
        dict(
            learning_rate=learning_rate,
            weight_decay=0.01,
            warmup_steps=min(warmup_steps, steps // 10),
            decay_steps=steps,
        )
    )
