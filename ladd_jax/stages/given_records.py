"""The pictures that come with the prompts of a run's held-out records, also written as files.

h w latent grid, H W picture, C channels.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import enlarged, to_bytes
from ladd_jax.data.shards import Shards
from ladd_jax.evaluation.pictures import png
from ladd_jax.stages.given import GivenFiles, fit_mask
from ladd_jax.stages.holes import holes_of
from ladd_jax.stages.judging import edits_of, first_subjects
from ladd_jax.stages.latents import Pictures
from ladd_jax.stages.subjects import Subject


class GivenRecord(NamedTuple):
    """A prompt, and the picture that comes with it.

    Attributes:
      prompt: the prompt.
      pictures: converts between pixels and latents of its run.
      pixels: float32 `[H, W, 1 or 3]` in [-1, 1] of the picture that is edited, or of the whole
        picture whose hole is filled.
      mask: bool `[H, W]`, true where it is to be filled; None for a picture that is edited.
    """

    prompt: str
    pictures: Pictures
    pixels: np.ndarray
    mask: np.ndarray | None = None

    @property
    def shown(self) -> np.ndarray:
        """The picture as people see it, uint8 `[H', W', 1, 3 or 4]`, transparent in the hole."""
        seen = to_bytes(self.pictures.shown(self.pixels))
        if self.mask is None:
            return seen
        known = ~self.pictures.shown(self.mask)[..., None]
        colours = np.broadcast_to(seen, (*seen.shape[:2], 3))
        return np.concatenate([colours * known, np.uint8(255) * known], axis=-1)

    def has_hole(self, pictures: Pictures, bucket: Bucket) -> bool:
        """Whether any of the hole is left after cropping to a bucket; always true for an edit.

        Args:
          pictures: converts between pixels and latents of a network.
          bucket: the shape of that network's latents.
        """
        if self.mask is None:
            return True
        white = np.repeat(np.uint8(255) * self.mask[..., None], 3, axis=-1)
        return bool(fit_mask(pictures, white, bucket).any())


def given_records(
    config: Config,
    shards: Shards,
    bucket: Bucket,
    pictures: Pictures,
    most: int,
    records: int,
    wanted: Collection[str] | None = None,
) -> list[GivenRecord]:
    """The first prompts of a bucket, each with the pictures of its first record.

    Args:
      config: config of a run that edits, or fills holes.
      shards: the run's held-out records.
      bucket: one of their buckets.
      pictures: converts between pixels and latents of the run.
      most: largest number of prompts.
      records: number of records to search, from the first on.
      wanted: prompts to take, if records have them; default: all.
    """
    subjects = first_subjects(shards, bucket, most, records, wanted)
    prompts = [str(prompt) for prompt in subjects.prompts]
    edits = edits_of(config, {bucket: (subjects.cond, subjects.latents)})
    if edits is not None:
        return [
            GivenRecord(prompt, pictures, pictures.pixels_of(latent))
            for prompt, latent in zip(prompts, edits[bucket].sources, strict=True)
        ]
    holes = holes_of(config, Subject({bucket: subjects}, shards.null, shards))[bucket]
    return [
        GivenRecord(prompt, pictures, pictures.pixels_of(latent), enlarged(mask, pictures.pixels))
        for prompt, latent, mask in zip(prompts, holes.latents, holes.masks, strict=True)
    ]


def write_given(folder: Path, records: Sequence[GivenRecord]) -> list[GivenFiles]:
    """Writes pictures to `images`, and masks to `masks`, in the form that `ladd_jax.sample` takes.

    Masks are white where a picture is to be filled; files are named in the order of the records.

    Args:
      folder: folder to make both in, the latter only if there are masks.
      records: the records to write.
    """

    def write(kind: str, number: int, data: bytes) -> Path:
        file = folder / kind / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file

    files = []
    for number, record in enumerate(records):
        image = write("images", number, png(record.pixels, 1, {"prompt": record.prompt}))
        mask = None
        if record.mask is not None:
            mask = write("masks", number, png(np.where(record.mask, 1, -1)[..., None], 1))
        files.append(GivenFiles(image, mask))
    return files
