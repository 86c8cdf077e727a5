"""What samples are made from when a run is judged: the prompts, and how many of each."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ladd_jax.config.architectures import generator_architecture
from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.conditions import CONDITIONS
from ladd_jax.data.prompt_sets import read_prompt_set
from ladd_jax.data.shard_sets import LATENTS, is_complete
from ladd_jax.data.shards import Shards
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.families import Family, family_of
from ladd_jax.stages.conditions import Conditions, Values, check_values, conditions_of, parse
from ladd_jax.stages.encode import report_cut, text_encoder
from ladd_jax.stages.latents import Pictures, pictures_of_run
from ladd_jax.stages.sets import held_out, shards_of, trained_buckets
from ladd_jax.stages.starts import pair

_LOG = logging.getLogger(__name__)

_FIELD = "evaluate.conditions"

# The fewest held-out records of a bucket: distances need sets that have a covariance.
_LEAST = 2

# Records read at once for their prompts, since each comes with its latents.
_PART = 512


class Subjects(NamedTuple):
    """What the samples of a bucket are made from.

    Attributes:
      prompts: the prompt of each sample, str `[n]`, with samples of the same prompt adjacent.
      cond: arrays `[n, ...]` by name.
      latents: latents of the records that they come from, `[n, H, W, C]`, if samples should be
        compared with these; else None.
    """

    prompts: np.ndarray
    cond: dict[str, np.ndarray]
    latents: np.ndarray | None = None


class Subject(NamedTuple):
    """What a run is judged on.

    Attributes:
      buckets: what the samples of each bucket are made from.
      null: arrays of the empty prompt, by name.
      real: held-out real pictures; None if there are none.
    """

    buckets: dict[Bucket, Subjects]
    null: dict[str, np.ndarray]
    real: Shards | None


@dataclasses.dataclass(frozen=True)
class _Networks:
    """What all networks of a run read; a `Reader` that does not need them to be trained."""

    config: Config
    place: str = "the run"

    @property
    def family(self) -> Family:
        return family_of(self.config)

    @property
    def architecture(self) -> Any:
        return generator_architecture(self.config)

    @property
    def joined(self) -> str:
        return self.config.data.joined

    @functools.cached_property
    def pictures(self) -> Pictures:
        return pictures_of_run(self.config, self.family)


def check_conditions(config: Config) -> None:
    """Raises UserError if `evaluate.conditions` is not what the networks of a run read.

    Files are only looked for. Nothing is checked where buckets are chosen for the data.
    """
    values = [dict(pairs) for pairs in parse(config.evaluate.conditions, _FIELD)]
    for bucket in config.data.buckets[:1]:
        check_values(_Networks(config), Bucket.parse(bucket), values, _FIELD)


def pair_conditions(config: Config, prompts: int) -> tuple[list[int], list[Values]]:
    """The places of the prompts in `evaluate.prompts`, paired with `evaluate.conditions`.

    Args:
      config: the run's config.
      prompts: number of the prompts.

    Raises:
      UserError: there are several of both, but not equally many.
    """
    values = parse(config.evaluate.conditions, _FIELD)
    return pair(range(prompts), values, f"values of {_FIELD}")


def subject_of(config: Config, workdir: Path) -> Subject:
    """The prompts of `evaluate.prompts`, or those of the held-out records.

    Raises:
      NotFoundError: the data are not encoded, or the prompts are not there.
      UserError: the prompts are invalid, or no bucket has enough held-out records.
    """
    if config.evaluate.prompts:
        return _written(config, workdir)
    if not is_complete(held_out(workdir)):
        raise NotFoundError(
            f"{workdir} has no held-out records: name a file of prompts by evaluate.prompts, such "
            f"as parti128:PartiPrompts.tsv, or set data.held_out and run the stage 'encode' first"
        )
    held = shards_of(config, workdir, "held_out")
    one_each = bool(config.data.joined or CONDITIONS.keys() & held.cond_arrays.keys())
    found = {}
    for bucket in held.buckets:
        size = held.sizes[bucket]
        if size < _LEAST:
            _LOG.warning(
                "evaluate: bucket %s has %d held-out record%s and needs %d: it is left out",
                bucket.name, size, "s" * (size != 1), _LEAST,
            )  # fmt: skip
            continue
        texts: list[str] = []
        for start in range(0, size, _PART):
            texts += held.read(bucket, np.arange(start, min(start + _PART, size)))["prompt"]

        def read(places: np.ndarray, bucket: Bucket = bucket) -> Subjects:
            records = held.read(bucket, places)
            latents = records[LATENTS] if config.data.joined else None
            return Subjects(np.array(records["prompt"]), records["cond"], latents)

        found[bucket] = _drawn(config, bucket, texts, read, one_each)
    if not found:
        raise UserError(
            f"no bucket has {_LEAST} held-out records: raise data.held_out, which is "
            f"{config.data.held_out:g}, or give more data"
        )
    return Subject(found, held.null, held)


def _written(config: Config, workdir: Path) -> Subject:
    """The prompts of a file, encoded, for each bucket that the run trains on."""
    prompts = read_prompt_set(config.evaluate.prompts)
    rows, values = pair_conditions(config, len(prompts))
    texts = [prompts[row] for row in rows]
    given = [dict(pairs) for pairs in values]
    encoder = text_encoder(config)
    null = {name: array[0] for name, array in encoder.encode([""]).items()}
    shards, networks = shards_of(config, workdir, "encoded"), _Networks(config)
    buckets = trained_buckets(config, workdir)
    own = {asked.array for asked in conditions_of(networks, buckets[0]).values()}
    if others := shards.cond_arrays.keys() - null.keys() - own:
        raise UserError(
            f"the data have {', '.join(sorted(others))} besides text, and the prompts of "
            f"{config.evaluate.prompts} have none: leave evaluate.prompts empty"
        )
    null |= {name: array for name, array in shards.null.items() if name in own}
    marks = [f"{text} {pairs}" for text, pairs in zip(texts, values, strict=True)]
    found = {}
    for bucket in buckets:

        def read(places: np.ndarray, bucket: Bucket = bucket) -> Subjects:
            chosen = [texts[place] for place in places]
            conditions = Conditions(networks, bucket, [given[place] for place in places], _FIELD)
            cond = encoder.encode(chosen) | conditions.arrays(range(len(places)))
            return Subjects(np.array(chosen), cond)

        found[bucket] = _drawn(config, bucket, texts, read, marks=marks)
    report_cut(encoder)
    return Subject(found, null, None)


def _drawn(
    config: Config,
    bucket: Bucket,
    texts: Sequence[str],
    read: Callable[[np.ndarray], Subjects],
    one_each: bool = False,
    marks: Sequence[str] | None = None,
) -> Subjects:
    """The subjects of a bucket, drawn from the prompts of its records.

    Args:
      config: the run's config.
      bucket: the bucket.
      texts: prompts of its records.
      read: gives the subjects at some places of these.
      one_each: whether a sample also depends on more of a record than its prompt, such as a
        picture: every record is a subject of its own then, and the first ones have one sample each.
      marks: texts that tell subjects apart; None: their prompts do.
    """
    stage, rng = config.evaluate, np.random.default_rng((config.seed, bucket.height, bucket.width))
    if one_each:
        places = np.arange(min(len(texts), stage.samples))
    else:
        places = choose(marks or texts, stage.samples, stage.per_prompt, rng)
    different, index = np.unique(places, return_inverse=True)
    found = read(different)
    cond = {name: array[index] for name, array in found.cond.items()}
    latents = None if found.latents is None else found.latents[index]
    return Subjects(np.array(texts)[places], cond, latents)


def choose(
    prompts: Sequence[str], samples: int, per_prompt: int, rng: np.random.Generator
) -> np.ndarray:
    """Which records are sampled, and how often.

    If there are enough samples for all prompts, each prompt gets the same number, so that few
    prompts are balanced. Otherwise records are drawn without replacement, with `per_prompt` samples
    each, so that a prompt is as frequent as among the records.

    Args:
      prompts: the prompt of each record.
      samples: largest number of samples.
      per_prompt: least number of samples of a prompt.
      rng: random generator of the draw.

    Returns:
      indices of records, int `[n]`, with those of the same prompt adjacent.
    """
    texts = np.array(prompts)
    count = max(1, samples // per_prompt)
    _, first, groups = np.unique(texts, return_index=True, return_inverse=True)
    if len(first) <= count:
        return np.repeat(np.sort(first), max(1, samples // len(first)))
    drawn = np.sort(rng.choice(len(texts), count, replace=False))
    return np.repeat(drawn[np.argsort(first[groups[drawn]], kind="stable")], per_prompt)
