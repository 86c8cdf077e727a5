"""Handles results that were made from other data or another config than the run has now.

A stage goes on with results that still match. Any others stop it, unless `on_change` is `redo`:
then they are made again, either only the shards whose records differ, or the whole result.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from logging import getLogger
from pathlib import Path

import jax

from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.identity import identity
from ladd_jax.config.pretraining import NETWORKS
from ladd_jax.config.workdir import folder
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.contents import (
    Change,
    Contents,
    apply,
    compare,
    in_turn,
    read_contents,
    same,
    summary,
    write_contents,
)
from ladd_jax.data.joined import pretrains
from ladd_jax.data.shard_sets import read_identity, write_identity
from ladd_jax.errors import UserError
from ladd_jax.methods import METHODS
from ladd_jax.parallel.processes import barrier
from ladd_jax.stages.checkpoints import checkpoint_difference
from ladd_jax.stages.load import first_inputs, weights_inputs
from ladd_jax.stages.sets import set_difference
from ladd_jax.training.checkpoint import newest_config
from ladd_jax.weights.fingerprint import ENCODERS, TRANSFORMER, fingerprints
from ladd_jax.whole_files import remove_whole

_LOG = getLogger(__name__)

Where = Callable[[Bucket, int], tuple[int, str]]
"""`where(bucket, index)` gives the place of a record in its data, and its name."""


def inputs_of(config: Config, records: Contents | None) -> dict[str, dict[str, str]]:
    """Digests of the inputs of each whole result, besides config fields and its own records.

    Args:
      config: the run's config.
      records: contents of the set `encoded`; None if they are not known.

    Returns:
      for each result, by its name, the digests of its inputs. An input is named by the result that
      it is, or by the field that names its weights.
    """
    data = config.data
    encoders = (
        fingerprints("weights", config.weights, ENCODERS)
        | fingerprints("data.text", data.text, ENCODERS)
        | fingerprints("data.autoencoder", data.autoencoder, ("vae",))
    )
    transformer = weights_inputs(config)
    asked = fingerprints("teacher.weights", config.teacher.weights, TRANSFORMER)
    if METHODS[config.distil.objective].in_pixels:
        asked |= fingerprints("dino.weights", config.dino.weights, ())
    real, samples = {}, {}
    if records is not None:
        real = {"encoded": summary(records, encoders)}
    # Samples depend on what their data generator was trained on.
    before = transformer | (real if pretrains(config) else {})
    generator = before | real if config.prefer.before else before
    if records is not None:
        made = in_turn(records, config.synthesize.samples)
        samples = {"synthesized": summary(made, encoders | generator)}
    student = generator | (real if config.distil.data == "encoded" else samples)
    return {
        "encoded": encoders,
        "held_out": encoders,
        "pretrain": before,
        **dict.fromkeys(NETWORKS, real),
        "prefer": transformer | real,
        "synthesized": encoders | generator,
        "finetune": student,
        "distil": student | asked,
    }


def inputs_in(config: Config, workdir: Path, name: str) -> dict[str, str]:
    """`inputs_of` for one result, given the records in the run's encoded shards.

    Raises:
      NotFoundError: it needs something that another run trained, which is gone.
    """
    found = inputs_of(config, read_contents(folder(workdir, "encoded")))[name]
    return found | (first_inputs(config, workdir) if name == "distil" else {})


@dataclasses.dataclass(frozen=True)
class SetChange:
    """What has to be done to a set of shards.

    Attributes:
      reason: a sentence about what has changed and what the user can do; empty if nothing has.
      shards: what becomes of each shard; None if all are removed or none exists, and if nothing
        has to be done.
    """

    reason: str = ""
    shards: Change | None = None

    @property
    def writes(self) -> bool:
        """Whether anything has to be written or removed."""
        return bool(self.reason) or self.shards is not None


@dataclasses.dataclass(frozen=True)
class SetPlan:
    """A set of shards as it should be.

    Attributes:
      directory: folder of the set, which need not exist.
      name: name of the set.
      contents: what its records should be made from; None if that is not known.
      inputs: digests of the inputs of the whole set.
      where: gives the place of a record in the data, for messages.
    """

    directory: Path
    name: str
    contents: Contents | None
    inputs: Mapping[str, str]
    where: Where | None = None


def set_change(config: Config, plan: SetPlan) -> SetChange:
    """What has to be done to a set of shards; changes nothing itself."""
    directory, contents = plan.directory, plan.contents
    old = read_identity(directory)
    if not old:
        return SetChange()
    reason = set_difference(config, directory, plan.name, old, plan.inputs)
    if reason:
        return SetChange(reason)
    before = read_contents(directory)
    if before is None or contents is None or same(before, contents):
        return SetChange()
    section = config.synthesize if plan.name == "synthesized" else config.data
    shards = compare(directory, before, contents, section.records_per_shard)
    reason = _reason(directory, shards, contents, plan.where) if shards.stale else ""
    return SetChange(reason, shards)


def _reason(directory: Path, change: Change, contents: Contents, where: Where | None) -> str:
    """A sentence with the first record in the data that differs, and the shards it concerns."""
    found: list[tuple[float, str]] = []
    for bucket, index in change.first.items():
        count = len(contents.get(bucket, ()))
        if index >= count:
            found.append((float("inf"), f"bucket {bucket.name} has {count} records now, which"))
        else:
            place, name = (
                where(bucket, index) if where else (index, f"record {bucket.name}/{index}")
            )
            found.append((place, name))
    _, name = min(found)
    numbers: dict[Bucket, list[int]] = {}
    for bucket, index in change.stale.values():
        numbers.setdefault(bucket, []).append(index)
    parts = [
        f"{min(indices)}{f' to {max(indices)}' * (len(indices) > 1)} of {directory / bucket.name}"
        for bucket, indices in numbers.items()
    ]
    one, total = len(change.stale) == 1, change.missing + len(change.stays)
    return (
        f"{name} differs from what shard{'s' * (not one)} {' and '.join(parts)} "
        f"{'was' if one else 'were'} made from: put it back, use another --workdir or --data, or "
        f"let --on_change=redo make {change.missing} of {total} shards again"
    )


def refuse(config: Config, changes: Iterable[SetChange]) -> None:
    """Raises UserError if something has changed and the config does not say redo."""
    for change in changes:
        if change.reason and config.on_change != "redo":
            raise UserError(change.reason)


def _tell(reason: str) -> None:
    """Logs what is made again, without the alternatives that the user had."""
    _LOG.info("redo: %s", reason.rpartition(": ")[0])


def begin_set(config: Config, plan: SetPlan) -> None:
    """Prepares a set to be written or read; all processes call it together.

    Shards that still match stay, and records appended to the data get places behind them. Shards
    that differ are removed if the config says redo. A complete set that matches is left alone.

    Raises:
      UserError: existing shards were made with other fields or records.
    """
    directory, contents = plan.directory, plan.contents
    if jax.process_index() == 0:
        found = set_change(config, plan)
        refuse(config, [found])
        if found.reason:
            _tell(found.reason)
        if found.shards is not None and contents is not None:
            _LOG.info(
                "%s: %d shards stay, %d are made", directory, len(found.shards.stays),
                found.shards.missing,
            )  # fmt: skip
            apply(directory, found.shards, contents)
        elif found.reason:
            remove_whole(directory)
        if not read_identity(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if contents is not None:
                write_contents(directory, contents)
            # Written last, so that a set with an identity always has its contents recorded.
            write_identity(directory, identity(to_dict(config), plan.name, plan.inputs))
    barrier(f"begun {directory}")


def begin_training(config: Config, workdir: Path, stage: str, inputs: Mapping[str, str]) -> None:
    """Prepares the folder of a training; all processes call it together.

    Raises:
      UserError: its checkpoint was made with other fields or data, and the config does not say
        redo.
    """
    if jax.process_index() == 0:
        directory = folder(workdir, stage)
        newest = newest_config(directory / "checkpoints")
        found = ""
        if newest is not None:
            found = checkpoint_difference(
                config, directory / "checkpoints", stage, *newest, inputs=inputs
            )
        if found:
            if config.on_change != "redo":
                raise UserError(found)
            _tell(found)
            remove_whole(directory)
            if stage in ("prefer", "distil"):
                # These metrics belong to the student that is removed.
                (workdir / "metrics.json").unlink(missing_ok=True)
    barrier(f"begun {stage}")
