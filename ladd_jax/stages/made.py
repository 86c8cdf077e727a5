"""What a run finds made already: its data, its student, and the run that it begins from.

All of this is looked at before a run writes anything, by its first process alone and without a
library of checkpoints, which makes the folders that it looks for.
"""

import dataclasses
from pathlib import Path

from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.identity import RESULTS, SETS, config_difference
from ladd_jax.config.workdir import DATA, Places, check_directory, data_directory, places
from ladd_jax.data.shards import check_complete, is_complete, read_identity
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.stages.load import check_checkpoint, check_set
from ladd_jax.training.checkpoint import newest_config

# Which stage makes what others read.
_MAKERS = {"encoded": "encode", "synthesized": "synthesize"}


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
    found = places(workdir)
    own = [name for name in DATA if (workdir / name).exists()]
    if origin:
        if not own and found.data == workdir:
            found = dataclasses.replace(found, data=data_directory(Path(origin)))
        found = _begun(config, workdir, found, Path(origin))
    if data:
        given = data_directory(Path(data))
        check_directory(given, "data")
        if own and given.resolve() != workdir.resolve():
            raise UserError(
                f"{workdir} has data of its own ({own[0]}): leave --data={data} out, or use "
                f"another --workdir"
            )
        found = dataclasses.replace(found, data=given)
    return found


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
    old, new = (
        {name: values[name] for name in ("model", "teacher", "heads") if name in values}
        | {"distil": {"hooked_blocks": values["distil"]["hooked_blocks"]}}
        for values in (fields, to_dict(config))
    )
    other = config_difference(old, new)
    if other:
        raise UserError(
            f"--from={origin} has a student of other networks ({other}): set the field back, or "
            f"begin anew without --from"
        )
    return dataclasses.replace(found, origin=origin, step=step)


def check_made(config: Config, workdir: Path, own: Places) -> None:
    """Whether all that is there already is of the config, and what no stage makes is there.

    Raises:
      NotFoundError: a stage reads shards that are not complete, and their stage is left out.
      UserError: a result is of another config; the first field that differs is named.
    """
    for name in RESULTS:
        directory = (own.data if name in DATA else workdir) / name
        if name in SETS and read_identity(directory):
            check_set(config, directory, name)
        newest = newest_config(directory / "checkpoints")
        if newest is not None:
            check_checkpoint(config, directory / "checkpoints", name, *newest)
    for name in _read(config):
        if _MAKERS[name] not in config.stages:
            check_complete(own.data / name)


def _read(config: Config) -> set[str]:
    """The sets of shards that the stages of a config read."""
    stages, found = set(config.stages), set()
    if stages & {"pretrain", "synthesize"}:
        found.add("encoded")
    if "distil" in stages or ("finetune" in stages and config.finetune.steps):
        found.add(config.distil.data)
    return found


def makes_data(config: Config, data: Path) -> bool:
    """Whether a stage of the config has something to make in the directory of the data."""
    pretrained = newest_config(data / "pretrain" / "checkpoints")
    done = {
        "encode": is_complete(data / "encoded"),
        "pretrain": pretrained is not None and pretrained[0] == config.pretrain.steps,
        "synthesize": is_complete(data / "synthesized"),
    }
    return any(name in config.stages and not made for name, made in done.items())
