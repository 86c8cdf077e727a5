"""Takes a collapsed distillation back to a healthy checkpoint, with a lower learning rate."""

import dataclasses
import json
from logging import getLogger
from pathlib import Path

import jax

from ladd_jax.config.fields import Config, Optimizer
from ladd_jax.errors import DamagedError
from ladd_jax.methods import METHODS
from ladd_jax.parallel.processes import barrier, gather
from ladd_jax.training.checkpoint import steps_in
from ladd_jax.training.collapse import CollapsedError
from ladd_jax.whole_files import read_json, remove_whole, write_text_whole

_LOG = getLogger(__name__)

_FILE = "lowered.json"


def lowered(config: Config, directory: Path) -> Config:
    """The config with the learning rates of `distil` as lowered after its collapses so far.

    Args:
      config: the run's config.
      directory: folder of the stage.

    Raises:
      DamagedError: the file that records the collapses is damaged.
    """
    found = gather(_read(directory))[0]

    def after(times: int, given: Optimizer) -> Optimizer:
        return dataclasses.replace(
            given, learning_rate=given.learning_rate * config.watch.lower**times
        )

    distil = dataclasses.replace(
        config.distil,
        optimizer=after(found["optimizer"], config.distil.optimizer),
        heads_optimizer=after(found["heads_optimizer"], config.distil.heads_optimizer),
    )
    return dataclasses.replace(config, distil=distil)


def go_back(config: Config, directory: Path, collapse: CollapsedError) -> None:
    """Removes the checkpoints since a collapse began, and lowers the rate that caused it.

    A collapse of the student lowers the student's rate, and heads that always win lower the heads'
    rate. If the checkpoint that the training last went back to led to another collapse, it is
    removed too, as long as there is an older one. If all checkpoints are from the collapse, the
    oldest is kept. All processes call this.

    Args:
      config: the run's config.
      directory: folder of the stage.
      collapse: the error that the training ended with.

    Raises:
      CollapsedError: the training went back `watch.returns` times already.
    """
    checkpoints = directory / "checkpoints"
    # All processes use what the first one sees.
    found, steps = gather([_read(directory), steps_in(checkpoints)])[0]
    if found["optimizer"] + found["heads_optimizer"] >= config.watch.returns:
        raise CollapsedError(
            collapse.finding,
            collapse.since,
            collapse.of_heads,
            end=f"it went back {config.watch.returns} times already (watch.returns) and has "
            f"{_rates(lowered(config, directory))} now",
        )
    oldest = min(steps, default=0)
    kept = max((step for step in steps if step < collapse.since), default=oldest)
    if kept == found["step"]:
        kept = max((step for step in steps if step < kept), default=kept)
    found["heads_optimizer" if collapse.of_heads else "optimizer"] += 1
    found["step"] = kept
    if jax.process_index() == 0:
        # Written before checkpoints are removed, so that a job killed in between has at least the
        # lower rate.
        write_text_whole(directory / _FILE, json.dumps(found, indent=2) + "\n")
        for step in steps:
            if step > kept:
                remove_whole(checkpoints / str(step))
    barrier("went back")
    _LOG.warning(
        "%s; training goes back to step %d, with %s",
        collapse.finding, kept, _rates(lowered(config, directory)),
    )  # fmt: skip


def _rates(config: Config) -> str:
    distil = config.distil
    student = f"a learning rate of {distil.optimizer.learning_rate:g}"
    if not METHODS[distil.objective].has_heads:
        return student
    return f"{student} and {distil.heads_optimizer.learning_rate:g} for the heads"


def _read(directory: Path) -> dict[str, int]:
    """How often the rate of each optimizer was lowered, and the step that it last went back to."""
    none = {"optimizer": 0, "heads_optimizer": 0, "step": 0}
    path = directory / _FILE
    if not path.exists():
        return none
    found = read_json(path)
    if found.keys() != none.keys() or not all(type(value) is int for value in found.values()):
        raise DamagedError(f"{path} is damaged: remove it to train with the config's rates")
    return dict(found)
