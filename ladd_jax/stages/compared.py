"""Networks that are compared by eye, and the prompts that they share.

Networks that edit pictures, or fill holes in them, are all given the same pictures: those that come
with the prompts of a run's held-out records.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from ladd_jax.config.workdir import read
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.joined import JOINED, PICTURED
from ladd_jax.data.prompt_sets import read_prompt_set
from ladd_jax.data.shard_sets import is_complete
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.sampling import Sampling
from ladd_jax.errors import UserError
from ladd_jax.paths import expand
from ladd_jax.stages.conditions import Conditions, Values, check_known, conditions_of
from ladd_jax.stages.given_records import GivenRecord, given_records
from ladd_jax.stages.judging import first_subjects
from ladd_jax.stages.pictured import Pictured
from ladd_jax.stages.sample import choose_bucket
from ladd_jax.stages.sets import held_out, shards_of
from ladd_jax.stages.trained import TrainedModel, is_run, open_trained

_LOG = logging.getLogger(__name__)

STUDENT_STEPS, TEACHER_STEPS = (1, 2, 4), 50
"""Numbers of steps to show if a student can use them, besides the largest that it has."""

# The most prompts of held-out records, as many as a person looks through in one sitting, and the
# number of records that are searched for them.
_HELD_OUT, _RECORDS = 24, 1024


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which pictures to show.

    Attributes:
      prompts: the prompts, which must be those of held-out records if models are given pictures;
        None for the prompts that come with the models.
      steps: numbers of steps of a student; empty for those of `STUDENT_STEPS` that it was trained
        for.
      teacher_steps: number of steps of a data generator; 0 leaves the teachers of runs out.
      seed: seed of the first picture of each prompt.
      num: number of pictures of each prompt.
      aspect: aspect or size of the pictures, see `choose_bucket`.
      batch_size: pictures sampled at once.
      conditions: names and values of conditions, for all prompts, for each, or several for one.
    """

    prompts: list[str] | None = None
    steps: tuple[int, ...] = ()
    teacher_steps: int = TEACHER_STEPS
    seed: int = 0
    num: int = 1
    aspect: str = "1:1"
    batch_size: int = 1
    conditions: Sequence[Values] = ((),)


class Network(NamedTuple):
    """A network to sample, and how.

    Attributes:
      trained: the network.
      bucket: shape of the latents.
      ways: pairs of a number of steps and how to sample in that many.
      teacher: whether it is the teacher of the student that was named.
      workdir: workdir of the run that it belongs to, if any.
      conditions: values of its conditions for all prompts; None for their defaults.
    """

    trained: TrainedModel
    bucket: Bucket
    ways: list[tuple[int, Sampling]]
    teacher: bool
    workdir: Path | None
    conditions: Conditions | None = None


Models = Mapping[str, Pictured | list[Network]]
"""Folders of pictures, or networks, by the names of the compared models."""


def open_networks(place: str, asked: Asked, mesh: Mesh) -> list[Network]:
    """The network that a path names and, if that is a run's, the run's teacher too."""
    trained = open_trained(place, None, None, None, mesh)
    workdir = expand(place) if is_run(expand(place)) else None
    bucket = choose_bucket(asked.aspect, trained)
    if trained.times:
        most = len(trained.times)
        # Students with another sampler were trained for a single number of steps.
        usual = STUDENT_STEPS if trained.sampler == "consistency" else ()
        steps = asked.steps or sorted({most, *(n for n in usual if most % n == 0)})
        ways = [(n, trained.sampling(n, None, None)) for n in steps]
        # Padding to one length lets one program serve all numbers of steps. The added steps go from
        # level 0 to level 0 and change nothing.
        length = max(len(sampling.sigmas) for _, sampling in ways)
        ways = [(n, sampling.padded(length)) for n, sampling in ways]
    else:
        ways = [_guided(trained, asked.teacher_steps or TEACHER_STEPS)]
    found = [Network(trained, bucket, ways, False, workdir)]
    if workdir is not None and asked.teacher_steps:
        teacher = open_trained(place, "generator", None, None, mesh)
        # Shares the student's autoencoder, to keep only one in memory.
        teacher = dataclasses.replace(teacher, pictures=trained.pictures)
        ways = [_guided(teacher, asked.teacher_steps)]
        found.append(Network(teacher, bucket, ways, True, workdir))
    return found


def _guided(trained: TrainedModel, steps: int) -> tuple[int, Sampling]:
    return steps, trained.sampling(steps, None, None)


def prompts_of(
    models: Sequence[Pictured | list[Network]], asked: Sequence[str] | None
) -> tuple[list[str], list[GivenRecord]]:
    """The prompts that were asked for, or else those that all folders share, or else a run's.

    Args:
      models: folders of pictures, and networks.
      asked: prompts; None for those that come with the models.

    Returns:
      the prompts, each once, and for networks that are given pictures the record of each prompt.

    Raises:
      UserError: there are no prompts, or no pictures that come with them; or networks take
        different inputs.
    """
    networks = [network for own in models if isinstance(own, list) for network in own]
    wanted = _wanted([own for own in models if isinstance(own, Pictured)], asked)
    if _read_pictures(networks):
        records = _records(networks, wanted)
        return [record.prompt for record in records], records
    return _of_runs(networks) if wanted is None else wanted, []


def _read_pictures(networks: Sequence[Network]) -> bool:
    """Whether all networks are given pictures besides prompts.

    Raises:
      UserError: two of them take different inputs.
    """
    for other in networks:
        first, second = networks[0].trained, other.trained
        if first.joined != second.joined and {first.joined, second.joined} & {*PICTURED}:
            words = [JOINED[each.joined].words for each in (first, second)]
            raise UserError(
                f"{first.place} is given {words[0]} and {second.place} {words[1]}: compare models "
                f"that are given the same"
            )
    return bool(networks) and networks[0].trained.reads_picture


def with_conditions(models: Models, given: Sequence[Mapping[str, str]]) -> Models:
    """The models, whose networks are given values; each leaves out what it does not read.

    Args:
      models: the models.
      given: values for each prompt, by the names of conditions.

    Raises:
      NotFoundError: a file is missing.
      UserError: no network reads a condition that is given, or a value is missing or cannot be
        used.
    """
    read = {
        name: [conditions_of(network.trained, network.bucket) for network in own]
        for name, own in models.items()
        if isinstance(own, list)
    }
    known = dict.fromkeys(name for own in read.values() for names in own for name in names)
    check_known(given, known, "a compared model")

    def with_own(network: Network, names: Collection[str]) -> Network:
        values = [{name: value for name, value in each.items() if name in names} for each in given]
        return network._replace(conditions=Conditions(network.trained, network.bucket, values))

    return {
        name: own if isinstance(own, Pictured) else list(map(with_own, own, read[name]))
        for name, own in models.items()
    }


def _wanted(folders: Sequence[Pictured], asked: Sequence[str] | None) -> list[str] | None:
    """The prompts that were asked for, or those that all folders share; None without both."""
    if asked is not None:
        return list(dict.fromkeys(asked))
    if not folders:
        return None
    found = [p for p in folders[0].prompts if all(p in other.prompts for other in folders)]
    if not found:
        raise UserError(
            "the folders of pictures have no prompt in common: give pictures of the same prompts"
        )
    return found


def _of_runs(networks: Sequence[Network]) -> list[str]:
    """The prompts that the first run is judged on, from its config or its held-out records."""
    for network in networks:
        if network.workdir is None:
            continue
        if named := read(network.workdir).evaluate.prompts:
            return list(dict.fromkeys(read_prompt_set(named)))
        if (shards := _held_out(network)) is not None:
            found = first_subjects(shards, network.bucket, _HELD_OUT, _RECORDS)
            return list(map(str, found.prompts))
    raise UserError("there are no prompts: give --prompts=FILE")


def _records(networks: Sequence[Network], wanted: Sequence[str] | None) -> list[GivenRecord]:
    """Prompts of the first run's held-out records, with their pictures.

    Records whose hole is cropped away in some network's bucket are left out, with a warning.

    Args:
      networks: all networks, each of which is given pictures.
      wanted: the prompts to take; None for the first ones.

    Raises:
      UserError: no run has held-out records, a wanted prompt is not in any of them, or the holes of
        all are cropped away.
    """
    for network in networks:
        shards = _held_out(network)
        if network.workdir is None or shards is None:
            continue
        found = given_records(
            read(network.workdir),
            shards,
            network.bucket,
            network.trained.pictures,
            _HELD_OUT if wanted is None else len(wanted),
            _RECORDS,
            wanted,
        )
        known = {record.prompt: record for record in found}
        for prompt in wanted or ():
            if prompt not in known:
                raise UserError(
                    f"none of the first {_RECORDS} held-out records of {network.workdir}, which "
                    f"the pictures come from, has the prompt {prompt[:60]!r}: name prompts of "
                    f"these records by --prompts=FILE, or leave it out"
                )
        chosen = [known[prompt] for prompt in wanted or known]
        if kept := [record for record in chosen if _is_seen(record, networks)]:
            return kept
        raise UserError(
            f"the holes of all held-out records of {network.workdir} are outside of the crop of "
            f"some model's bucket: choose another --aspect, or compare models of the same buckets"
        )
    trained, bucket = networks[0].trained, networks[0].bucket
    raise UserError(
        f"{trained.place} is given {JOINED[trained.joined].words}, and no run in the comparison "
        f"has held-out records of {bucket.name} to take these from: compare a run that has them"
    )


def _is_seen(record: GivenRecord, networks: Sequence[Network]) -> bool:
    """Whether a record's hole is inside each network's bucket; warns if it is not."""
    for network in networks:
        if not record.has_hole(network.trained.pictures, network.bucket):
            _LOG.warning(
                "compare: leaving out the held-out record of %r: its hole is outside the crop of "
                "bucket %s of %s",
                record.prompt[:60],
                network.bucket.name,
                network.trained.place,
            )
            return False
    return True


def _held_out(network: Network) -> Shards | None:
    """The held-out records of a network's run; None if it has none of the network's bucket."""
    if network.workdir is None or not is_complete(held_out(network.workdir)):
        return None
    shards = shards_of(read(network.workdir), network.workdir, "held_out")
    return shards if shards.sizes.get(network.bucket) else None
