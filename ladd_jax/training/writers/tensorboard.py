"""TensorBoard: event files in the folder of the training."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.training.writers.base import Writer

# tensorboardX imports torch wherever it is installed: seconds and a gigabyte that training has no
# use for. A module that is None in `sys.modules` counts as not installed.
_HIDE_TORCH = "torch" not in sys.modules
if _HIDE_TORCH:
    sys.modules["torch"] = None  # type: ignore[assignment]
from tensorboardX import SummaryWriter  # noqa: E402

if _HIDE_TORCH:
    del sys.modules["torch"]


class TensorBoard:
    """See `Writer`. Each start of a training has an event file; TensorBoard joins them."""

    def __init__(self, directory: Path):
        self._board = SummaryWriter(str(directory))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer`."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """See `Writer`."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """See `Writer`."""
        self._board.close()


def open_writer(directory: Path, config: Mapping[str, Any]) -> Writer:
    """A writer of event files; they hold no config."""
    del config
    return TensorBoard(directory)
