"""Models side by side: the same prompts and seeds of each, in several numbers of steps."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ladd_jax.config.workdir import read
from ladd_jax.data.images import to_bytes
from ladd_jax.diffusion.sampling import Sampling
from ladd_jax.evaluation.arena.entries import Entry
from ladd_jax.evaluation.arena.page import (
    GIVEN,
    Album,
    Contender,
    Sample,
    Shown,
    new_page,
    write_page,
)
from ladd_jax.paths import expand
from ladd_jax.stages.compared import Asked, Network, open_networks, prompts_of
from ladd_jax.stages.given import GivenFiles, open_given
from ladd_jax.stages.given_records import write_given
from ladd_jax.stages.kept import fingerprint
from ladd_jax.stages.pictured import Pictured
from ladd_jax.stages.prompted import Picture, Prompted, check_count
from ladd_jax.stages.starts import read_start
from ladd_jax.stages.trained import is_run
from ladd_jax.weights.source import PIPELINE_INDEX

_LOG = logging.getLogger(__name__)


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
      UserError: there are no prompts, or no pictures for models that are given some; models are
        given different things; a folder lacks a picture; or a student was not trained for such
        steps.
    """
    found: dict[str, Pictured | list[Network]] = {}
    for entry in entries:
        path = expand(entry.place)
        if path.is_dir() and not is_run(path) and not (path / PIPELINE_INDEX).is_file():
            found[entry.name] = Pictured(path, asked.prompts)
        else:
            found[entry.name] = open_networks(entry.place, asked, mesh)
    prompts, records = prompts_of(list(found.values()), asked.prompts)
    check_count(len(prompts), asked.num)
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
        given = write_given(folder / GIVEN, records)
        sources = [album.add(record.shown) for record in records for _ in range(asked.num)]

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
                    for contender in _sampled(
                        network, samples, given, asked.batch_size, mesh, add, made
                    )
                ]
        return write_page(folder, samples, models, sources)


def _sampled(
    network: Network,
    samples: Sequence[Sample],
    given: Sequence[GivenFiles],
    batch_size: int,
    mesh: Mesh,
    add: Callable[[Any], Shown],
    made: dict[str, list[Shown]],
) -> list[Contender]:
    """The contenders of a network; a teacher that several students have is sampled once.

    Args:
      network: the network.
      samples: what to sample.
      given: the pictures that their prompts come with, one for each; empty where none do.
      batch_size: pictures at once.
      mesh: where it runs.
      add: keeps a picture.
      made: what teachers have made, by what it depends on; is added to.
    """
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))
    places = {prompt: place for place, prompt in enumerate(prompts)}
    jobs = [Picture(places[prompt], seed) for prompt, seed in samples]
    opened = open_given(network.trained, network.bucket, given)
    prompted = Prompted(network.trained, prompts, mesh, batch_size)
    found = []
    for steps, sampling in network.ways:

        def make(sampling: Sampling = sampling) -> list[Shown]:
            pictures = prompted.pictures(sampling, network.bucket, jobs, opened)
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
