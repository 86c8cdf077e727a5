"""Models side by side: the same prompts and seeds of each, in several numbers of steps."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ladd_jax.config.workdir import read
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import to_bytes
from ladd_jax.data.prompt_sets import read_prompt_set
from ladd_jax.data.shard_sets import is_complete
from ladd_jax.diffusion.sampling import Sampling
from ladd_jax.errors import UserError
from ladd_jax.evaluation.arena.entries import Entry
from ladd_jax.evaluation.arena.page import Album, Contender, Sample, Shown, new_page, write_page
from ladd_jax.paths import expand
from ladd_jax.stages.judging import subjects_of
from ladd_jax.stages.kept import fingerprint
from ladd_jax.stages.pictured import Pictured
from ladd_jax.stages.prompted import Picture, Prompted
from ladd_jax.stages.sample import choose_bucket
from ladd_jax.stages.sets import held_out, shards_of
from ladd_jax.stages.starts import read_start
from ladd_jax.stages.trained import TrainedModel, check_text_alone, is_run, open_trained
from ladd_jax.weights.source import PIPELINE_INDEX

_LOG = logging.getLogger(__name__)

STUDENT_STEPS, TEACHER_STEPS = (1, 2, 4), 50
"""Numbers of steps of which those are shown that a model has, a student's own beside them."""

# Prompts of held-out records, at most, which a person looks through at a sitting; and the records
# among which they are looked for.
_HELD_OUT, _RECORDS = 24, 1024


@dataclasses.dataclass(frozen=True)
class Asked:
    """What pictures to show.

    Attributes:
      prompts: prompts; None for those that the models have themselves.
      steps: numbers of a student's steps; empty for those of `STUDENT_STEPS` that it was trained
        for.
      teacher_steps: of a data generator; 0 leaves the teachers of runs out.
      seed: seed of the first picture of each prompt.
      num: pictures of each prompt.
      aspect: see `choose_bucket`.
      batch_size: pictures sampled at once.
    """

    prompts: list[str] | None = None
    steps: tuple[int, ...] = ()
    teacher_steps: int = TEACHER_STEPS
    seed: int = 0
    num: int = 1
    aspect: str = "1:1"
    batch_size: int = 1


class _Network(NamedTuple):
    """A network to sample, and how.

    Attributes:
      trained: the network.
      bucket: shape of the latents.
      ways: numbers of steps, and how to sample in so many.
      teacher: whether it is the teacher of the student that was named.
      workdir: of the run that has it, if one does.
    """

    trained: TrainedModel
    bucket: Bucket
    ways: list[tuple[int, Sampling]]
    teacher: bool
    workdir: Path | None


def compare(entries: Sequence[Entry], page: Path, asked: Asked, mesh: Mesh) -> dict[str, Any]:
    """Writes the page's folder, whole or not at all.

    Args:
      entries: the models.
      page: the folder to make.
      asked: what pictures.
      mesh: where networks run.

    Returns:
      the page's data, see `write_page`.

    Raises:
      NotFoundError: there is no such model.
      ExistsError: there is something at `page`.
      UserError: there are no prompts, a folder lacks a picture of one, or a student was not trained
        for such steps.
    """
    found: dict[str, Pictured | list[_Network]] = {}
    for entry in entries:
        path = expand(entry.place)
        if path.is_dir() and not is_run(path) and not (path / PIPELINE_INDEX).is_file():
            found[entry.name] = Pictured(path, asked.prompts)
        else:
            found[entry.name] = _networks(entry.place, asked, mesh)
    prompts = _prompts(list(found.values()), asked)
    samples = [Sample(p, asked.seed + i) for p in prompts for i in range(asked.num)]
    files = {
        name: {steps: [own.find(s, steps, asked.seed) for s in samples] for steps in own.steps}
        for name, own in found.items()
        if isinstance(own, Pictured)
    }
    counts = [
        sum(len(network.ways) for network in own) if isinstance(own, list) else len(own.steps)
        for own in found.values()
    ]
    models: dict[str, Sequence[Contender]] = {}
    made: dict[str, list[Shown]] = {}
    total = sum(counts) * len(samples)
    with new_page(page) as folder, tqdm(total=total, desc="compare", unit="img") as bar:
        album = Album(folder)

        def add(pixels: Any) -> Shown:
            bar.update()
            return album.add(pixels)

        for name, own in found.items():
            _LOG.info("compare: %s", name)
            if isinstance(own, Pictured):
                models[name] = [
                    Contender(steps, False, [add(read_start(file)) for file in chosen])
                    for steps, chosen in files[name].items()
                ]
            else:
                models[name] = [
                    contender
                    for network in own
                    for contender in _sampled(network, samples, asked.batch_size, mesh, add, made)
                ]
        return write_page(folder, samples, models)


def _networks(place: str, asked: Asked, mesh: Mesh) -> list[_Network]:
    """The student or other network that a path names, and the teacher of a run's."""
    trained = open_trained(place, None, None, None, mesh)
    check_text_alone(trained, "ladd_jax.evaluate --compare")
    workdir = expand(place) if is_run(expand(place)) else None
    bucket = choose_bucket(asked.aspect, trained)
    if trained.times:
        most = len(trained.times)
        # What Euler samples was trained for one number of steps alone.
        usual = () if trained.sampler == "euler" else STUDENT_STEPS
        steps = asked.steps or sorted({most, *(n for n in usual if most % n == 0)})
        ways = [(n, trained.sampling(n, None, None)) for n in steps]
        # One program for all numbers: a step to a level of 0 from there changes nothing.
        length = max(len(sampling.sigmas) for _, sampling in ways)
        ways = [(n, sampling.padded(length)) for n, sampling in ways]
    else:
        ways = [_guided(trained, asked.teacher_steps or TEACHER_STEPS)]
    found = [_Network(trained, bucket, ways, False, workdir)]
    if workdir is not None and asked.teacher_steps:
        teacher = open_trained(place, "generator", None, None, mesh)
        # One copy of the autoencoder is enough.
        teacher = dataclasses.replace(teacher, pictures=trained.pictures)
        ways = [_guided(teacher, asked.teacher_steps)]
        found.append(_Network(teacher, bucket, ways, True, workdir))
    return found


def _guided(trained: TrainedModel, steps: int) -> tuple[int, Sampling]:
    return steps, trained.sampling(steps, None, None)


def _sampled(
    network: _Network,
    samples: Sequence[Sample],
    batch_size: int,
    mesh: Mesh,
    add: Callable[[Any], Shown],
    made: dict[str, list[Shown]],
) -> list[Contender]:
    """The contenders of a network; a teacher that several students have is sampled once.

    Args:
      network: the network.
      samples: what to sample.
      batch_size: pictures at once.
      mesh: where it runs.
      add: keeps a picture.
      made: what teachers have made, by what it depends on; is added to.
    """
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))
    places = {prompt: place for place, prompt in enumerate(prompts)}
    jobs = [Picture(places[prompt], seed) for prompt, seed in samples]
    prompted = Prompted(network.trained, prompts, mesh, batch_size)
    found = []
    for steps, sampling in network.ways:

        def make(sampling: Sampling = sampling) -> list[Shown]:
            pictures = prompted.pictures(sampling, network.bucket, jobs)
            return [add(to_bytes(picture)) for _, picture in pictures]

        if network.teacher and network.workdir is not None:
            texts = np.array([f"{sample.seed} {sample.prompt}" for sample in samples])
            own = {network.bucket: texts}
            mark = fingerprint(read(network.workdir), own, prompted.params, mesh)
            mark = f"{mark} {sampling}"
            if mark not in made:
                made[mark] = make()
            pictures = made[mark]
        else:
            pictures = make()
        found.append(Contender(steps, network.teacher, pictures))
    return found


def _prompts(models: Sequence[Pictured | list[_Network]], asked: Asked) -> list[str]:
    """The prompts that were asked for; or those that all folders have; or those of a run."""
    if asked.prompts is not None:
        return list(dict.fromkeys(asked.prompts))
    folders = [model for model in models if isinstance(model, Pictured)]
    if folders:
        found = [p for p in folders[0].prompts if all(p in other.prompts for other in folders)]
        if not found:
            raise UserError(
                "the folders of pictures have no prompt in common: give pictures of the same ones"
            )
        return found
    for model in models:
        for network in model if isinstance(model, list) else ():
            if network.workdir is not None:
                found = _of_run(network.workdir, network.bucket)
                if found:
                    return found
    raise UserError("there are no prompts: give --prompts=FILE")


def _of_run(workdir: Path, bucket: Bucket) -> list[str]:
    """Prompts that a run is judged on: those of its config, or of its first held-out records."""
    config = read(workdir)
    if config.evaluate.prompts:
        return list(dict.fromkeys(read_prompt_set(config.evaluate.prompts)))
    if not is_complete(held_out(workdir)):
        return []
    shards = shards_of(config, workdir, "held_out")
    if not shards.sizes.get(bucket):
        return []
    found = subjects_of(shards, bucket, _HELD_OUT, 1, _RECORDS).prompts
    return list(dict.fromkeys(map(str, found)))
