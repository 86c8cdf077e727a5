"""Pictures given with prompts: turns them into channels joined to x_t, or latents to start from.

h w latent grid, H W picture, C channels, J joined channels.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import fit
from ladd_jax.data.sources.inpainting import inpainting_channels, masked
from ladd_jax.errors import UserError
from ladd_jax.stages.latents import Pictures
from ladd_jax.stages.starts import look_at_start, name_of, read_start
from ladd_jax.stages.trained import TrainedModel


class GivenFiles(NamedTuple):
    """The files that belong to one prompt.

    Attributes:
      image: file of the picture.
      mask: file of the mask, white where the picture is to be filled; None for a network that does
        not fill holes.
    """

    image: Path
    mask: Path | None = None


class Given(Protocol):
    """The pictures of all prompts, by the index of the prompt."""

    def channels(self, prompt: int) -> np.ndarray:
        """The channels joined to x_t, float32 `[h, w, J]`, or the latent samples start from."""
        ...

    def finished(self, prompt: int, picture: np.ndarray) -> np.ndarray:
        """The final picture `[H, W, C]` made from a sample."""
        ...

    def facts(self, prompt: int) -> dict[str, str]:
        """What the metadata of a sample say about the given picture."""
        ...


def open_given(trained: TrainedModel, bucket: Bucket, files: Sequence[GivenFiles]) -> Given | None:
    """The pictures that a network reads besides prompts, or that its samples start from.

    Args:
      trained: the model that is sampled.
      bucket: shape of the latents.
      files: the files for each prompt; empty if there is nothing besides prompts.

    Raises:
      UserError: a mask differs in size from its picture, or has no white pixel in the part used.
    """
    if not files:
        return None
    kind: Callable[[TrainedModel, Bucket, Sequence[GivenFiles]], Given]
    kind = Filled if trained.joined == "inpaint" else Whole
    return kind(trained, bucket, files)


def check_given(trained: TrainedModel, images: int, masks: int, strength: float | None) -> None:
    """Checks that a network is given the pictures that it reads, and no others.

    Args:
      trained: the model that is sampled.
      images: number of pictures.
      masks: number of masks.
      strength: share of the noise that samples start with; None if none was asked for.

    Raises:
      UserError: the pictures, masks or strength do not suit the network; the message names flags.
    """
    if masks and trained.joined != "inpaint":
        raise UserError(
            f"--mask is for a network that fills holes, which {trained.place} does not: leave it "
            f"out"
        )
    if not trained.reads_picture:
        return
    if not images:
        raise UserError(f"{trained.place} is given a picture: name one by --image=FILE")
    if strength is not None:
        raise UserError(
            f"--strength={strength:g} is for a picture that samples start from, and "
            f"{trained.place} reads its picture beside the noise instead: leave --strength out"
        )
    if trained.joined == "inpaint" and not masks:
        raise UserError(
            f"{trained.place} fills the part that a mask marks: name one by --mask=FILE, white "
            f"where the picture is to be filled"
        )
    if masks not in (0, 1, images):
        raise UserError(
            f"{masks} masks for {images} pictures: give one for all, or one for each of them"
        )


def check_edits(trained: TrainedModel, flag: str) -> None:
    """Raises UserError if a flag is for networks that edit pictures, and this one does not."""
    if trained.joined != "edit":
        raise UserError(
            f"{flag} is for a network that edits pictures, which {trained.place} does not: leave "
            f"it out"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Holed:
    """A picture with a hole, fitted into a bucket.

    Attributes:
      pictures: converts between its pixels and its latents.
      pixels: float32 `[H, W, C]` in [-1, 1].
      mask: bool `[H, W]`, true where the picture is to be filled.
    """

    pictures: Pictures
    pixels: np.ndarray
    mask: np.ndarray

    def channels(self) -> np.ndarray:
        """The channels joined to x_t, float32 `[h, w, 1 + C]`."""
        latents = self.pictures.latents_of(masked(self.pixels[None], self.mask[None])[0])
        return inpainting_channels(self.mask[None], latents[None], self.pictures.pixels)[0]

    def finished(self, picture: np.ndarray) -> np.ndarray:
        """A sample `[H, W, C]` with the known pixels put back, bit for bit."""
        shown = self.pictures.shown
        return np.where(shown(self.mask)[..., None], picture, shown(self.pixels))


def fit_mask(pictures: Pictures, mask: np.ndarray, bucket: Bucket) -> np.ndarray:
    """A mask, fitted into a bucket like its picture.

    Args:
      pictures: converts between pixels and latents.
      mask: uint8 `[H, W, 3]` of any size, white where the picture is to be filled.
      bucket: shape of the latents.

    Returns:
      bool `[H, W]` of the bucket.
    """
    height, width = bucket.image_size(pictures.pixels)
    return fit(mask, height, width, 1)[..., 0] > 0


class Whole:
    """Pictures that are edited or that samples start from, each fitted into the bucket.

    They are fitted like the pictures in training. The last one that was asked for is cached.
    """

    def __init__(self, trained: TrainedModel, bucket: Bucket, files: Sequence[GivenFiles]):
        self._pictures, self._bucket, self._files = trained.pictures, bucket, files
        self._encoded = functools.lru_cache(maxsize=1)(self._encode)
        self._facts = functools.lru_cache(maxsize=1)(_facts)

    def channels(self, prompt: int) -> np.ndarray:
        """See `Given`."""
        return self._encoded(self._files[prompt])

    def finished(self, prompt: int, picture: np.ndarray) -> np.ndarray:
        """See `Given`; returns the sample itself."""
        del prompt
        return picture

    def facts(self, prompt: int) -> dict[str, str]:
        """See `Given`."""
        return self._facts(self._files[prompt])

    def _encode(self, files: GivenFiles) -> np.ndarray:
        return self._pictures.encode(read_start(files.image), self._bucket)


class Filled(Whole):
    """Pictures with holes, whose pixels around the holes stay as they were.

    All masks are checked before any of them is used, so that a mistake in the last one is reported
    at once.
    """

    def __init__(self, trained: TrainedModel, bucket: Bucket, files: Sequence[GivenFiles]):
        super().__init__(trained, bucket, files)
        self._read = functools.lru_cache(maxsize=1)(self._read_files)
        for pair in dict.fromkeys(files):
            _check_sizes(pair)
        for file in dict.fromkeys(pair.mask for pair in files):
            if file is not None and not self._mask(file).any():
                raise UserError(
                    f"the mask {file} has nothing white in the part that is used: paint the part "
                    f"to fill white"
                )

    def finished(self, prompt: int, picture: np.ndarray) -> np.ndarray:
        """See `Given`; known pixels are put back, bit for bit."""
        return self._read(self._files[prompt]).finished(picture)

    def _encode(self, files: GivenFiles) -> np.ndarray:
        return self._read(files).channels()

    def _read_files(self, files: GivenFiles) -> Holed:
        assert files.mask is not None
        pixels = self._pictures.fit(read_start(files.image), self._bucket)
        return Holed(self._pictures, pixels, self._mask(files.mask))

    def _mask(self, file: Path) -> np.ndarray:
        return fit_mask(self._pictures, read_start(file), self._bucket)


def _check_sizes(files: GivenFiles) -> None:
    """Raises UserError if a mask differs in size from its picture."""
    assert files.mask is not None
    (height, width), (rows, columns) = look_at_start(files.image), look_at_start(files.mask)
    if (rows, columns) != (height, width):
        raise UserError(
            f"the mask {files.mask} has {columns}x{rows} pixels and its picture {files.image} "
            f"{width}x{height}: make the mask as large as the picture"
        )


def _facts(files: GivenFiles) -> dict[str, str]:
    found = {"image": name_of(files.image)}
    return found if files.mask is None else found | {"mask": name_of(files.mask)}
