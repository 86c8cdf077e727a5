"""Where metrics go: a file of JSON lines, and the writers of a run."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ladd_jax.data.images import to_bytes
from ladd_jax.errors import DamagedError, UserError
from ladd_jax.training.writers import open_writers
from ladd_jax.training.writers.base import Writer

_HISTORY = "history.jsonl"


class DivergedError(UserError):
    """A loss, a gradient or a parameter is not a finite number.

    Attributes:
      steps: the skipped steps in a row that led to it.
      samples: places, in the batch of the last of these, of the samples that are not finite.
    """

    def __init__(self, message: str, steps: Sequence[int] = (), samples: Sequence[int] = ()):
        super().__init__(message)
        self.steps = tuple(steps)
        self.samples = tuple(samples)


class MetricWriter:
    """Writes the mean of the metrics since the last write. Only the first process writes."""

    def __init__(
        self,
        directory: str | Path,
        writers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
        max_skips: int = 1,
    ):
        """Opens the writers, in the first process.

        Args:
          directory: folder of the training; made if it is not there.
          writers: names of `training.writers`, which get what the history gets, and pictures.
          config: the run's config, for writers that show it.
          max_skips: skipped steps in a row that stop the training.

        Raises:
          UserError: a writer is unknown, or its client is not installed.
        """
        self._directory = Path(directory)
        self._pending: list[dict[str, jax.Array]] = []
        self._max_skips = max_skips
        self._skipped: list[int] = []
        self._active = jax.process_index() == 0
        self._writers: dict[str, Writer] = {}
        if self._active:
            self._directory.mkdir(parents=True, exist_ok=True)
            _drop_partial_line(self._directory / _HISTORY)
            self._writers = open_writers(writers, self._directory, config or {})

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Keeps one step's metrics, on the device: no transfer."""
        self._pending.append(metrics)

    @property
    def skipped(self) -> int:
        """Steps in a row that were skipped, up to the last write."""
        return len(self._skipped)

    def write(self, step: int, extra: dict[str, float], last: bool = False) -> dict[str, Any]:
        """Averages, checks and writes what was added, with `extra` beside it.

        Args:
          step: the step that has just been done.
          extra: further numbers of the record.
          last: whether the training ends here. Two skipped steps in a row are then enough to stop
            it: none comes after them to show that the parameters are sound.

        Returns:
          name -> float, or list of floats for a metric per head; `skipped` is a number of steps.

        Raises:
          DivergedError: a loss or a gradient norm is NaN or infinite in a step that was not
            skipped, or `max_skips` in a row were.
        """
        pending, self._pending = jax.device_get(self._pending), []
        record: dict[str, Any] = {"step": step}
        skipped = np.array([bool(metrics.get("skipped", 0)) for metrics in pending])
        waited = np.array([_waited(metrics) for metrics in pending])
        self._check_skips(step, pending, skipped, last)
        for name in pending[0]:
            values = np.stack([metrics[name] for metrics in pending])
            # A band of t_hat that no sample fell into is NaN in that step and has no mean.
            finite = np.isfinite(values)
            if name.startswith(("loss", "gradient_norm")):
                bad = values[~finite & ~skipped & ~(waited & np.isnan(values))]
            else:
                bad = values[:0]
            if bad.size:
                raise DivergedError(
                    f"{name} became {bad[0]} in the {len(pending)} steps before step {step}: lower "
                    f"the learning rate, clip the gradient, or look at the logits in TensorBoard "
                    f"under {self._directory}"
                )
            if name == "student_updated":
                continue
            if name == "skipped":
                record[name] = int(skipped.sum())
            elif finite.any():
                # One of several heads may have been finite in no step.
                count = np.sum(finite, axis=0)
                mean = np.sum(values, axis=0, where=finite) / np.where(count, count, np.nan)
                record[name] = mean.astype(values.dtype).tolist()
        record |= extra
        if self._active:
            with (self._directory / _HISTORY).open("a") as file:
                file.write(json.dumps(record) + "\n")
            scalars = _scalars(record)
            for writer in self._writers.values():
                writer.scalars(step, scalars)
        return record

    def _check_skips(
        self, step: int, pending: Sequence[Mapping[str, Any]], skipped: np.ndarray, last: bool
    ) -> None:
        """Raises DivergedError where too many steps in a row were skipped, with what is known."""
        first = step - len(pending) + 1
        for index in range(len(pending)):
            if skipped[index]:
                self._skipped.append(first + index)
            elif len(self._skipped) >= self._max_skips:
                break
            else:
                self._skipped = []
        if len(self._skipped) < (min(2, self._max_skips) if last else self._max_skips):
            return
        found = _not_finite(pending[max(0, self._skipped[-1] - first)])
        told = ", ".join(f"{name} became {value}" for name, value in found.items())
        raise DivergedError(
            f"{told} in step {self._skipped[-1]}, and {len(self._skipped)} steps in a row were "
            f"skipped: lower the learning rate, clip the gradient, "
            + ("look at the data, or add steps" if last else "or look at the data"),
            self._skipped,
        )

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture `[H, W, 1 or 3]` in [-1, 1]; values outside are clipped."""
        pixels = to_bytes(picture)
        for writer in self._writers.values():
            writer.image(step, name, pixels)

    def close(self) -> None:
        """Ends the writers' runs."""
        for writer in self._writers.values():
            writer.close()


def _waited(metrics: Mapping[str, Any]) -> bool:
    """Whether a step left the student as it is, so that what it did not compute is NaN."""
    return not metrics.get("student_updated", 1)


_OF_EVERY_STEP = ("loss/discriminator", "gradient_norm/heads")
"""Losses and norms that a step has whether or not it updates the student."""


def _not_finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one step that are not finite, by name, with the place of a head behind it.

    Bands of t_hat without a sample are NaN as well and are left out, and so is what the step did
    not compute.
    """
    if _waited(metrics):
        metrics = {
            name: value
            for name, value in metrics.items()
            if not name.startswith(("loss", "gradient_norm")) or name in _OF_EVERY_STEP
        }
    return {
        name: value
        for name, value in _scalars(
            {name: np.asarray(value).tolist() for name, value in metrics.items()}
        ).items()
        if not np.isfinite(value) and "t_hat" not in name
    }


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by name; those of a list have their place behind the list's name."""
    scalars: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, list):
            scalars |= {f"{name}/{index:02d}": item for index, item in enumerate(value)}
        elif name != "step":
            scalars[name] = value
    return scalars


def _drop_partial_line(path: Path) -> None:
    """Cuts a history after its last whole record: a run may be killed while it writes one."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def read_history(directory: str | Path) -> list[dict[str, Any]]:
    """The records of a stage in order of step; of two of one step, after a resumed run, the later.

    Raises:
      DamagedError: a line is not one that `MetricWriter` writes.
    """
    path = Path(directory) / _HISTORY
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    records = {}
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        try:
            record = json.loads(line)
            _check_record(record)
        except (ValueError, RecursionError) as error:
            raise DamagedError(
                f"{path}, line {number}, is damaged ({error}): remove the line"
            ) from error
        records[record["step"]] = record
    return [record for _, record in sorted(records.items())]


def _check_record(record: Any) -> None:
    """Raises ValueError unless a record of the history is a step with numbers by name."""
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError("it has no step")
    for name, value in record.items():
        numbers = value if isinstance(value, list) and value else [value]
        # Whole numbers may be too large for a float.
        if not all(type(n) is float or (type(n) is int and abs(n) < 2**63) for n in numbers):
            raise ValueError(f"its {name} is not a number")
