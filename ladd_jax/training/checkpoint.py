"""Checkpoints: asynchronous, complete, restored onto any mesh or not at all."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.base import Params
from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.processes import as_process_0, barrier
from ladd_jax.parallel.stopping import Stopped

_LOG = logging.getLogger(__name__)

_LOST_SECONDS = 20.0
"""For which processes wait for a checkpoint after one of them is lost."""


class Checkpoints:
    """The checkpoints of one training stage.

    A checkpoint of step n holds the state after n updates, and the config. The data position is
    n itself: the batch of a step is a function of its number.
    """

    def __init__(
        self, directory: str | Path, *, every: int = 1000, minutes: float = 0.0, keep: int = 2
    ):
        self.directory = Path(directory).absolute()
        self._every = every
        self._seconds = 60 * minutes
        self._saved = time.monotonic()
        self._manager = ocp.CheckpointManager(
            epath.Path(self.directory),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after `step` updates."""
        return step % self._every == 0

    def overdue(self) -> bool:
        """Whether the last checkpoint is older than `minutes`; all processes ask, and agree."""
        if not self._seconds:
            return False
        return as_process_0(time.monotonic() - self._saved >= self._seconds)

    def save(self, step: int, state: TrainState, config: dict[str, Any]) -> None:
        """Starts to write the state after `step` updates; training goes on meanwhile.

        The step is the caller's count: reading the state's own would wait for the device. A test
        holds that both agree.
        """
        self._saved = time.monotonic()
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config)
            ),
            # When to save is the caller's decision: Orbax's own policy adds the first step.
            force=True,
        )

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (default: the newest), laid out as `abstract` says.

        Raises:
          NotFoundError: there is no such checkpoint.
          UserError: the checkpoint is missing a leaf, or has one too many, or one of another shape
            or dtype. Nothing is filled in.
        """
        step = self.find(step)
        self._check(step, _difference(self._metadata(step), abstract))
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        return restored["state"]

    def restore_tree(self, name: str, abstract: Params, step: int | None = None) -> Params:
        """One tree of the state, such as `ema`, without reading the others.

        Args:
          name: name of the field of `TrainState`.
          abstract: shapes, dtypes and shardings to restore it into.
          step: step of the checkpoint; default: the newest.

        Raises:
          NotFoundError: there is no such checkpoint.
          UserError: the checkpoint has another tree there.
        """
        step = self.find(step)
        self._check(step, _difference(self._metadata(step)[name], abstract))
        item = {name: abstract}
        options = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        return reader.restore(self.directory / str(step) / "state", args=options)[name]

    def find(self, step: int | None = None) -> int:
        """The step, or the newest one.

        Raises:
          NotFoundError: there is no such checkpoint.
        """
        step = self.latest() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise NotFoundError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self.directory}: "
                f"there are steps {sorted(self._manager.all_steps())}"
            )
        return step

    def _metadata(self, step: int) -> Any:
        """The state with shapes and dtypes in place of arrays."""
        saved = ocp.StandardCheckpointer().metadata(self.directory / str(step) / "state")
        return getattr(saved, "item_metadata", saved)

    def _check(self, step: int, difference: str) -> None:
        if difference:
            raise UserError(
                f"the checkpoint of step {step} in {self.directory} does not fit: {difference}; "
                f"train with the config that it was made with, or into another workdir"
            )

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The config that a checkpoint was made with."""
        step = self.latest() if step is None else step
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))[
            "config"
        ]

    @contextlib.contextmanager
    def finished(self) -> Iterator[None]:
        """A block after which, if an error or a signal ends it, what was being written is on disk.

        An error of the writer is logged then, so that it does not hide the reason.
        """
        try:
            yield
        except BaseException as error:
            if not self._manager.is_saving_in_progress():
                raise
            _LOG.info("ends, once the checkpoint that is being written is on disk")
            writing = threading.Thread(target=self._finish, daemon=True)
            writing.start()
            # All processes end a checkpoint together, or none: one that is lost never does.
            alone = jax.process_count() == 1 or isinstance(error, UserError | Stopped)
            writing.join(None if alone else _LOST_SECONDS)
            raise

    def _finish(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            _LOG.error("the checkpoint in %s was not written: %s", self.directory, error)

    def wait(self) -> None:
        """Returns when what was saved is on disk, for every process to read; raises what went
        wrong while writing."""
        self._manager.wait_until_finished()
        barrier(f"saved {self.directory}")

    def close(self) -> None:
        """Waits, then frees the threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def _paths(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): (
            tuple(leaf.shape),
            str(leaf.dtype),
        )
        for path, leaf in leaves
    }


def _difference(saved: Any, wanted: Any) -> str:
    """The first difference of two trees in words, empty where there is none."""
    have, want = _paths(saved), _paths(wanted)
    missing, extra = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    if missing:
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        return f"it is missing {missing[0]}{more}"
    if extra:
        return f"it has an extra {extra[0]}" + (f" and {len(extra) - 1} more" * (len(extra) > 1))
    for path, leaf in want.items():
        if have[path] != leaf:
            return f"{path} is {have[path][0]} {have[path][1]}, not {leaf[0]} {leaf[1]}"
    return ""
