"""The checkpoints of a run's trainings, and whether they belong to its config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.identity import difference, identity, own_fields
from ladd_jax.config.pretraining import settings_of, stage_of
from ladd_jax.config.workdir import folder
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.training.checkpoint import Checkpoints


def checkpoints_of(config: Config, workdir: Path, stage: str) -> Checkpoints:
    """The checkpoints of a stage.

    Raises:
      DamagedError: there are some, and all are damaged.
      UserError: there are some, made with another config.
    """
    return checkpoints_in(config, folder(workdir, stage), stage)


def checkpoints_in(config: Config, directory: Path, stage: str) -> Checkpoints:
    """Does what `checkpoints_of` does, given the stage's folder."""
    saved = Checkpoints(
        directory / "checkpoints",
        every=config.checkpoint.every,
        minutes=config.checkpoint.minutes,
        keep=config.checkpoint.keep,
    )
    step = saved.latest()
    if step is not None:
        found = checkpoint_difference(config, saved.directory, stage, step, saved.config(step))
        if found:
            raise UserError(found)
    return saved


def checkpoint_difference(
    config: Config,
    directory: Path,
    stage: str,
    step: int,
    saved: dict[str, Any],
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Why a training cannot go on from, or count as done at, a checkpoint; empty if it can.

    Args:
      config: the run's config.
      directory: folder of the checkpoints.
      stage: the training.
      step: the checkpoint's step.
      saved: the checkpoint's config.
      inputs: digests of what the training reads; None: they are not compared.

    Returns:
      a sentence with the first difference and what the user can do.
    """
    steps = settings_of(config, stage).steps
    if step > steps:
        return (
            f"{directory} holds step {step} and {stage_of(stage)}.steps is {steps}: use {step} or "
            f"more, or another --workdir"
        )
    old = identity(saved, stage, saved.get("inputs"))
    new = identity(to_dict(config), stage, inputs)
    free = own_fields(stage)
    # Fields that may change while training goes on, such as rates, must not change once it is done,
    # except for the number of steps.
    found = difference(old, new, free if step < steps else free[:1])
    if not found:
        return ""
    return (
        f"{directory} holds a checkpoint of another config ({found}): "
        f"{_remedy(stage, difference(old, new, free), step)}"
    )


def _remedy(stage: str, others: str, step: int) -> str:
    """What the user can do; `others` is a difference that rules out going on, or empty."""
    ways = [] if others else [f"raise {stage_of(stage)}.steps above {step} to train on with it"]
    if stage == "distil":
        ways.append("use another --workdir with --from for its student or --data for its data")
    else:
        ways.append("use another --workdir")
    return ", ".join([*ways, "set it back, or let --on_change=redo train again"])


def student_step(config: Config, workdir: Path, step: int | None = None) -> int:
    """The step of a checkpoint of `distil`, finished or not; by default of the newest.

    Raises:
      NotFoundError: there is no such checkpoint.
      UserError: it was made with another config.
    """
    directory = folder(workdir, "distil") / "checkpoints"
    # Opening checkpoints would create their directory.
    saved = checkpoints_of(config, workdir, "distil") if directory.is_dir() else None
    if saved is None or saved.latest() is None:
        raise NotFoundError(
            f"{workdir} holds no student yet: run the stage 'distil' with `python -m ladd_jax.main`"
        )
    found = saved.find(step)
    saved.close()
    return found


def finished_student_step(config: Config, workdir: Path) -> int:
    """The last step of `distil`.

    Raises:
      NotFoundError: `distil` is not done.
      UserError: its checkpoints were made with another config.
    """
    finished_checkpoints(config, workdir, "distil", config.distil.steps).close()
    return config.distil.steps


def finished_checkpoints(config: Config, workdir: Path, stage: str, steps: int) -> Checkpoints:
    """The checkpoints of a finished stage; raises NotFoundError if it is not finished."""
    saved = checkpoints_of(config, workdir, stage)
    if saved.latest() != steps:
        found = "nothing" if saved.latest() is None else f"step {saved.latest()}"
        raise NotFoundError(
            f"{saved.directory} holds {found} of {steps} steps: run the stage "
            f"{stage_of(stage)!r} first, "
            f"with the same --config and --workdir"
        )
    return saved
