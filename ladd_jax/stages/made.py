"""What exists before a run begins: its data, its student, and the run that it begins from.

All of this is checked before a run writes anything. Only the first process does so, and without the
checkpoint library, which would create the folders that it looks for.
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
    check_packages,
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

# The stage that makes each result which other stages read.
_MAKERS = {
    "encoded": "encode",
    "held_out": "encode",
    "synthesized": "synthesize",
    **{name: stage_of(name) for name in NETWORKS},
}


def open_places(config: Config, workdir: Path, data: str, origin: str) -> Places:
    """The places of a run: those given by flags, or else those recorded in its workdir.

    Args:
      config: the run's config.
      workdir: the run's workdir, which need not exist.
      data: a directory of data, a workdir that has data or names their directory, or empty.
      origin: workdir of a run whose newest student this run should begin with, on the same data
        unless it has data of its own; or empty.

    Raises:
      NotFoundError: there is no such student.
      UserError: the workdir's config has settings of a package that is not installed, the workdir
        has other data or another student already, or the given student is another network or
        already has as many steps as this run asks for.
    """
    check_directory(workdir)
    if config.on_change != "redo":
        check_packages(workdir)
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
            f"{workdir} already has a student that did not begin with the one of {origin}: use "
            f"another --workdir, or leave --from out"
        )
    step, fields = newest
    if step >= config.distil.steps:
        raise UserError(
            f"--from={origin} has a student of {step} steps and distil.steps is "
            f"{config.distil.steps}: raise it above {step}, since steps are counted on from there"
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
        # The adapters belong to the data generator, so all that makes it must be the same.
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
            f"start over without --from"
        )
    for name in further_trainings(config):
        first_made(first_run(origin), name, origin)
    return dataclasses.replace(found, origin=origin, step=step)


def _check_phase(config: Config, origin: Path, step: int, fields: Mapping[str, Any]) -> None:
    """Raises UserError if a progressive student goes on with other phases in the middle of one.

    Its teacher in that phase would be a network of another number of steps.
    """
    stage, known = config.distil, fields.get("distil", {})
    if stage.objective != "progressive":
        return
    asked = to_dict(stage)
    names = ("timesteps", "halvings", "phase_steps", "follows")
    changed = [name for name in names if known.get(name, asked[name]) != asked[name]]
    if changed and (step % stage.phase_steps or step > stage.last_phase):
        raise UserError(
            f"--from={origin} has a student of {step} steps, where no phase begins with "
            f"distil.phase_steps={stage.phase_steps} and halvings={stage.halvings}, and it was "
            f"trained with another distil.{changed[0]}: use a phase_steps that divides {step}, "
            f"and more halvings than are done by then"
        )


def _check_start(config: Config, found: Places, origin: Path, fields: Mapping[str, Any]) -> None:
    """Raises UserError if the network that another run's student began with is gone.

    Args:
      config: the run's config.
      found: the run's places.
      origin: workdir of the other run.
      fields: config of that run's student, with digests of its inputs.
    """
    if config.finetune.steps:
        first_made(first_run(origin), "finetune", origin)
        return
    known = fields.get("inputs", {})
    for name, digest in weights_inputs(config).items():
        if known.get(name, digest) != digest:
            raise UserError(
                f"--from={origin} has adapters for other files ({name} had other content): put "
                f"them back, or start over without --from"
            )
    of_data = not config.student.depth and (pretrains(config) or config.prefer.before)
    if of_data and found.data.resolve() != data_directory(origin).resolve():
        raise UserError(
            f"--data={found.data} has another data generator than the one that the adapters of "
            f"--from={origin} belong to: leave --data out"
        )


@dataclasses.dataclass(frozen=True)
class Writes:
    """What a run does to the directory of its data.

    Attributes:
      makes: whether it adds something to it.
      alters: whether it changes something in it.
    """

    makes: bool
    alters: bool


def check_made(config: Config, workdir: Path, own: Places) -> Writes:
    """Checks that all existing results match the config and the data, or will be made again.

    Data that can be looked at in advance are. Inputs of results are only compared if this command
    runs the stage that makes them.

    Raises:
      NotFoundError: the data are not there, or a stage reads shards that are incomplete and that no
        stage of the command makes.
      UserError: the data are unusable, or a result was made with other fields or data; the first
        difference is named.
    """
    source = source_of(config, own.data)
    records = read_contents(own.data / "encoded") if source is None else contents_of(source)
    inputs = inputs_of(config, records)
    made_of = {"encoded": records}
    if records is not None:
        made_of["synthesized"] = in_turn(records, config.synthesize.samples)
    redo = config.on_change == "redo"
    # For data that cannot be looked at in advance, only the stage finds out what changes.
    alters = redo and "encode" in config.stages and source is None
    makes = alters
    # A run that began from another run's student takes networks of other sizes from there.
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
    """Checks that data that have to be made or changed are not those of a cloud storage bucket.

    Raises:
      UserError: the data are local copies of a storage bucket's, which is only read.
    """
    # If held-out records are missing, the stage looks for some in all data, and writes them.
    looks = {"encode", "evaluate"} <= set(config.stages) and not is_looked_at(config)
    makes = writes.makes or writes.alters or (looks and not is_complete(data / "held_out"))
    if address_of(data) and makes:
        raise UserError(
            f"--data={address_of(data)} is missing data that the stages would make or change, and "
            f"storage buckets are only read: make the data in a folder and copy it there, or leave "
            f"these stages out by --config.stages"
        )


def source_of(config: Config, data: Path) -> Source | None:
    """The source of the data; None if `encode` does not run or data cannot be read in advance.

    Args:
      config: the run's config.
      data: the directory of the run's data.

    Raises:
      NotFoundError: the raw data are not there, and not encoded yet.
      UserError: the raw data are unusable.
    """
    if "encode" not in config.stages:
        return None
    try:
        return look(config, [Bucket.parse(name) for name in config.data.buckets])
    except NotFoundError:
        # Complete shards do not need the raw data any more.
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
