"""The channels that a run's data join to those of x_t, and what follows from them.

Each kind of joined channels is a value of `data.joined` and an entry of `JOINED`. A source gives
them as the array `CHANNELS` of each record. C channels of a latent.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.names import listed


@dataclasses.dataclass(frozen=True)
class Joined:
    """A kind of array that is joined to the channels of x_t.

    Attributes:
      channels: `channels(C)` returns the number of its channels.
      words: what a network of this kind is given, for messages.
    """

    channels: Callable[[int], int]
    words: str


JOINED = {
    "": Joined(lambda channels: 0, "prompts alone"),
    # The mask is 1 where the picture is to be filled; latents of the masked picture follow it.
    "inpaint": Joined(lambda channels: 1 + channels, "a mask and a masked picture"),
    "edit": Joined(lambda channels: channels, "the picture that is edited"),
}
"""Kinds by name."""


PICTURED = ("inpaint", "edit")
"""Kinds that users give as a picture; others are given by the condition of the same name."""


def joined_channels(config: Any) -> int:
    """Channels that the networks of a run read besides those of x_t.

    Args:
      config: the run's config.
    """
    of_data = JOINED[config.data.joined].channels(config.model.channels)
    return config.model.joined_channels or of_data


def kinds_of(joined: int, channels: int) -> list[str]:
    """The kinds that join this number of channels.

    Args:
      joined: number of channels that a network reads besides those of x_t.
      channels: C.

    Returns:
      Values of `data.joined`; empty if no kind joins as many.
    """
    return [kind for kind, each in JOINED.items() if kind and each.channels(channels) == joined]


def joined_kind(place: str, said: str, joined: int, channels: int) -> str:
    """The kind of joined channels that released weights read.

    Args:
      place: place of the weights, for messages.
      said: the kind that the files name; empty if they name none.
      joined: number of channels that the network reads besides those of x_t.
      channels: C.

    Returns:
      A value of `data.joined`; empty if the network reads no further channels, or a number of them
      that no kind has.

    Raises:
      UserError: the named kind is not in `JOINED` or joins another number of channels, or none is
        named and several kinds join as many.
    """
    if not joined:
        return ""
    if said and said not in JOINED:
        raise UserError(
            f"{place} is given {said!r} besides prompts, and data.joined has "
            f"{listed([kind for kind in JOINED if kind])} here: install the package that adds it"
        )
    kinds = kinds_of(joined, channels)
    if said and said not in kinds:
        raise UserError(
            f"by its files {place} is given {JOINED[said].words}, in "
            f"{JOINED[said].channels(channels)} channels, and its weights read {joined} besides "
            f"those of x_t: use another model"
        )
    if not said and len(kinds) > 1:
        raise UserError(
            f"{place} reads {joined} channels besides those of x_t, and does not say whether they "
            f'are {" or ".join(kinds)}: export it again, or name one as "joined" in its '
            f"ladd_jax.json"
        )
    return said or next(iter(kinds), "")


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
