"""Checkpoints: asynchronous, complete, restored onto any mesh as they were saved, or not at all."""

import contextlib
import gc
import hashlib
import json
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from ladd_jax.errors import DamagedError, NotFoundError, UserError, brief
from ladd_jax.models.base import Params
from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.processes import as_all, as_process_0, barrier, lost_another, note_loss
from ladd_jax.parallel.stopping import Stopped
from ladd_jax.training.digests import digests

_LOG = getLogger(__name__)

_LOST_SECONDS = 20.0
"""How long processes wait for a checkpoint after one of them is lost."""

# Items of a checkpoint: names of its folders.
_STATE, _CONFIG, _DIGESTS = "state", "config", "digests"

# TensorStore's words for a store that does not answer or does not give access.
_OUT_OF_REACH = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|CANCELLED"
)
_ERRNO = re.compile(r"os_error_code='(\d+)'")
_LINE = 200


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
        # What is wrong with each checkpoint that was looked at, or empty; and the checkpoints that
        # a warning has named.
        self._found: dict[int, str] = {}
        self._told: set[int] = set()
        self._metadata_of: dict[int, Any] = {}
        self._manager = ocp.CheckpointManager(
            epath.Path(self.directory),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; a warning names each newer one that is damaged.

        Raises:
          DamagedError: there are checkpoints, and all are damaged.
        """
        steps = self._steps()
        newest = next((step for step in steps if not self._damage(step)), None)
        if steps and newest is None:
            raise DamagedError(
                f"no checkpoint in {self.directory} can be read (step {steps[0]}: "
                f"{self._damage(steps[0])}): put a copy of it there, or remove the directory to "
                f"train from the start"
            )
        for step in steps:
            if newest is not None and step > newest and step not in self._told:
                self._told.add(step)
                _LOG.warning(
                    "the checkpoint %s is damaged (%s): the one of step %d is used",
                    self.directory / str(step), self._damage(step), newest,
                )  # fmt: skip
        return newest

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates."""
        return step % self._every == 0

    def overdue(self) -> bool:
        """Whether the last checkpoint is older than `minutes`; all processes ask, and agree."""
        if not self._seconds:
            return False
        return as_process_0(time.monotonic() - self._saved >= self._seconds)

    def save(self, step: int, state: TrainState, config: dict[str, Any]) -> None:
        """Starts writing the state after `step` updates; training goes on meanwhile.

        The step is the caller's count: reading the state's own would wait for the device. A test
        checks that both agree.

        Raises:
          UserError: it cannot be written to the disk.
        """
        self._saved = time.monotonic()
        if step in self._manager.all_steps():
            return
        made = {"config": _digest(config), "arrays": digests(_leaves(state))}
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    config=ocp.args.JsonSave(config),
                    digests=ocp.args.JsonSave(made),
                ),
                # When to save is the caller's decision: Orbax's own policy adds the first step.
                force=True,
            )

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (default: the newest), laid out as `abstract` says.

        Raises:
          NotFoundError: there is no such checkpoint.
          DamagedError: it is damaged, or it is not what was saved.
          UserError: the checkpoint is missing a leaf, or has one too many, or one of another shape
            or dtype. Nothing is filled in.
        """
        step = self.find(step)
        with self._reading(step):
            self._check(step, _difference(self._metadata(step), abstract))
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
            self._verify(step, _leaves(restored))
        return restored

    def restore_newest(self, abstract: TrainState) -> TrainState:
        """The newest undamaged state; damaged ones are moved aside, so that training may go on.

        Raises:
          NotFoundError: there is no checkpoint.
          DamagedError: all are damaged.
          UserError: see `restore`.
        """
        while True:
            step, state = self.find(), None
            with contextlib.suppress(DamagedError):
                state = self.restore(abstract, step)
            # A checkpoint that a single process cannot read counts as damaged for all.
            if as_all(state is not None) and state is not None:
                self._put_aside()
                return state
            self._found[step] = self._found.get(step) or "another process cannot read it"

    def restore_tree(self, name: str, abstract: Params, step: int | None = None) -> Params:
        """One tree of the state, such as `ema`, without reading the others.

        Args:
          name: name of the field of `TrainState`.
          abstract: shapes, dtypes and shardings to restore it into.
          step: step of the checkpoint; default: the newest.

        Raises:
          NotFoundError: there is no such checkpoint.
          DamagedError: it is damaged, or it is not what was saved.
          UserError: the checkpoint has another tree there.
        """
        step = self.find(step)
        item = {name: abstract}
        options = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        with self._reading(step):
            self._check(step, _difference(self._metadata(step)[name], abstract))
            tree = reader.restore(self.directory / str(step) / _STATE, args=options)[name]
            self._verify(step, _leaves({name: tree}))
        return tree

    def find(self, step: int | None = None) -> int:
        """The step, or the newest one.

        Raises:
          NotFoundError: there is no such checkpoint.
          DamagedError: it is damaged, or all are.
        """
        step = self.latest() if step is None else step
        if step is None or step not in self._steps():
            raise NotFoundError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self.directory}: "
                f"there are steps {sorted(self._steps())}"
            )
        reason = self._damage(step)
        if reason:
            raise self._damaged_error(step, reason)
        return step

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The config that a checkpoint was made with.

        Raises:
          NotFoundError: there is no such checkpoint.
          DamagedError: it is damaged.
        """
        return self._json(self.find(step), _CONFIG)

    @contextlib.contextmanager
    def finished(self) -> Iterator[None]:
        """A block that waits for a checkpoint that is being written if an error or signal ends it.

        An error of the writer is then only logged, so that it does not hide the reason.
        """
        try:
            yield
        except BaseException as error:
            note_loss(error)
            if not self._manager.is_saving_in_progress():
                raise
            _LOG.info("ending once the checkpoint that is being written is on disk")
            writing = threading.Thread(target=self._finish, daemon=True)
            writing.start()
            # All processes finish a checkpoint together or none does, and a lost one never does.
            alone = jax.process_count() == 1 or isinstance(error, UserError | Stopped)
            writing.join(None if alone else _LOST_SECONDS)
            raise

    def _finish(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            _LOG.error("the checkpoint in %s was not written: %s", self.directory, error)

    def wait(self) -> None:
        """Returns when what was saved is on disk, for every process to read.

        Raises:
          UserError: it cannot be written to the disk.
        """
        with self._writing():
            self._manager.wait_until_finished()
        barrier(f"saved {self.directory}")

    def close(self) -> None:
        """Waits, then frees the threads."""
        with self._writing():
            self._manager.wait_until_finished()
        self._manager.close()

    def _steps(self) -> list[int]:
        """Steps of all checkpoints on disk, newest first, whole or not.

        Orbax leaves out those that it sees are not whole, and counts those that it is writing,
        whose folders have other names until they are done.
        """
        return steps_in(self.directory)

    def _damage(self, step: int) -> str:
        """What is wrong with a checkpoint, as far as can be told without its arrays; or empty."""
        if step not in self._found:
            try:
                with _quiet_coroutines():
                    self._found[step] = self._look(step)
            except Exception as error:
                if not _is_damage(error):
                    raise
                self._found[step] = _brief(error)
        return self._found[step]

    def _look(self, step: int) -> str:
        if step not in self._manager.all_steps():
            # It may have been written since, by another command.
            self._manager.reload()
            if step not in self._manager.all_steps():
                return "its mark of completeness is missing"
        config, saved = self._json(step, _CONFIG), _paths(self._metadata(step)).keys()
        if not saved:
            return "its state has no metadata"
        if self._has_digests(step):
            made = self._json(step, _DIGESTS)
            if made["config"] != _digest(config):
                return "its config is not as it was saved"
            differing = sorted(saved ^ made["arrays"].keys())
            if differing:
                where = "its state" if differing[0] in made["arrays"] else "its digests"
                return f"{differing[0]} is missing in {where}"
        return ""

    def _json(self, step: int, name: str) -> dict[str, Any]:
        """A JSON item of a checkpoint."""
        try:
            return _read_json(self.directory, step, name)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            if not _is_damage(error):
                raise
            raise DamagedError(f"{name}/metadata is missing, empty or cut") from error

    def _has_digests(self, step: int) -> bool:
        # Checkpoints of older versions have none. Orbax lists the items that were saved.
        folder = self.directory / str(step)
        try:
            listed = f'"{_DIGESTS}"' in (folder / "_CHECKPOINT_METADATA").read_text(
                errors="replace"
            )
        except FileNotFoundError:
            listed = False
        return listed or (folder / _DIGESTS).is_dir()

    def _verify(self, step: int, leaves: dict[str, jax.Array]) -> None:
        """Raises DamagedError where arrays are not those that were saved."""
        if not self._has_digests(step):
            _LOG.warning(
                "the checkpoint %s has no digests, so nothing can tell whether it is as it was "
                "saved", self.directory / str(step),
            )  # fmt: skip
            return
        saved = self._json(step, _DIGESTS)["arrays"]
        for name, digest in digests(leaves).items():
            if saved.get(name) != digest:
                raise DamagedError(f"{name} is not as it was saved")

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns what libraries raise on damaged files into one sentence."""
        reason = ""
        with _quiet_coroutines():
            try:
                yield
            except Exception as error:
                if isinstance(error, UserError) and not isinstance(error, DamagedError):
                    raise
                if not _is_damage(error):
                    raise
                reason = _brief(error)
            if reason:
                self._found[step] = reason
                raise self._damaged_error(step, reason)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what libraries raise where a disk is full or read-only into one sentence."""
        try:
            yield
        except (OSError, ValueError) as error:
            number = error.errno if isinstance(error, OSError) else _named_errno(error)
            if number is None:
                raise
            raise UserError(
                f"the checkpoint cannot be written to {self.directory} ({os.strerror(number)}): "
                f"free space there, or make it writable, and start the command again, which goes "
                f"on from the checkpoint before"
            ) from error

    def _damaged_error(self, step: int, reason: str) -> DamagedError:
        others = [s for s in self._steps() if s < step and not self._damage(s)]
        before = f"; step {others[0]} is whole" if others else ""
        return DamagedError(
            f"the checkpoint {self.directory / str(step)} is damaged ({reason}){before}: put a "
            f"copy of it there, or move it away and run its stage again, which "
            f"{'goes on from there' if others else 'starts from the beginning'}"
        )

    def _put_aside(self) -> None:
        """Moves damaged checkpoints out of the way of those that are still to be saved."""
        if jax.process_index() == 0:
            for step in (step for step, reason in self._found.items() if reason):
                aside = self.directory.with_name(f"damaged_{self.directory.name}")
                aside.mkdir(exist_ok=True)
                target = aside / f"{step}-{uuid.uuid4().hex[:8]}"
                (self.directory / str(step)).rename(target)
                _LOG.warning("the damaged checkpoint of step %d is now %s", step, target)
        barrier(f"put aside {self.directory}")
        self._found.clear()
        self._metadata_of.clear()
        self._manager.reload()

    def _metadata(self, step: int) -> Any:
        """The state with shapes and dtypes in place of arrays; reading it is slow."""
        if step not in self._metadata_of:
            saved = ocp.StandardCheckpointer().metadata(self.directory / str(step) / _STATE)
            self._metadata_of[step] = getattr(saved, "item_metadata", saved)
        return self._metadata_of[step]

    def _check(self, step: int, difference: str) -> None:
        if difference:
            raise UserError(
                f"the checkpoint of step {step} in {self.directory} does not fit: {difference}; "
                f"train with the config that it was made with, or into another workdir"
            )


def newest_config(directory: str | Path) -> tuple[int, dict[str, Any]] | None:
    """Step and config of the newest checkpoint of a folder whose config can be read, if any.

    It does without Orbax, which would make the folder, and which all processes must use together.
    """
    directory = Path(directory)
    for step in steps_in(directory):
        try:
            return step, _read_json(directory, step, _CONFIG)
        # The training that restores it reports its damage.
        except (OSError, ValueError, TypeError, RecursionError):
            continue
    return None


def steps_in(directory: Path) -> list[int]:
    """Steps of the checkpoints in a folder, newest first, whole or not."""
    if not directory.is_dir():
        return []
    folders = (file for file in directory.iterdir() if file.is_dir())
    return sorted((int(f.name) for f in folders if f.name.isdecimal()), reverse=True)


def _read_json(directory: Path, step: int, name: str) -> dict[str, Any]:
    return dict(json.loads((directory / str(step) / name / "metadata").read_text(encoding="utf-8")))


def _is_damage(error: Exception) -> bool:
    """Whether a reading error means that files are damaged, and not that they are out of reach.

    Damage raises errors of almost every kind, from Orbax, TensorStore and JSON.
    """
    if isinstance(error, jax.errors.JaxRuntimeError | MemoryError) or lost_another(error):
        return False
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
        return False
    return not _OUT_OF_REACH.search(str(error))


@contextlib.contextmanager
def _quiet_coroutines() -> Iterator[None]:
    """Drops what Python prints about Orbax's other reads when one of them fails."""
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        # A signal is to end the job all the same.
        if isinstance(unraisable.exc_value, Stopped):
            hook(unraisable)

    sys.unraisablehook = quiet
    try:
        yield
    except BaseException:
        # The coroutines end when they are collected, which is to be while the hook is in place.
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _named_errno(error: Exception) -> int | None:
    """The errno in a message of TensorStore; None if it has none."""
    found = _ERRNO.search(str(error))
    return int(found[1]) if found else None


def _brief(error: Exception) -> str:
    """The first line of an error, without a long tail."""
    line = brief(error)
    line = line.partition(". See full TensorStore details")[0].rstrip(".")
    return line if len(line) <= _LINE else line[: _LINE - 3] + "..."


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
        ): leaf
        for path, leaf in leaves
    }


def _paths(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in _leaves(tree).items()}


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
