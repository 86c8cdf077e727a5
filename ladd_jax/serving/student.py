"""A student with a program for every bucket and number of steps, compiled before it is asked.

n pictures, h w latent grid, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import decode_image, to_bytes
from ladd_jax.data.prompts import check_prompt
from ladd_jax.diffusion.sampling import GivenGuidance, Sampler, Sampling, seeds
from ladd_jax.errors import UserError
from ladd_jax.models.base import GUIDANCE
from ladd_jax.parallel.mesh import batch_divisor
from ladd_jax.ranges import SEED
from ladd_jax.stages.trained import TrainedModel

_LOG = logging.getLogger(__name__)

_KEPT_PROMPTS = 256
"""Prompts whose text stays encoded: a picture in one step and one in four have the same."""

_KEPT_PICTURES = 16

Text = dict[str, np.ndarray]
"""Arrays of one prompt by name."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What pictures of one batch share.

    Attributes:
      bucket: shape of the latents.
      sigmas: noise levels.
      starts: whether there may be a latent under the noise of the first level.
    """

    bucket: Bucket
    sigmas: tuple[float, ...]
    starts: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One picture to make.

    Attributes:
      prompt: what it shows.
      seed: its seed.
      guidance: the scale that the student is told; None for a student that is told none.
      start: the latent `[h, w, C]` that it starts from; None for noise alone.
    """

    prompt: str
    seed: int
    guidance: GivenGuidance = None
    start: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a user asks for, as it was given.

    Attributes:
      prompt: what to show.
      bucket: shape of the latents.
      steps: steps of the whole schedule.
      seed: seed of the first picture; the next has the next number.
      count: how many pictures.
      guidance: the scale that the student is told; None for its default.
      picture: a file with a picture to start from; None for noise alone.
      strength: share of noise that the picture gets.
    """

    prompt: str
    bucket: Bucket
    steps: int
    seed: int = 0
    count: int = 1
    guidance: float | None = None
    picture: Path | None = None
    strength: float = 1.0


class Student:
    """All that is needed for pictures, in memory."""

    def __init__(self, trained: TrainedModel, mesh: Mesh, batch_size: int):
        """Reads encoder and network.

        Args:
          trained: the student.
          mesh: the mesh that it was opened for.
          batch_size: pictures of the largest batch; the smallest has one for each device.

        Raises:
          UserError: it is a data generator.
        """
        if not trained.times:
            raise UserError(
                f"{trained.place} is a data generator, which needs many steps: serve a student, or "
                f"use ladd_jax.sample"
            )
        self.trained = trained
        unit = batch_divisor(mesh)
        self.sizes = tuple(sorted({unit, -(-batch_size // unit) * unit}))
        _LOG.info("serve: reads the text encoder")
        self._encoder = trained.encoder()
        null = {name: array[0] for name, array in self._encoder.encode([""]).items()}
        _LOG.info("serve: reads the network")
        self._params = trained.load()
        network = trained.family.backbone(trained.architecture)
        self._samplers = {size: Sampler(network, null, mesh, size) for size in self.sizes}
        self._start = functools.lru_cache(_KEPT_PICTURES)(self._encoded_picture)
        self._texts: OrderedDict[str, Text | UserError] = OrderedDict()

    @property
    def steps(self) -> int:
        """The most steps."""
        return len(self.trained.times)

    @property
    def programs(self) -> list[tuple[Kind, int]]:
        """Kinds and sizes of batches: of every bucket each number of steps that there is."""
        times = sorted(self.trained.times, reverse=True)
        return [
            (Kind(bucket, (*times[:count], 0.0), starts), size)
            for bucket in self.trained.buckets
            for count in range(1, len(times) + 1)
            for starts in sorted({self._starts, True})
            for size in self.sizes
        ]

    @property
    def _starts(self) -> bool:
        """Whether a sample without a picture can be one with any: at t = 1 nothing is left of it,
        and one program serves both."""
        return max(self.trained.times) == 1

    def warm_up(self, told: Callable[[int, int], None]) -> None:
        """Compiles all programs, by using each.

        Args:
          told: is told how many are done, of how many.
        """
        programs = self.programs
        for done, (kind, size) in enumerate(programs):
            told(done, len(programs))
            guidance = self.trained.sampling(None, None, None).given_guidance
            self(kind, [Row("", 0, guidance)] * size)
        for bucket in self.trained.buckets:
            height, width = bucket.image_size(self.trained.reduction)
            self.trained.pictures.encode(np.zeros((height, width, 3), np.uint8), bucket)
        told(len(programs), len(programs))

    def rows_of(self, wish: Wish) -> tuple[Kind, list[Row]]:
        """What a wish is for the engine.

        Raises:
          UserError: the prompt is empty or too long, the file is no picture, or there is no such
            seed, guidance or strength.
        """
        prompt = check_prompt(wish.prompt, "the page")
        if wish.seed not in SEED:
            raise UserError(f"seed is {wish.seed}: use {SEED}")
        strength = None if wish.picture is None else wish.strength
        way: Sampling = self.trained.sampling(wish.steps, wish.guidance, None, strength)
        start = None
        if wish.picture is not None:
            start = self._start(wish.picture, wish.bucket)
        rows = [Row(prompt, wish.seed + i, way.given_guidance, start) for i in range(wish.count)]
        return Kind(wish.bucket, way.sigmas, self._starts or start is not None), rows

    def __call__(self, kind: Kind, rows: Sequence[Row]) -> list[np.ndarray | UserError]:
        """Pictures uint8 `[H, W, 1 or 3]` of as many rows as one of `sizes`."""
        texts = self._encode([row.prompt for row in rows])
        # A row whose prompt does not fit keeps its place in the batch, with another's text.
        some = next((text for text in texts if not isinstance(text, UserError)), None)
        if some is None:
            return [text for text in texts if isinstance(text, UserError)]
        fitting = [some if isinstance(text, UserError) else text for text in texts]
        cond = {name: np.stack([text[name] for text in fitting]) for name in some}
        if rows[0].guidance is not None:
            cond[GUIDANCE] = np.array([[row.guidance] for row in rows], np.float32)
        channels = self.trained.architecture.out_channels
        shape = (kind.bucket.height, kind.bucket.width, channels)
        nothing = np.zeros(shape, np.float32)
        x_0 = None
        if kind.starts:
            x_0 = np.stack([nothing if row.start is None else row.start for row in rows])
        keys = seeds(0, np.array([row.seed for row in rows]))
        latents = self._samplers[len(rows)](
            self._params, keys, cond, shape, Sampling("consistency", kind.sigmas), x_0=x_0
        )
        decode = self.trained.pictures.decode
        return [
            text if isinstance(text, UserError) else to_bytes(decode(latent))
            for text, latent in zip(texts, latents, strict=True)
        ]

    def _encoded_picture(self, file: Path, bucket: Bucket) -> np.ndarray:
        return self.trained.pictures.encode(decode_image(file.read_bytes()), bucket)

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
        # Of several encoders one may read more than the others: then nothing is lost.
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
