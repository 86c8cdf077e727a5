"""A student with a program for every bucket and number of steps, compiled before the first request.

n pictures, h w latent grid, C channels, J joined channels.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import decode_image, to_bytes
from ladd_jax.data.prompts import check_prompt
from ladd_jax.diffusion.sampling import GivenGuidance, Sampler, Sampling, scales_of, seeds
from ladd_jax.errors import UserError
from ladd_jax.models.base import CHANNELS, GUIDANCE
from ladd_jax.parallel.mesh import batch_divisor
from ladd_jax.ranges import SEED
from ladd_jax.serving.painting import painted_mask
from ladd_jax.stages.conditions import check_text, conditions_of
from ladd_jax.stages.given import Holed, fit_mask
from ladd_jax.stages.trained import TrainedModel

_LOG = logging.getLogger(__name__)

_KEPT_PROMPTS = 256
"""How many prompts' encoded text is kept: pictures in one step and in all steps share it."""

_KEPT_PICTURES = 16
"""How many fitted pictures, and how many encoded inputs, are kept, so that a stroke costs no more
than its mask.

The cache key is the file's path, which is safe because gradio names an upload's folder by a digest
of its content.
"""

_NO_PICTURE = {
    "inpaint": "there is no picture: choose the one to fill",
    "edit": "there is no picture: choose the one to edit",
}
"""The error for a missing picture, by what is joined to x_t."""

Text = dict[str, np.ndarray]
"""The encoded arrays of one prompt, by name."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What all pictures in a batch have in common.

    Attributes:
      bucket: shape of the latents.
      sigmas: noise levels.
      starts: whether samples can start from a latent with the noise of the first level.
    """

    bucket: Bucket
    sigmas: tuple[float, ...]
    starts: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One picture to make.

    Attributes:
      prompt: what it shows.
      seed: seed of its noise.
      guidance: the guidance scale given to the student, or both scales; None for a student that is
        not given any.
      start: the latent `[h, w, C]` that it starts from; None for noise alone.
      joined: channels joined to x_t, `[h, w, J]`; None for a student that is given no picture.
      own: arrays of the conditions that it is given besides the prompt, by their names in a cond.
      hole: the picture whose hole is filled; None for a student that does not fill holes.
    """

    prompt: str
    seed: int
    guidance: GivenGuidance = None
    start: np.ndarray | None = None
    joined: np.ndarray | None = None
    own: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    hole: Holed | None = None

    def finished(self, picture: np.ndarray) -> np.ndarray:
        """The final picture `[H, W, C]` made from a sample."""
        return picture if self.hole is None else self.hole.finished(picture)


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a user asks for, as entered on the page.

    Attributes:
      prompt: what the pictures show.
      bucket: shape of the latents.
      steps: steps of the whole schedule.
      seed: seed of the first picture; each further picture has the next number.
      count: number of pictures.
      guidance: the guidance scale given to the student; None for its default.
      image_guidance: the same for the scale on the picture that is edited.
      picture: path of the picture that the student fills or edits, or otherwise starts from; None
        for noise alone.
      painting: the paint layer over the picture, an encoded image of its aspect that is transparent
        where the picture stays as it is; None where nothing is painted.
      strength: share of noise that is mixed into a picture to start from.
      conditions: values of the student's other conditions, by name; those of files are paths.
    """

    prompt: str
    bucket: Bucket
    steps: int
    seed: int = 0
    count: int = 1
    guidance: float | None = None
    image_guidance: float | None = None
    picture: Path | None = None
    painting: bytes | None = None
    strength: float = 1.0
    conditions: tuple[tuple[str, str], ...] = ()


class Student:
    """Everything that is needed to make pictures, in memory."""

    def __init__(self, trained: TrainedModel, mesh: Mesh, batch_size: int):
        """Reads the encoder and the network.

        Args:
          trained: the student.
          mesh: the mesh that it was opened for.
          batch_size: size of the largest batch, rounded up to fill the devices; the smallest batch
            has the least size that fills them.

        Raises:
          UserError: it is a data generator, or reads what nothing gives.
        """
        if not trained.times:
            raise UserError(
                f"{trained.place} is a data generator, which needs many steps: serve a student, or "
                f"use ladd_jax.sample"
            )
        self.trained = trained
        self._conditions = {b: conditions_of(trained, b) for b in trained.buckets}
        unit = batch_divisor(mesh)
        self.sizes = tuple(sorted({unit, -(-batch_size // unit) * unit}))
        _LOG.info("serve: reading the text encoder")
        self._encoder = trained.encoder()
        null = {name: array[0] for name, array in self._encoder.encode([""]).items()}
        check_text(trained, null)
        _LOG.info("serve: reading the network")
        self._params = trained.load()
        network = trained.family.backbone(trained.architecture)
        self._samplers = {size: Sampler(network, null, mesh, size) for size in self.sizes}
        self._given = functools.lru_cache(_KEPT_PICTURES)(self._give)
        self._own = functools.lru_cache(_KEPT_PICTURES)(self._read)
        self._fitted = functools.lru_cache(_KEPT_PICTURES)(self._fit)
        self._texts: OrderedDict[str, Text | UserError] = OrderedDict()

    @property
    def steps(self) -> int:
        """The largest number of steps."""
        return len(self.trained.times)

    @property
    def programs(self) -> list[tuple[Kind, int]]:
        """Kind and batch size of each program: every bucket with every number of steps."""
        times = sorted(self.trained.times, reverse=True)
        return [
            (Kind(bucket, (*times[:count], 0.0), starts), size)
            for bucket in self.trained.buckets
            for count in range(1, len(times) + 1)
            for starts in ([False] if self.trained.reads_picture else sorted({self._starts, True}))
            for size in self.sizes
        ]

    @property
    def _starts(self) -> bool:
        """Whether one program serves samples from noise alone and samples from a picture.

        That is so where the first time is t = 1, at which nothing is left of a picture. A picture
        that is joined to x_t is never started from.
        """
        return not self.trained.reads_picture and max(self.trained.times) == 1

    def warm_up(self, told: Callable[[int, int], None]) -> None:
        """Compiles all programs by running each once.

        Args:
          told: called with the number of programs done, and the number of all.
        """
        programs, network = self.programs, self.trained.architecture
        for done, (kind, size) in enumerate(programs):
            told(done, len(programs))
            guidance = self.trained.sampling(None, None, None).given_guidance
            joined = None
            if self.trained.reads_picture:
                channels = network.in_channels - network.out_channels
                shape = (kind.bucket.height, kind.bucket.width, channels)
                joined = np.zeros(shape, np.float32)
            asked = self._conditions[kind.bucket].values()
            own = {each.array: np.zeros(each.wanted.shape, np.float32) for each in asked}
            self(kind, [Row("", 0, guidance, joined=joined, own=own)] * size)
        for bucket in self.trained.buckets:
            height, width = bucket.image_size(self.trained.reduction)
            self.trained.pictures.encode(np.zeros((height, width, 3), np.uint8), bucket)
        told(len(programs), len(programs))

    def rows_of(self, wish: Wish) -> tuple[Kind, list[Row]]:
        """The kind and rows with which a wish is submitted to the engine.

        Raises:
          UserError: the prompt is empty or too long, the file is not a picture, the seed, guidance
            or strength is not allowed, or a picture, hole or condition that the student needs is
            missing.
        """
        prompt = check_prompt(wish.prompt, "the page")
        if wish.seed not in SEED:
            raise UserError(f"seed is {wish.seed}: use {SEED}")
        joins = self.trained.reads_picture
        strength = None if joins or wish.picture is None else wish.strength
        way: Sampling = self.trained.sampling(
            wish.steps, wish.guidance, None, strength, wish.image_guidance
        )
        latents, hole = None, None
        if wish.picture is not None:
            latents, hole = self._given(wish.picture, wish.painting, wish.bucket)
        elif joins:
            raise UserError(_NO_PICTURE[self.trained.joined])
        start, joined = (None, latents) if joins else (latents, None)
        given = dict(wish.conditions)
        own = {
            asked.array: self._own(name, given.get(name), wish.bucket)
            for name, asked in self._conditions[wish.bucket].items()
        }
        rows = [
            Row(prompt, wish.seed + i, way.given_guidance, start, joined, own, hole)
            for i in range(wish.count)
        ]
        return Kind(wish.bucket, way.sigmas, self._starts or start is not None), rows

    def __call__(self, kind: Kind, rows: Sequence[Row]) -> list[np.ndarray | UserError]:
        """Makes a picture, uint8 `[H, W, 1 or 3]`, of each row; their number is one of `sizes`."""
        texts = self._encode([row.prompt for row in rows])
        # A row whose prompt is too long keeps its place in the batch, with another row's text.
        some = next((text for text in texts if not isinstance(text, UserError)), None)
        if some is None:
            return [text for text in texts if isinstance(text, UserError)]
        fitting = [some if isinstance(text, UserError) else text for text in texts]
        cond = {name: np.stack([text[name] for text in fitting]) for name in some}
        if rows[0].guidance is not None:
            cond[GUIDANCE] = np.array([scales_of(row.guidance) for row in rows], np.float32)
        joined = [row.joined for row in rows if row.joined is not None]
        if joined:
            cond[CHANNELS] = np.stack(joined)
        cond |= {name: np.stack([row.own[name] for row in rows]) for name in rows[0].own}
        channels = self.trained.architecture.out_channels
        shape = (kind.bucket.height, kind.bucket.width, channels)
        nothing = np.zeros(shape, np.float32)
        x_0 = None
        if kind.starts:
            x_0 = np.stack([nothing if row.start is None else row.start for row in rows])
        keys = seeds(0, np.array([row.seed for row in rows]))
        latents = self._samplers[len(rows)](
            self._params, keys, cond, shape, Sampling(self.trained.sampler, kind.sigmas), x_0=x_0
        )
        decode = self.trained.pictures.decode
        return [
            text if isinstance(text, UserError) else to_bytes(row.finished(decode(latent)))
            for row, text, latent in zip(rows, texts, latents, strict=True)
        ]

    def _give(
        self, file: Path, painting: bytes | None, bucket: Bucket
    ) -> tuple[np.ndarray, Holed | None]:
        """What the student is given from a picture, `[h, w, C or J]`, and the picture's hole."""
        pictures = self.trained.pictures
        if self.trained.joined != "inpaint":
            return pictures.encode(read_picture(file), bucket), None
        # Read even without paint, so that a file that is not a picture is reported first.
        pixels, height, width = self._fitted(file, bucket)
        mask = None
        if painting is not None:
            mask = fit_mask(pictures, painted_mask(painting, height, width), bucket)
        if mask is None or not mask.any():
            raise UserError(
                "nothing is painted in the part that is used: paint over the part to fill"
            )
        hole = Holed(pictures, pixels, mask)
        return hole.channels(), hole

    def _read(self, name: str, value: str | None, bucket: Bucket) -> np.ndarray:
        """The array of a condition's value; None has its default."""
        asked = self._conditions[bucket][name]
        value = asked.condition.default if value is None else value
        if value is None:
            raise UserError(f"there is no {asked.condition.words}: give one")
        words, file = asked.condition.words, asked.condition.file
        return asked.of(_bytes_of(Path(value), words) if file else value)

    def _fit(self, file: Path, bucket: Bucket) -> tuple[np.ndarray, int, int]:
        """A picture's pixels fitted into a bucket, and its own height and width."""
        picture = read_picture(file)
        height, width, _ = picture.shape
        return self.trained.pictures.fit(picture, bucket), height, width

    def _encode(self, prompts: Sequence[str]) -> list[Text | UserError]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if new:
            self._texts.update(zip(new, self._encoded(new), strict=True))
        found = []
        for prompt in prompts:
            self._texts.move_to_end(prompt)
            found.append(self._texts[prompt])
        while len(self._texts) > _KEPT_PROMPTS:
            self._texts.popitem(last=False)
        return found

    def _encoded(self, prompts: Sequence[str]) -> list[Text | UserError]:
        before = dict(self._encoder.truncated)
        arrays = self._encoder.encode(prompts)
        texts = [{name: array[i] for name, array in arrays.items()} for i in range(len(prompts))]
        # Counts as cut only where all encoders cut it, since one may read more than the others.
        cut = [name for name, count in self._encoder.truncated.items() if count > before[name]]
        if not cut or len(cut) < len(before):
            return list(texts)
        if len(prompts) == 1:
            return [
                UserError(
                    f"the prompt has {len(prompts[0])} characters, more than {' and '.join(cut)} "
                    f"reads: shorten it"
                )
            ]
        return [text for prompt in prompts for text in self._encoded([prompt])]


def read_picture(file: Path) -> np.ndarray:
    """The picture that a user has chosen, uint8 `[H, W, 3]`.

    Raises:
      UserError: the file is not a picture, is damaged, too large to decode, or no longer there.
    """
    return decode_image(_bytes_of(file, "picture"))


def _bytes_of(file: Path, what: str) -> bytes:
    """The content of a file that a user has chosen.

    Its errors differ from those of `stages.starts.read_start`: a browser must not be told paths on
    the server, and its user can choose the file again but not check a path.

    Raises:
      UserError: it is no longer there.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(
            f"the {what} {file.name} cannot be read ({error.strerror}): choose it again"
        ) from error
