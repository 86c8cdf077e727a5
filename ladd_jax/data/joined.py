"""The channels that a run's data join to those of x_t, and what follows from them.

Each kind of joined channels is a value of `data.joined` and an entry of `JOINED`. A source gives
them as the array `CHANNELS` of each record. C channels of a latent.
"""

from collections.abc import Callable
from typing import Any

JOINED: dict[str, Callable[[int], int]] = {
    "": lambda channels: 0,
    # A mask, which is 1 where the picture is to be filled, then latents of the masked picture.
    "inpaint": lambda channels: 1 + channels,
    # Latents of the picture that is edited.
    "edit": lambda channels: channels,
}
"""Number of joined channels as a function of C, by kind."""

JOINED_IN_WORDS = {
    "inpaint": "a mask and a masked picture",
    "edit": "the picture that is edited",
}
"""What a network is given besides x_t, by kind."""


def joined_channels(config: Any) -> int:
    """Channels that the networks of a run read besides those of x_t.

    Args:
      config: the run's config.
    """
    return config.model.joined_channels or JOINED[config.data.joined](config.model.channels)


def joined_kind(in_channels: int, out_channels: int) -> str:
    """The kind of channels that a network reads besides those of x_t, by their number.

    Args:
      in_channels: number of channels that it reads.
      out_channels: C.

    Returns:
      A value of `data.joined`; empty if the network reads no further channels, or a number of them
      that no kind has.
    """
    joined = in_channels - out_channels
    found = (kind for kind, count in JOINED.items() if kind and count(out_channels) == joined)
    return next(found, "")


def pretrains(config: Any) -> bool:
    """Whether the stage `pretrain` makes the data generator, whichever stages are run now.

    It does if there are no weights, or if the data join channels that the weights do not read; in
    the second case it starts from the weights.

    Args:
      config: the run's config, whose `model.joined_channels` is the number that its weights read.
    """
    return makes_generator(config.weights, config.data.joined, config.model.joined_channels)


def makes_generator(weights: str, joined: str, own: int) -> bool:
    """As `pretrains`, from the fields that decide it: `weights`, `data.joined` and
    `model.joined_channels`."""
    return not weights or bool(joined and not own)
