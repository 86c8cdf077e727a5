"""Previews of a student in training: sheets of samples and quick metrics, from fixed noise."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.sampling import Sampler, Sampling, seeds
from ladd_jax.evaluation.pictures import sheet
from ladd_jax.evaluation.strip import save_preview
from ladd_jax.methods import METHODS
from ladd_jax.models.base import Backbone, Params
from ladd_jax.models.families import family_of
from ladd_jax.stages.judging import Show, decoding, subjects_of
from ladd_jax.stages.quick_metrics import QuickMetrics
from ladd_jax.training.metrics import MetricWriter

_LOG = getLogger(__name__)

_BUCKETS, _PROMPTS, _SEEDS = 3, 4, 4

# Records of a bucket that are searched for prompts; few, since their latents are read as well.
_RECORDS = 64

# Largest side of a picture in a sheet, in pixels.
_SIDE = 256


class Previews:
    """Sheets of a few prompts with a few seeds, and quick metrics, at each number of steps."""

    def __init__(
        self, config: Config, workdir: Path, shards: Shards, network: Backbone, mesh: Mesh
    ):
        """Reads the prompts, and the autoencoder if previews are decoded.

        Args:
          config: the run's config.
          workdir: the run's workdir; pictures go to `previews` in the folder of the training.
          shards: the shards that training reads.
          network: the student's network.
          mesh: mesh that samples are made on.

        Raises:
          NotFoundError: previews should be decoded and there is no autoencoder.
        """
        self._folder = workdir / "distil" / "previews"
        self._shape = {
            bucket: (bucket.height, bucket.width, config.model.channels)
            for bucket in _spread(shards.buckets)
        }
        self._subjects = {
            bucket: subjects_of(shards, bucket, _PROMPTS * _SEEDS, _SEEDS, _RECORDS)
            for bucket in self._shape
        }
        self._sampler = Sampler(network, shards.null, mesh, _PROMPTS * _SEEDS)
        steps, times = config.evaluate.student_steps, config.distil.timesteps
        sampler = METHODS[config.distil.objective].sampler
        # Padding lets one program per bucket serve all numbers of steps: compiling more programs
        # would take longer than the extra steps, which change nothing.
        self._samplings = {
            n: Sampling.student(n, times, sampler=sampler).padded(max(steps) + 1) for n in steps
        }
        self._seed = config.seed
        self._show = show_latents(config, config.log.decode)
        self._quick = None
        if config.log.quick_samples and _has_pictures(config):
            pictures = self._show if config.log.decode else show_latents(config, True)
            self._quick = QuickMetrics(config, workdir, shards, list(self._shape), mesh, pictures)
        elif config.log.quick_samples:
            _LOG.info(
                "distil: no quick metrics of previews, since their latents are not pictures: name "
                "an extractor by evaluate.extractor and extractor_weights to have them decoded"
            )

    def __call__(self, params: Params, step: int, writer: MetricWriter) -> dict[str, float]:
        """Samples the student with the given parameters, and writes and measures the samples.

        Args:
          params: the student's parameters.
          step: step of the training.
          writer: writer that gets the sheets, as `samples/BUCKET/STEPS`.

        Returns:
          metrics by name, `preview/METRIC/STEPS`.
        """
        # Uses another thread because extractors and decoders must run without the mesh that
        # training has set, which only applies to its own thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._look, params, step, writer).result()

    def _look(self, params: Params, step: int, writer: MetricWriter) -> dict[str, float]:
        values = {}
        for steps, sampling in self._samplings.items():
            spreads = []
            for bucket, subjects in self._subjects.items():
                latents = self._sample(params, sampling, bucket, subjects.cond)
                rows = len(dict.fromkeys(subjects.prompts.tolist()))
                grid = latents.reshape(rows, -1, *latents.shape[1:])
                spreads.append(np.mean(np.std(grid, axis=1)))
                if jax.process_index() == 0:
                    picture = sheet(list(self._show(latents)), grid.shape[1], _SIDE)
                    writer.image(step, f"samples/{bucket.name}/{steps}", picture)
                    save_preview(self._folder, step, steps, bucket.name, picture)
            # Near zero if the student makes the same picture of a prompt whatever the noise.
            values[f"preview/seed_spread/{steps}"] = float(np.mean(spreads))
        if self._quick is not None:
            ways = {
                steps: lambda bucket, cond, sampling=sampling: self._sample(
                    params, sampling, bucket, cond
                )
                for steps, sampling in self._samplings.items()
            }
            values |= self._quick(ways)
        return values

    def _sample(
        self, params: Params, sampling: Sampling, bucket: Bucket, cond: dict[str, Any]
    ) -> np.ndarray:
        """One sample for each row of cond; the noise only depends on the row's index."""
        count = len(next(iter(cond.values())))
        noise = seeds(self._seed, bucket.height, bucket.width, np.arange(count))
        return self._sampler(params, noise, cond, self._shape[bucket], sampling)


def _spread(buckets: Sequence[Bucket]) -> list[Bucket]:
    """A few of the buckets: if there are many, the widest, one in the middle, and the tallest."""
    if len(buckets) <= _BUCKETS:
        return list(buckets)
    by_aspect = sorted(buckets, key=lambda bucket: bucket.height / bucket.width)
    return [by_aspect[i * (len(buckets) - 1) // (_BUCKETS - 1)] for i in range(_BUCKETS)]


def show_latents(config: Config, decode: bool) -> Show:
    """A function that turns a run's latents into pictures.

    Args:
      config: the run's config.
      decode: whether to use the run's autoencoder instead of its family's linear map to colours.
        It makes no difference if latents are pixels.

    Raises:
      NotFoundError: latents should be decoded and the autoencoder is not there.
    """
    if config.autoencoder and not decode:
        return family_of(config).preview
    return decoding(config) or (lambda latents: latents)


def _has_pictures(config: Config) -> bool:
    """Whether there are pictures for an extractor: latents are pixels, or worth decoding."""
    return not config.autoencoder or bool(config.evaluate.extractor_weights)
