"""What a run finds made already: its data, its student, and the run that it begins from.

All of this is looked at before a run writes anything, by its first process alone and without a
library of checkpoints, which makes the folders that it looks for.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.identity import RESULTS, SETS, config_difference, identity
from ladd_jax.config.own import own_beside
from ladd_jax.config.pretraining import NETWORKS, further_trainings, settings_of, stage_of
from ladd_jax.config.workdir import (
    DATA,
    Places,
    check_directory,
    data_directory,
    data_named,
    first_run,
    places,
)
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.contents import contents_of, in_turn, read_contents
from ladd_jax.data.joined import pretrains
from ladd_jax.data.shard_sets import check_complete, is_complete
from ladd_jax.data.sources import Source, is_looked_at, look
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.methods import METHODS
from ladd_jax.object_store import address_of
from ladd_jax.stages.changes import SetPlan, inputs_of, set_change
from ladd_jax.stages.checkpoints import checkpoint_difference
from ladd_jax.stages.load import first_made, preference_file, weights_inputs
from ladd_jax.training.checkpoint import newest_config

# Which stage makes what others read.
_MAKERS = {
    "encoded": "encode",
    "held_out": "encode",
    "synthesized": "synthesize",
    **{name: stage_of(name) for name in NETWORKS},
}


def open_places(config: Config, workdir: Path, data: str, origin: str) -> Places:
    """The places of a run: those that are given, or else those that its workdir keeps.

    Args:
      config: the run's config.
      workdir: the run's workdir, which need not be there.
      data: a directory of data, or a workdir that has some or names one; or empty.
      origin: workdir of a run whose newest student this run is to begin with, on the same data
        where it has none of its own; or empty.

    Raises:
      NotFoundError: there is no such student.
      UserError: the workdir has other data or another student already, or the student that is named
        is of another network or has as many steps as this run asks for.
    """
    check_directory(workdir)
    given = data_named(workdir, data, origin)
    found = dataclasses.replace(places(workdir), data=given)
    own = [name for name in DATA if (workdir / name).exists()]
    if origin:
        found = _begun(config, workdir, found, Path(origin))
    if data:
        check_directory(given, "data")
        if own and given.resolve() != workdir.resolve():
            raise UserError(
                f"{workdir} has data of its own ({own[0]}): leave --data={data} out, or use "
                f"another --workdir"
            )
    return found


_OF_STUDENT = {
    "data": ("joined",),
    "distil": ("objective", "hooked_blocks", "lora"),
    "synthesize": ("guidance_range", "image_guidance_range"),
}
"""Fields of other sections that decide what a student's checkpoint holds, and what it means."""


def _begun(config: Config, workdir: Path, found: Places, origin: Path) -> Places:
    """The places of a run that begins with the student of another."""
    newest = newest_config(origin / "distil" / "checkpoints")
    if newest is None:
        raise NotFoundError(
            f"--from={origin} holds no student: name the --workdir of a run whose stage 'distil' "
            f"has written a checkpoint"
        )
    if newest_config(workdir / "distil" / "checkpoints") is not None:
        if found.origin is not None and found.origin.resolve() == origin.resolve():
            return found
        raise UserError(
            f"{workdir} has a student already, which did not begin with that of {origin}: use "
            f"another --workdir, or leave --from out"
        )
    step, fields = newest
    if step >= config.distil.steps:
        raise UserError(
            f"--from={origin} has a student of {step} steps and distil.steps is "
            f"{config.distil.steps}: raise it above {step}, since steps count on"
        )
    _check_phase(config, origin, step, fields)
    adapters = bool(config.distil.lora.rank)
    sections: tuple[str, ...] = ("model", "student", "teacher", "heads")
    if METHODS[config.distil.objective].in_pixels:
        sections += ("dino",)
    parts = _OF_STUDENT | ({"finetune": ("steps",)} if adapters else {})
    if config.distil.needs_start:
        _check_start(config, found, origin, fields)
    if adapters and not config.finetune.steps:
        # They are of the data generator.
        sections += ("weights", "loras", "pretrain", "prefer")
    old, new = (
        {name: made[name] for name in sections if name in made}
        | {
            section: {name: values[section][name] for name in names if name in values[section]}
            for section, names in parts.items()
        }
        | {"own": own_beside(values, sections)}
        for values, made in (
            (values, values | identity(values, "synthesized")["config"])
            for values in (fields, to_dict(config))
        )
    )
    other = config_difference(old, new)
    if other:
        raise UserError(
            f"--from={origin} has a student of other networks ({other}): set the field back, or "
            f"begin anew without --from"
        )
    for name in further_trainings(config):
        first_made(first_run(origin), name, origin)
    return dataclasses.replace(found, origin=origin, step=step)


def _check_phase(config: Config, origin: Path, step: int, fields: Mapping[str, Any]) -> None:
    """Raises UserError where a progressive student goes on by other phases than its own, and none
    of them begins: its teacher would be one of other steps."""
    stage, known = config.distil, fields.get("distil", {})
    if stage.objective != "progressive":
        return
    asked = to_dict(stage)
    names = ("timesteps", "halvings", "phase_steps", "follows")
    changed = [name for name in names if known.get(name, asked[name]) != asked[name]]
    if changed and (step % stage.phase_steps or step > stage.last_phase):
        raise UserError(
            f"--from={origin} has a student of {step} steps, at which no phase begins with "
            f"distil.phase_steps={stage.phase_steps} and halvings={stage.halvings}, and "
            f"distil.{changed[0]} was another: use a phase_steps that divides {step}, and more "
            f"halvings than are done by then"
        )


def _check_start(config: Config, found: Places, origin: Path, fields: Mapping[str, Any]) -> None:
    """Raises UserError where what the student of another run began as is not there any more.

    Args:
      config: the run's config.
      found: its places.
      origin: workdir of the other run.
      fields: config of that run's student, with digests of what it was made of.
    """
    if config.finetune.steps:
        first_made(first_run(origin), "finetune", origin)
        return
    known = fields.get("inputs", {})
    for name, digest in weights_inputs(config).items():
        if known.get(name, digest) != digest:
            raise UserError(
                f"--from={origin} has adapters of other files ({name} had other content): put them "
                f"back, or begin anew without --from"
            )
    of_data = not config.student.depth and (pretrains(config) or config.prefer.before)
    if of_data and found.data.resolve() != data_directory(origin).resolve():
        raise UserError(
            f"--from={origin} with --data={found.data}: its adapters are of the data generator "
            f"that it began as; leave --data out"
        )


@dataclasses.dataclass(frozen=True)
class Writes:
    """What a run does to the directory of its data.

    Attributes:
      makes: whether it makes something there.
      alters: whether it changes what is there.
    """

    makes: bool
    alters: bool


def check_made(config: Config, workdir: Path, own: Places) -> Writes:
    """Whether all that is there already is of the config and the data, or is to be made anew.

    Data that are read at once are looked at; what results of stages of another command are made of
    is not.

    Raises:
      NotFoundError: the data are not there, or a stage reads shards that are not complete and that
        no stage of the command makes.
      UserError: the data are of no use, or a result is of other fields or data: the first that
        differs is named.
    """
    source = source_of(config, own.data)
    records = read_contents(own.data / "encoded") if source is None else contents_of(source)
    inputs = inputs_of(config, records)
    made_of = {"encoded": records}
    if records is not None:
        made_of["synthesized"] = in_turn(records, config.synthesize.samples)
    redo = config.on_change == "redo"
    # Of data that are not read at once the stage finds out.
    alters = redo and "encode" in config.stages and source is None
    makes = alters
    # Of a run that began from another one's student, networks of other sizes are from there.
    others = set(NETWORKS).difference(() if own.origin else further_trainings(config))
    for name in RESULTS:
        if name in others:
            continue
        shared, runs = name in DATA, _MAKERS.get(name, name) in config.stages
        directory = (own.data if shared else workdir) / name
        if name in SETS:
            contents = made_of.get(name) if runs else None
            where = source.where if source is not None and name == "encoded" else None
            plan = SetPlan(directory, name, contents, inputs[name] if runs else {}, where)
            change = set_change(config, plan)
            reason, writes = change.reason, change.writes
            done = is_complete(directory) and not writes
            # Not all data have held-out records.
            done = done or name == "held_out"
        else:
            newest = newest_config(directory / "checkpoints")
            reason = "" if newest is None else checkpoint_difference(
                config, directory / "checkpoints", name, *newest,
                inputs=inputs[name] if runs else None,
            )  # fmt: skip
            steps = settings_of(config, name).steps
            writes = bool(reason)
            done = not reason and (0 if newest is None else newest[0]) == steps
            if name == "prefer" and steps:
                done = done and preference_file(own.data).is_file()
        if reason and not (runs and redo):
            raise UserError(reason)
        makes = makes or (shared and runs and not done)
        alters = alters or (shared and runs and writes)
    for name in _read(config):
        if _MAKERS[name] not in config.stages:
            check_complete(own.data / name)
    return Writes(makes, alters)


def check_on_disk(config: Config, data: Path, writes: Writes) -> None:
    """Whether data that are to be made or changed are on a disk: a bucket's are only read.

    Raises:
      UserError: they are copies of a bucket's.
    """
    # Where held-out records are missing the stage looks for some at all data, and writes them.
    looks = {"encode", "evaluate"} <= set(config.stages) and not is_looked_at(config)
    makes = writes.makes or writes.alters or (looks and not is_complete(data / "held_out"))
    if address_of(data) and makes:
        raise UserError(
            f"--data={address_of(data)} does not have all that the stages make, as they make it, "
            f"and what is in a bucket is only read: make it in a folder and copy that there, or "
            f"leave out the stages that make it by --config.stages"
        )


def source_of(config: Config, data: Path) -> Source | None:
    """The source of the data, where the stage that reads it runs and they are read at once.

    Args:
      config: the run's config.
      data: the directory of the run's data.

    Raises:
      NotFoundError: they are not there, and nothing is encoded.
      UserError: they are of no use.
    """
    if "encode" not in config.stages:
        return None
    try:
        return look(config, [Bucket.parse(name) for name in config.data.buckets])
    except NotFoundError:
        # What is encoded needs them no more.
        if is_complete(data / "encoded"):
            return None
        raise


def _read(config: Config) -> set[str]:
    """The sets of shards that the stages of a config read."""
    stages, found = set(config.stages), set()
    if stages & {"pretrain", "synthesize"} or ("prefer" in stages and config.prefer.steps):
        found.add("encoded")
    if "distil" in stages or ("finetune" in stages and config.finetune.steps):
        found.add(config.distil.data)
    return found
