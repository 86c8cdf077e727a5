"""Pictures together with an extractor's output, which metrics are measured on.

n pictures, P parts of a picture, F features of a part.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ladd_jax.errors import UserError

GRID = 32
"""Rows and columns of the pixels that stand for a large picture where contrast is measured."""


# eq=False compares by identity, since arrays have no plain equality.
@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """Pictures of one model in one bucket, with an extractor's output.

    Attributes:
      images: float32 `[n, H, W, C]`, in [-1, 1] except where a network exceeds the range; None in a
        resample for metrics that only look at features.
      prompts: prompt of each picture, str `[n]`.
      features: float64 `[n, P, F]`; most extractors see a picture as one part.
      alignment: how well each picture fits its prompt, float64 `[n]`; None if that is unknown.
      identity: int `[n]`, equal for copies of one picture.
      errors: errors of each edit or completed picture, float64 `[n]`, by name. For edits see
        `metrics.edits.errors`. For completed pictures they are mean squares in the hole (`masked`)
        and, before known pixels were put back, around it (`known`), and the `distance` of features
        to those of the original. Empty for others.
    """

    images: np.ndarray | None
    prompts: np.ndarray
    features: np.ndarray
    alignment: np.ndarray | None
    identity: np.ndarray
    errors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.prompts if self.images is None else self.images)
        if self.features.ndim != 3 or {len(self.prompts), len(self.features)} != {count}:
            raise UserError(
                f"features of shape {self.features.shape} and {len(self.prompts)} prompts for "
                f"{count} pictures: give [{count}, P, F] and one prompt for each"
            )

    def take(self, index: np.ndarray, pixels: bool = True) -> "Seen":
        """Some of the pictures, by index, which may contain repeats.

        Without `pixels` images are left out, since large ones take long to copy.
        """
        alignment = None if self.alignment is None else self.alignment[index]
        return Seen(
            self.images[index] if pixels and self.images is not None else None,
            self.prompts[index],
            self.features[index],
            alignment,
            self.identity[index],
            {name: values[index] for name, values in self.errors.items()},
        )


def joint(parts: Sequence[Seen]) -> np.ndarray:
    """The features of several buckets as samples of one distribution, float64 `[N, D]`.

    A picture is one sample of the joint distribution of its parts. If buckets have different
    numbers of parts, these distributions cannot be compared, and each part is a sample instead.
    """
    if len({part.features.shape[1] for part in parts}) == 1:
        return np.concatenate([part.features.reshape(len(part.features), -1) for part in parts])
    return np.concatenate([part.features.reshape(-1, part.features.shape[-1]) for part in parts])


def grid_of_pixels(images: np.ndarray) -> np.ndarray:
    """Evenly spaced pixels, whose values are distributed like those of all pixels.

    Args:
      images: `[n, H, W, C]` of any size.

    Returns:
      `[n, GRID, GRID, C]`.
    """
    rows, columns = ((np.arange(GRID) * side + side // 2) // GRID for side in images.shape[1:3])
    return images[:, rows][:, :, columns]


def in_shares_of(parts: Sequence[Seen], others: Sequence[Seen], seed: int) -> list[Seen]:
    """Pictures of several buckets, thinned so that buckets have the same shares as in another set.

    Otherwise distances between the mixtures would mostly measure how their shares differ.

    Args:
      parts: pictures of each bucket.
      others: the other set, in the same buckets.
      seed: seed of the draw, without replacement, from buckets that exceed their share.
    """
    ratio = min(
        len(part.prompts) / len(other.prompts) for part, other in zip(parts, others, strict=True)
    )
    found = []
    for part, other in zip(parts, others, strict=True):
        size = len(part.prompts)
        count = min(max(round(ratio * len(other.prompts)), 1), size)
        if count < size:
            places = np.random.default_rng(seed).choice(size, count, replace=False)
            part = part.take(np.sort(places))
        found.append(part)
    return found
