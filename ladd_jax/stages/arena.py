"""Models side by side: all with the same prompts and seeds, in several numbers of steps."""

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
from ladd_jax.stages.compared import (
    Asked,
    Models,
    Network,
    open_networks,
    prompts_of,
    with_conditions,
)
from ladd_jax.stages.conditions import in_words
from ladd_jax.stages.given import GivenFiles, open_given
from ladd_jax.stages.given_records import write_given
from ladd_jax.stages.kept import fingerprint
from ladd_jax.stages.pictured import Pictured
from ladd_jax.stages.prompted import Picture, Prompted, check_count
from ladd_jax.stages.starts import pair, read_start
from ladd_jax.stages.trained import is_run
from ladd_jax.weights.source import PIPELINE_INDEX

_LOG = logging.getLogger(__name__)


def compare(entries: Sequence[Entry], page: Path, asked: Asked, mesh: Mesh) -> dict[str, Any]:
    """Writes the page's folder, complete or not at all.

    Args:
      entries: the models.
      page: the folder to make.
      asked: which pictures to show.
      mesh: mesh that networks run on.

    Returns:
      the page's data, see `write_page`.

    Raises:
      NotFoundError: there is no such model.
      ExistsError: there is something at `page`.
      UserError: there are no prompts, or no pictures for models that take some; models take
        different inputs; no model reads a condition, or a value of it is missing or cannot be used;
        a picture is missing from a folder; or a student was not trained for the number of steps.
    """
    opened: dict[str, Pictured | list[Network]] = {}
    for entry in entries:
        path = expand(entry.place)
        if path.is_dir() and not is_run(path) and not (path / PIPELINE_INDEX).is_file():
            opened[entry.name] = Pictured(path, asked.prompts)
        else:
            opened[entry.name] = open_networks(entry.place, asked, mesh)
    texts, records = prompts_of(list(opened.values()), asked.prompts)
    places, values = pair(range(len(texts)), asked.conditions, "values of --condition")
    prompts = [texts[place] for place in places]
    check_count(len(prompts), asked.num)
    found: Models = with_conditions(opened, [dict(pairs) for pairs in values])
    jobs = [Picture(p, asked.seed + i) for p in range(len(prompts)) for i in range(asked.num)]
    words = in_words(values)
    samples = [Sample(prompts[p], seed, words[p]) for p, seed in jobs]
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
        written = write_given(folder / GIVEN, records)
        given = [written[place] for place in places] if records else []
        sources = [album.add(records[places[p]].shown) for p, _ in jobs] if records else []

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
                        network, prompts, jobs, given, asked.batch_size, mesh, add, made
                    )
                ]
        return write_page(folder, samples, models, sources)


def _sampled(
    network: Network,
    prompts: Sequence[str],
    jobs: Sequence[Picture],
    given: Sequence[GivenFiles],
    batch_size: int,
    mesh: Mesh,
    add: Callable[[Any], Shown],
    made: dict[str, list[Shown]],
) -> list[Contender]:
    """The contenders of a network; a teacher that several students share is sampled once.

    Args:
      network: the network.
      prompts: the prompts, those with several conditions several times.
      jobs: the pictures to make.
      given: the picture that comes with each prompt; empty if prompts come without.
      batch_size: pictures sampled at once.
      mesh: mesh that it runs on.
      add: stores a picture of the page.
      made: cache of the teachers' pictures, by a key of what they depend on; is added to.
    """
    opened = open_given(network.trained, network.bucket, given)
    prompted = Prompted(network.trained, prompts, mesh, batch_size)
    found = []
    for steps, sampling in network.ways:

        def make(sampling: Sampling = sampling) -> list[Shown]:
            pictures = prompted.pictures(sampling, network.bucket, jobs, opened, network.conditions)
            return [add(to_bytes(picture)) for _, picture in pictures]

        if network.teacher and network.workdir is not None:
            texts = np.array([f"{job.seed} {prompts[job.prompt]}" for job in jobs])
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
