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
    """A loss or a gradient is not a finite number."""


class MetricWriter:
    """Writes the mean of the metrics since the last write. Only the first process writes."""

    def __init__(
        self,
        directory: str | Path,
        writers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ):
        """Opens the writers, in the first process.

        Args:
          directory: folder of the training; made if it is not there.
          writers: names of `training.writers`, which get what the history gets, and pictures.
          config: the run's config, for writers that show it.

        Raises:
          UserError: a writer is unknown, or its client is not installed.
        """
        self._directory = Path(directory)
        self._pending: list[dict[str, jax.Array]] = []
        self._active = jax.process_index() == 0
        self._writers: dict[str, Writer] = {}
        if self._active:
            self._directory.mkdir(parents=True, exist_ok=True)
            _drop_partial_line(self._directory / _HISTORY)
            self._writers = open_writers(writers, self._directory, config or {})

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Keeps one step's metrics, on the device: no transfer."""
        self._pending.append(metrics)

    def write(self, step: int, extra: dict[str, float]) -> dict[str, Any]:
        """Averages, checks and writes what was added, with `extra` beside it.

        Returns:
          name -> float, or list of floats for a metric per head.

        Raises:
          DivergedError: a loss or a gradient norm is NaN or infinite.
        """
        pending, self._pending = jax.device_get(self._pending), []
        record: dict[str, Any] = {"step": step}
        for name in pending[0]:
            values = np.stack([metrics[name] for metrics in pending])
            # A band of t_hat that no sample fell into is NaN in that step and has no mean.
            finite = np.isfinite(values)
            if name.startswith(("loss", "gradient_norm")) and not finite.all():
                raise DivergedError(
                    f"{name} became {values[~finite][0]} in the {len(pending)} steps before step "
                    f"{step}: lower the learning rate, clip the gradient, or look at the logits "
                    f"in TensorBoard under {self._directory}"
                )
            if finite.any():
                mean = np.mean(values, axis=0, where=finite)
                record[name] = mean.tolist()
        record |= extra
        if self._active:
            with (self._directory / _HISTORY).open("a") as file:
                file.write(json.dumps(record) + "\n")
            scalars = _scalars(record)
            for writer in self._writers.values():
                writer.scalars(step, scalars)
        return record

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture `[H, W, 1 or 3]` in [-1, 1]; values outside are clipped."""
        pixels = to_bytes(picture)
        for writer in self._writers.values():
            writer.image(step, name, pixels)

    def close(self) -> None:
        """Ends the writers' runs."""
        for writer in self._writers.values():
            writer.close()


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by name; those of one list have their place behind its name."""
    scalars: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, list):
            scalars |= {f"{name}/{index:02d}": item for index, item in enumerate(value)}
        elif name != "step":
            scalars[name] = value
    return scalars


def _drop_partial_line(path: Path) -> None:
    """Ends a history at its last whole record: a run may be killed while it writes one."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def read_history(directory: str | Path) -> list[dict[str, Any]]:
    """The records of a stage in order of step; after a resumed run the later record of a step."""
    path = Path(directory) / _HISTORY
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    records = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            records[int(record["step"])] = record
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{path}, line {number}, is damaged ({error}): remove the line"
            ) from error
    return [record for _, record in sorted(records.items())]
