"""How a run's pictures are judged: which pictures, and by which extractor."""

import functools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.sampling import Sampler, Sampling, seeds
from ladd_jax.evaluation.extractors import EXTRACTORS, Given, extractor_for, open_extractor
from ladd_jax.evaluation.extractors.base import EditExtractor, Extractor
from ladd_jax.evaluation.metrics.edits import errors as edit_errors
from ladd_jax.evaluation.pictures import averaged_down
from ladd_jax.evaluation.seen import Seen, grid_of_pixels
from ladd_jax.models.base import CHANNELS, Params
from ladd_jax.models.families import family_of
from ladd_jax.stages.holes import Holes, completed, errors
from ladd_jax.stages.latents import of_autoencoder
from ladd_jax.stages.sets import shards_of
from ladd_jax.stages.subjects import Subject, Subjects

Samples = dict[Bucket, np.ndarray]
"""Latents float32 `[n, H, W, C]` of each bucket."""


class Edits(NamedTuple):
    """What edited pictures are compared with.

    Attributes:
      sources: latents `[n, H, W, C]` of the pictures that were edited.
      truths: latents of the true edits.
    """

    sources: np.ndarray
    truths: np.ndarray


def edits_of(
    config: Config, records: Mapping[Bucket, tuple[Mapping[str, np.ndarray], np.ndarray | None]]
) -> dict[Bucket, Edits] | None:
    """The sources and true edits of records, from their cond and latents; None for other data."""
    if config.data.joined != "edit":
        return None
    return {
        bucket: Edits(cond[CHANNELS], latents)
        for bucket, (cond, latents) in records.items()
        if latents is not None
    }


Show = Callable[[np.ndarray], np.ndarray]
"""Latents `[n, H, W, C]` to pictures `[n, H', W', 1 or 3]` in [-1, 1]."""

# Latents decoded at once: pictures of a released pipeline are large.
_BATCH = 16

# For an extractor that is trained on decoded pictures: their longest side, and the most per bucket.
_SIDE, _LEARNT = 64, 2048


# Most bytes of decoded originals to keep in memory, over all buckets; the rest are decoded again.
_ORIGINALS = 2**32


# The last extractor that this process opened. The previews of a training and the evaluation after
# it use the same one, and training an extractor takes longer than using it.
_OPENED: dict[tuple[Any, ...], Extractor] = {}


def decoding(config: Config) -> Show | None:
    """The autoencoder's decoder; None where latents are pictures.

    Raises:
      NotFoundError: the autoencoder is not there.
    """
    if not config.autoencoder:
        return None
    decode = of_autoencoder(family_of(config), config.autoencoder).decode
    return lambda latents: np.stack([decode(latent) for latent in latents])


def open_judge(config: Config, workdir: Path, mesh: Mesh, show: Show | None = None) -> Extractor:
    """The extractor that a config names, or the one of its source, or the run's own.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      mesh: mesh that networks run on.
      show: decodes latents to pictures; None if they are pictures already.

    Raises:
      UserError: its weights are missing or damaged, or there is nothing to train it on.
    """
    stage = config.evaluate
    name = extractor_for(config)
    wanted = (name, stage.extractor_weights, config.seed, workdir.resolve(), show is None)
    if wanted not in _OPENED:
        given = Given(
            stage.extractor_weights,
            functools.partial(training_pictures, config, workdir, show),
            config.seed,
            mesh,
        )
        _OPENED.clear()
        _OPENED[wanted] = open_extractor(name, given)
    extractor = _OPENED[wanted]
    return _Small(extractor) if show is not None and EXTRACTORS[name].learns else extractor


class _Small:
    """Scales pictures down for an extractor that was trained on small ones."""

    def __init__(self, extractor: Extractor):
        self._extractor = extractor

    def look(
        self, images: np.ndarray, prompts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Extractor`."""
        return self._extractor.look(averaged_down(images, _SIDE), prompts)


class Originals:
    """A cache of the pictures that several sets of samples are compared with, and their features.

    Features of each are computed once; pictures are decoded once as far as they fit into memory.
    """

    def __init__(self) -> None:
        self._pictures: dict[Hashable, np.ndarray] = {}
        self._features: dict[Hashable, np.ndarray] = {}
        self._left = _ORIGINALS

    def pictures(self, place: Hashable, latents: np.ndarray, show: Show | None) -> np.ndarray:
        """Pictures of latents.

        Args:
          place: key that identifies these latents.
          latents: the latents.
          show: decodes latents to pictures; None if they are pictures already.
        """
        if place in self._pictures:
            return self._pictures[place]
        pictures = as_pictures(latents, show)
        if show is not None and pictures.nbytes <= self._left:
            self._left -= pictures.nbytes
            self._pictures[place] = pictures
        return pictures

    def features(self, place: Hashable, look: Callable[[], tuple[np.ndarray, Any]]) -> np.ndarray:
        """The features that `look` returns; it is only called once for each place."""
        if place not in self._features:
            self._features[place] = look()[0]
        return self._features[place]


def look_at(
    extractor: Extractor,
    samples: Samples,
    prompts: Mapping[Bucket, np.ndarray],
    show: Show | None = None,
    holes: Mapping[Bucket, Holes] | None = None,
    edits: Mapping[Bucket, Edits] | None = None,
    originals: Originals | None = None,
) -> list[Seen]:
    """An extractor's output for samples, one `Seen` for each bucket.

    Latents that are not pictures are decoded by `show`, a few at a time, and only a grid of pixels
    is kept of each, since whole pictures would fill the memory. Samples that fill `holes` are
    looked at as completed pictures. Samples that are `edits` are looked at together with their
    sources; an extractor that cannot do so gives no alignment, since without the source it cannot
    tell how well they follow their instructions. Calls with the same extractor, holes and edits may
    share `originals`.
    """
    seen = []
    kept = Originals() if originals is None else originals
    for bucket, latents in samples.items():
        texts, own = prompts[bucket], (holes or {}).get(bucket)
        edit = (edits or {}).get(bucket)
        size = len(latents) if show is None else _BATCH
        parts = []
        for start in range(0, len(latents), size):
            part = slice(start, start + size)
            pictures, words = as_pictures(latents[part], show), list(texts[part])
            off: dict[str, np.ndarray] = {}
            if own is not None:
                wholes = kept.pictures((bucket, start, "whole"), own.latents[part], show)
                off = errors(pictures, wholes, own.masks[part])
                pictures = completed(pictures, wholes, own.masks[part])
            if edit is None:
                features, alignment = extractor.look(pictures, words)
            else:
                sources, truths = (
                    kept.pictures((bucket, start, name), each[part], show)
                    for name, each in edit._asdict().items()
                )
                off = edit_errors(pictures, sources, truths)
                if isinstance(extractor, EditExtractor):
                    features, alignment = extractor.look_at_edits(pictures, words, sources)
                else:
                    features, alignment = extractor.look(pictures, words)[0], None
            if own is not None:
                look = functools.partial(extractor.look, wholes, words)
                moved = features - kept.features((bucket, start), look)
                off["distance"] = np.sqrt(np.sum(np.square(moved), axis=(1, 2)))
            images = pictures if show is None else grid_of_pixels(pictures)
            parts.append((images, features, alignment, off))
        images, features = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        alignment = None if parts[0][2] is None else np.concatenate([part[2] for part in parts])
        together = {name: np.concatenate([part[3][name] for part in parts]) for name in parts[0][3]}
        identity = np.arange(len(images))
        seen.append(Seen(images, texts, features, alignment, identity, together))
    return seen


def as_pictures(latents: np.ndarray, show: Show | None) -> np.ndarray:
    """Latents decoded to pictures by `show`; without it, latents are pictures already."""
    return latents if show is None else show(latents)


def samples_of(
    subject: Subject,
    sampler: Sampler,
    params: Params,
    sampling: Sampling,
    seed: int,
    channels: int,
    progress: Callable[[int], Any] = lambda done: None,
) -> Samples:
    """One sample for each subject of every bucket; calls with the same seed use the same noise.

    Args:
      subject: what a run is judged on.
      sampler: the network's sampler.
      params: the network's parameters.
      sampling: how to sample.
      seed: seed of the noise.
      channels: number of channels of a latent.
      progress: called after each batch with the number of samples done.
    """
    samples = {}
    for bucket, (prompts, cond, _) in subject.buckets.items():
        noise = seeds(seed, bucket.height, bucket.width, np.arange(len(prompts)))
        shape = bucket.height, bucket.width, channels
        samples[bucket] = sampler(params, noise, cond, shape, sampling, progress)
    return samples


def subjects_of(
    shards: Shards, bucket: Bucket, samples: int, per_prompt: int, records: int | None = None
) -> Subjects:
    """The first prompts of a bucket, each repeated for the same number of samples.

    Args:
      shards: the set that the prompts are from.
      bucket: one of its buckets.
      samples: largest number of samples; there are fewer if it is not a multiple of the number of
        prompts.
      per_prompt: least number of samples of a prompt.
      records: number of records to search, from the first on; default: all.
    """
    found = first_subjects(shards, bucket, max(1, samples // per_prompt), records)
    times = max(1, samples // len(found.prompts))
    cond = {name: np.repeat(array, times, axis=0) for name, array in found.cond.items()}
    return Subjects(np.repeat(found.prompts, times), cond)


def first_subjects(
    shards: Shards,
    bucket: Bucket,
    count: int,
    records: int | None = None,
    wanted: Collection[str] | None = None,
) -> Subjects:
    """The first prompts of a bucket, each once, with the data of the first record of each.

    Args:
      shards: the set that the prompts are from.
      bucket: one of its buckets.
      count: largest number of prompts.
      records: number of records to search, from the first on; default: all.
      wanted: prompts to take, if records have them; default: all.

    Returns:
      n prompts with their cond, and with latents if records are made from a picture too.
    """
    size = shards.sizes[bucket]
    looked_at = np.arange(size if records is None else min(size, records))
    # Prompts are read first without arrays, since the text of a record can have megabytes (SD3).
    prompts = shards.without(shards.arrays).read(bucket, looked_at)["prompt"]
    names, first = np.unique(prompts, return_index=True)
    if wanted is not None:
        first = first[np.isin(names, list(wanted))]
    found = shards.read(bucket, np.sort(first)[:count])
    latents = found[LATENTS] if CHANNELS in found["cond"] else None
    return Subjects(np.array(found["prompt"]), found["cond"], latents)


def pictures_of(
    shards: Shards, counts: Mapping[Bucket, int], seed: int | None = None
) -> tuple[Samples, dict[Bucket, np.ndarray]]:
    """Latents of every bucket and their prompts; buckets without any are left out.

    Args:
      shards: the set of shards.
      counts: largest number of records for each bucket.
      seed: seed to draw records with, without replacement; default: take the first ones.
    """
    images, prompts = {}, {}
    for bucket in shards.buckets:
        size = shards.sizes[bucket]
        count = min(size, counts.get(bucket, 0))
        if not count:
            continue
        places = np.arange(count)
        if seed is not None:
            places = np.sort(np.random.default_rng(seed).choice(size, count, replace=False))
        records = shards.read(bucket, places)
        images[bucket], prompts[bucket] = records[LATENTS], np.array(records["prompt"])
    return images, prompts


def training_pictures(
    config: Config, workdir: Path, show: Show | None
) -> dict[Bucket, tuple[np.ndarray, list[str]]]:
    """Pictures of the training split, or the data generator's samples where the data have none.

    If latents are decoded by `show`, the pictures are scaled down and limited in number.
    """
    shards = shards_of(config, workdir, "encoded")
    if not shards.has_latents:
        shards = shards_of(config, workdir, "synthesized")
    if show is None:
        images, prompts = pictures_of(shards, shards.sizes)
        return {bucket: (images[bucket], list(prompts[bucket])) for bucket in images}
    found = {}
    for bucket, size in shards.sizes.items():
        texts: list[str] = []
        parts = []
        for start in range(0, min(size, _LEARNT), _BATCH):
            records = shards.read(bucket, np.arange(start, min(start + _BATCH, size, _LEARNT)))
            parts.append(averaged_down(show(records[LATENTS]), _SIDE))
            texts += records["prompt"]
        found[bucket] = np.concatenate(parts), texts
    return found
