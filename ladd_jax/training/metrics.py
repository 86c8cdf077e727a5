"""Where metrics go: TensorBoard, a file of JSON lines, the progress bar."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ladd_jax.errors import UserError

# tensorboardX imports torch wherever it is installed: seconds and a gigabyte that training has no
# use for. A module that is None in `sys.modules` counts as not installed.
_HIDE_TORCH = "torch" not in sys.modules
if _HIDE_TORCH:
    sys.modules["torch"] = None  # type: ignore[assignment]
from tensorboardX import SummaryWriter  # noqa: E402

if _HIDE_TORCH:
    del sys.modules["torch"]


_HISTORY = "history.jsonl"


class DivergedError(UserError):
    """A loss or a gradient is not a finite number."""


class MetricWriter:
    """Writes the mean of the metrics since the last write. Only the first process writes."""

    def __init__(self, directory: str | Path):
        self._directory = Path(directory)
        self._pending: list[dict[str, jax.Array]] = []
        self._active = jax.process_index() == 0
        self._board: SummaryWriter | None = None
        if self._active:
            self._directory.mkdir(parents=True, exist_ok=True)
            _drop_partial_line(self._directory / _HISTORY)
            self._board = SummaryWriter(str(self._directory))

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
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, list):
                    for index, item in enumerate(value):
                        self._board.add_scalar(f"{name}/{index:02d}", item, step)
                elif name != "step":
                    self._board.add_scalar(name, value, step)
            with (self._directory / _HISTORY).open("a") as file:
                file.write(json.dumps(record) + "\n")
        return record

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """A grid of images `[rows, columns, H, W, C]` in [-1, 1]."""
        if self._board is not None:
            rows, columns, h, w, c = images.shape
            grid = images.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)
            self._board.add_image(name, np.clip(grid * 0.5 + 0.5, 0, 1), step, dataformats="HWC")

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self._board is not None:
            self._board.close()


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
    records = [json.loads(line) for line in whole.splitlines()]
    return [record for _, record in sorted({r["step"]: r for r in records}.items())]
