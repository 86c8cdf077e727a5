"""Pictures as an extractor sees them: what metrics are measured on.

n pictures, P parts of a picture, F features of a part.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ladd_jax.errors import UserError

GRID = 32
"""Rows and columns of the pixels that stand for a large picture where contrast is measured."""


# Compared by identity, as arrays are.
@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """Pictures of one model in one bucket, with what an extractor makes of them.

    Attributes:
      images: float32 `[n, H, W, C]`, in [-1, 1] but for what a network draws beyond; None in a
        resample for metrics that look at features alone.
      prompts: of each picture, str `[n]`.
      features: float64 `[n, P, F]`; most extractors see a picture as one part.
      alignment: how well each picture fits its prompt, float64 `[n]`; None where nothing tells.
      identity: int `[n]`, the same for copies of one picture.
      errors: of edits and of pictures that were completed what each is off, float64 `[n]`, by name:
        for edits see `metrics.edits.errors`; else mean squares in the hole (`masked`) and around it
        before known pixels were put back (`known`), and the `distance` of features to those of the
        pictures themselves. Empty for others.
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
        """Some of the pictures, by number, a picture more than once where it is named so.

        Without `pixels` there are no images, of which large ones take long to copy.
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

    A picture is one sample of the joint distribution of its parts. Where buckets have different
    numbers of parts they only share the parts themselves, which are the samples then.
    """
    if len({part.features.shape[1] for part in parts}) == 1:
        return np.concatenate([part.features.reshape(len(part.features), -1) for part in parts])
    return np.concatenate([part.features.reshape(-1, part.features.shape[-1]) for part in parts])


def grid_of_pixels(images: np.ndarray) -> np.ndarray:
    """Evenly spaced pixels, which have the same distribution of values as all.

    Args:
      images: `[n, H, W, C]` of any sides.

    Returns:
      `[n, GRID, GRID, C]`.
    """
    rows, columns = ((np.arange(GRID) * side + side // 2) // GRID for side in images.shape[1:3])
    return images[:, rows][:, :, columns]


def in_shares_of(parts: Sequence[Seen], others: Sequence[Seen], seed: int) -> list[Seen]:
    """The pictures of several buckets, or some, so that buckets have the shares of another set.

    Distances between mixtures would else be distances between shares of buckets.

    Args:
      parts: one for each bucket.
      others: the other set, in the same buckets.
      seed: of the draw without replacement in buckets that have more than their share.
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
