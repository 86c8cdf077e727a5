"""Aspect buckets: the shapes of latents.

A bucket is measured in latent pixels. The autoencoder makes one of them from `reduction x
reduction` pixels of the image, 8 x 8 in Stable Diffusion: the bucket 128x128 holds images of
1024 x 1024.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from ladd_jax.errors import UserError

_NAME = re.compile(r"([1-9]\d{0,8})x([1-9]\d{0,8})")


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """Shape of a latent grid.

    Attributes:
      height: rows, in latent pixels.
      width: columns, in latent pixels.
    """

    height: int
    width: int

    @property
    def name(self) -> str:
        """Rows x columns, such as `8x16`."""
        return f"{self.height}x{self.width}"

    def image_size(self, reduction: int = 8) -> tuple[int, int]:
        """Height and width of the images, in pixels, for an autoencoder's reduction."""
        return self.height * reduction, self.width * reduction

    @staticmethod
    def is_name(name: str) -> bool:
        """Whether a name is a bucket's."""
        return bool(_NAME.fullmatch(name))

    @classmethod
    def parse(cls, name: str) -> "Bucket":
        """The bucket of a name.

        Raises:
          UserError: the name is not two positive numbers around an x.
        """
        match = _NAME.fullmatch(name)
        if not match:
            raise UserError(f"bucket {name!r} is not ROWSxCOLUMNS, such as 8x16")
        return cls(int(match[1]), int(match[2]))


def bucket_table(
    pixels: int = 1024 * 1024,
    step: int = 64,
    count: int = 8,
    max_aspect: float = 2.0,
    reduction: int = 8,
) -> list[Bucket]:
    """Buckets of about one area and many aspects, after SDXL (Podell et al. 2023, appendix I).

    They are the square, and pairs of a wide and a tall bucket, spread evenly over the aspects that
    sides of whole steps allow. There are few, since every bucket is a program to compile.

    Args:
      pixels: number of pixels of an image. All areas are within 1/16 of it.
      step: unit of both sides of an image, in pixels: a multiple of reduction times the
        transformer's patch.
      count: largest number of buckets.
      max_aspect: largest ratio of the longer side to the shorter.
      reduction: pixels on a side of one latent pixel.

    Returns:
      Buckets in latent pixels, from wide to tall. The defaults give 88x176, 104x160, 112x144,
      128x128, 144x112, 160x104 and 176x88.

    Raises:
      UserError: no square of whole steps is near pixels, the step is not a multiple of reduction,
        or count or max_aspect is below 1.
    """
    if step < 1 or step % reduction:
        raise UserError(f"step {step} is not a multiple of the reduction {reduction}: use one")
    if count < 1 or max_aspect < 1:
        raise UserError(f"count {count} and max_aspect {max_aspect} must each be at least 1")
    area = pixels / step**2  # In squares of one step.
    side = round(math.sqrt(max(area, 0)))
    if not _is_near(side, area):
        near = " or ".join(str((s * step) ** 2) for s in _around(area))
        raise UserError(
            f"pixels {pixels} is more than 1/16 from the square of any multiple of {step}: "
            f"use {near}"
        )
    pairs = []
    for short in range(side, 0, -1):
        ideal, longest = round(area / short), math.floor(short * max_aspect)
        long = min(ideal, longest)
        if long > short and abs(short * long - area) * 16 <= area:
            pairs.append((short, long))
        if ideal >= longest:
            break
    most = min((count - 1) // 2, len(pairs))
    # The pairs are sorted outwards from the square, so the last one chosen is the widest.
    chosen = [pairs[round(len(pairs) * (i + 1) / most) - 1] for i in range(most)]
    sizes = [(side, side), *chosen, *((long, short) for short, long in chosen)]
    scale = step // reduction
    sizes.sort(key=lambda size: size[0] / size[1])
    return [Bucket(height * scale, width * scale) for height, width in sizes]


def _is_near(side: int, area: float) -> bool:
    return side > 0 and abs(side**2 - area) * 16 <= area


def _around(area: float) -> list[int]:
    """The sides, 1 or more, of the next smaller and the next larger square."""
    below = math.isqrt(max(int(area), 0))
    return [side for side in (below, below + 1) if side]


def check_resolution(resolution: int, step: int) -> None:
    """Raises UserError where no square of whole steps has about `resolution`^2 pixels."""
    area = (resolution / step) ** 2
    if not _is_near(round(resolution / step), area):
        near = " or ".join(str(side * step) for side in _around(area))
        raise UserError(
            f"data.resolution is {resolution} and sides of pictures are multiples of {step} "
            f"pixels: use {near}"
        )


def check_sides(buckets: Iterable[Bucket], sides: Mapping[str, tuple[int, int | None]]) -> None:
    """Checks that networks can be given latents of these shapes.

    Args:
      buckets: the shapes.
      sides: for each network, by its section of the config, the number that sides of its latents
        must be multiples of, and the largest side, or None for no limit. See `Family.sides`.

    Raises:
      UserError: a shape does not fit a network.
    """
    for bucket in buckets:
        for section, (step, most) in sides.items():
            if bucket.height % step or bucket.width % step:
                raise UserError(
                    f"bucket {bucket.name} has a side that is not a multiple of {step}, which is "
                    f"{section}.patch: use such sides"
                )
            if most is not None and max(bucket.height, bucket.width) > most:
                raise UserError(
                    f"bucket {bucket.name} exceeds the position table of {section}, which ends at "
                    f"{most} latent pixels: use a smaller bucket or data.resolution, or, without "
                    f"weights, a larger {section}.position_table"
                )


def nearest(buckets: Iterable[Bucket], height: float, width: float) -> Bucket:
    """The bucket whose aspect ratio is nearest, on a log scale, to height x width."""
    aspect = math.log(width / height)
    return min(sorted(buckets), key=lambda b: abs(math.log(b.width / b.height) - aspect))


def choose_buckets(
    aspects: np.ndarray, pixels: int, step: int, most: int, reduction: int = 1, saves: float = 0.01
) -> list[Bucket]:
    """A few buckets of about one area for pictures of given aspects.

    The first is the bucket of `bucket_table` that crops least. The next is always the one that
    saves most of what is still cropped, as long as that is worth another program to compile.

    Args:
      aspects: width over height of each picture, `[n]` with n above 0.
      pixels: number of pixels of an image, see `bucket_table`.
      step: unit of both sides of an image, see `bucket_table`.
      most: largest number of buckets.
      reduction: pixels on a side of one latent pixel.
      saves: smallest share of all pixels that another bucket must keep from being cropped.

    Returns:
      Buckets in latent pixels, in order of height.

    Raises:
      UserError: see `bucket_table`.
    """
    table = bucket_table(pixels, step, count=pixels, reduction=reduction)
    shapes = np.array([bucket.width / bucket.height for bucket in table])
    distance = np.abs(np.log(np.asarray(aspects)[:, None] / shapes))  # [n, buckets]
    cropped = 1 - np.exp(-distance)
    chosen: list[int] = []
    left = np.ones(len(cropped))
    while len(chosen) < most:
        after = np.minimum(left[:, None], cropped).mean(0)
        best = int(after.argmin())
        if chosen and left.mean() - after[best] < saves:
            break
        chosen.append(best)
        left = np.minimum(left, cropped[:, best])
    return sorted(table[i] for i in chosen)


def settle_small(
    sizes: Mapping[Bucket, int],
    least: int,
    small: str,
    held_out: Mapping[Bucket, int] | None = None,
    least_held_out: int = 0,
) -> dict[Bucket, Bucket | None]:
    """Where the records of each bucket go, so that no bucket is smaller than a batch.

    Args:
      sizes: records for training in each bucket.
      least: the smallest number of records for training that a bucket may have.
      small: what happens to the records of a smaller bucket, the smallest first: `merge` sends them
        to the bucket whose aspect is nearest, and `drop` leaves them out.
      held_out: records for judges in each bucket.
      least_held_out: the smallest number of them; if there are fewer, training gives some up.

    Returns:
      The bucket that the records of each bucket go to, which may be the same; None for left out.
    """
    homes: dict[Bucket, Bucket | None] = {bucket: bucket for bucket in sizes}
    kept = dict(sizes)
    apart = {bucket: (held_out or {}).get(bucket, 0) for bucket in sizes}

    def left(bucket: Bucket) -> int:
        """Records that remain for training once there are enough for judges."""
        return kept[bucket] - max(0, least_held_out - apart[bucket])

    while kept and min(map(left, kept)) < least:
        smallest = min(kept, key=lambda bucket: (left(bucket), bucket))
        count = kept.pop(smallest)
        merged = small == "merge" and bool(kept)
        home = nearest(kept, smallest.height, smallest.width) if merged else None
        if home is not None:
            kept[home] += count
            apart[home] += apart[smallest]
        homes = {bucket: home if to == smallest else to for bucket, to in homes.items()}
    return homes
