"""Pictures that go with prompts, joined to x_t or to start from: what becomes of them.

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
      image: a picture.
      mask: what of it is to be filled, white; None where the network fills none.
    """

    image: Path
    mask: Path | None = None


class Given(Protocol):
    """The pictures of all prompts, each found by its prompt's place."""

    def channels(self, prompt: int) -> np.ndarray:
        """What is joined to x_t, float32 `[h, w, J]`, or what samples start from."""
        ...

    def finished(self, prompt: int, picture: np.ndarray) -> np.ndarray:
        """The picture `[H, W, C]` that a sample becomes."""
        ...

    def facts(self, prompt: int) -> dict[str, str]:
        """What the metadata of a picture say of it."""
        ...


def open_given(trained: TrainedModel, bucket: Bucket, files: Sequence[GivenFiles]) -> Given | None:
    """The pictures that a network reads besides prompts, or that its samples start from.

    Args:
      trained: the model that is sampled.
      bucket: shape of the latents.
      files: one for each prompt; none: there is nothing besides prompts.

    Raises:
      UserError: a mask is not of its picture's size, or has nothing white.
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
      strength: share of the noise that samples start with; None where none is asked for.

    Raises:
      UserError: it is not; the sentence names the flags.
    """
    if masks and trained.joined != "inpaint":
        raise UserError(
            f"--mask is for a network that fills holes, and {trained.place} is none: leave it out"
        )
    if not trained.reads_picture:
        return
    if not images:
        raise UserError(f"{trained.place} is given a picture: name one by --image=FILE")
    if strength is not None:
        raise UserError(
            f"--strength={strength:g} is of a picture that samples start from, and "
            f"{trained.place} is given one beside its noise: leave --strength out"
        )
    if trained.joined == "inpaint" and not masks:
        raise UserError(
            f"{trained.place} fills what a mask says: name one by --mask=FILE, white where "
            f"the picture is to be filled"
        )
    if masks not in (0, 1, images):
        raise UserError(
            f"{masks} masks for {images} pictures: give one for all, or one for each of them"
        )


def check_edits(trained: TrainedModel, flag: str) -> None:
    """Raises UserError where a flag is for a network that edits, and this is none."""
    if trained.joined != "edit":
        raise UserError(
            f"{flag} is for a network that edits pictures, and {trained.place} is none: leave it "
            f"out"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Holed:
    """A picture with a hole, in a bucket.

    Attributes:
      pictures: what its latents are in pictures.
      pixels: float32 `[H, W, C]` in [-1, 1].
      mask: bool `[H, W]`, true where the picture is to be filled.
    """

    pictures: Pictures
    pixels: np.ndarray
    mask: np.ndarray

    def channels(self) -> np.ndarray:
        """What is joined to x_t, float32 `[h, w, 1 + C]`."""
        latents = self.pictures.latents_of(masked(self.pixels[None], self.mask[None])[0])
        return inpainting_channels(self.mask[None], latents[None], self.pictures.pixels)[0]

    def finished(self, picture: np.ndarray) -> np.ndarray:
        """The picture that a sample `[H, W, C]` becomes; known pixels have the bits they had."""
        shown = self.pictures.shown
        return np.where(shown(self.mask)[..., None], picture, shown(self.pixels))


def fit_mask(pictures: Pictures, mask: np.ndarray, bucket: Bucket) -> np.ndarray:
    """A mask, fitted as its picture is.

    Args:
      pictures: what latents are in pictures.
      mask: uint8 `[H, W, 3]` of any size, white where the picture is to be filled.
      bucket: shape of the latents.

    Returns:
      bool `[H, W]` of the bucket.
    """
    height, width = bucket.image_size(pictures.pixels)
    return fit(mask, height, width, 1)[..., 0] > 0


class Whole:
    """Pictures that are edited, or that samples start from, each fitted into the bucket as those of
    training are. The last one that was asked for is kept."""

    def __init__(self, trained: TrainedModel, bucket: Bucket, files: Sequence[GivenFiles]):
        self._pictures, self._bucket, self._files = trained.pictures, bucket, files
        self._encoded = functools.lru_cache(maxsize=1)(self._encode)
        self._facts = functools.lru_cache(maxsize=1)(_facts)

    def channels(self, prompt: int) -> np.ndarray:
        """See `Given`."""
        return self._encoded(self._files[prompt])

    def finished(self, prompt: int, picture: np.ndarray) -> np.ndarray:
        """See `Given`: the sample itself."""
        del prompt
        return picture

    def facts(self, prompt: int) -> dict[str, str]:
        """See `Given`."""
        return self._facts(self._files[prompt])

    def _encode(self, files: GivenFiles) -> np.ndarray:
        return self._pictures.encode(read_start(files.image), self._bucket)


class Filled(Whole):
    """Pictures with holes, of which all around the holes stays as it was.

    All masks are looked at before any of them is used: a mistake in the last one is told at once.
    """

    def __init__(self, trained: TrainedModel, bucket: Bucket, files: Sequence[GivenFiles]):
        super().__init__(trained, bucket, files)
        self._read = functools.lru_cache(maxsize=1)(self._read_files)
        for pair in dict.fromkeys(files):
            _check_sizes(pair)
        for file in dict.fromkeys(pair.mask for pair in files):
            if file is not None and not self._mask(file).any():
                raise UserError(
                    f"the mask {file} has nothing white in the part that is filled: paint white "
                    f"what is to be filled"
                )

    def finished(self, prompt: int, picture: np.ndarray) -> np.ndarray:
        """See `Given`; known pixels have the bits that they had."""
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
    """Raises UserError where a mask has not the size of its picture."""
    assert files.mask is not None
    (height, width), (rows, columns) = look_at_start(files.image), look_at_start(files.mask)
    if (rows, columns) != (height, width):
        raise UserError(
            f"the mask {files.mask} has {columns}x{rows} pixels and its picture {files.image} "
            f"{width}x{height}: make it of the picture's size"
        )


def _facts(files: GivenFiles) -> dict[str, str]:
    found = {"image": name_of(files.image)}
    return found if files.mask is None else found | {"mask": name_of(files.mask)}
