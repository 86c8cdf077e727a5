"""What a writer is: a place that shows numbers and pictures of a training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ladd_jax.whole_files import write_text_whole


class Writer(Protocol):
    """Shows what it is given, under names with `/` between a group and its members."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, by name."""
        ...

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 `[H, W, 1 or 3]`."""
        ...

    def close(self) -> None:
        """Waits until all is written; the training is done."""
        ...


def kept_id(directory: Path, name: str) -> str | None:
    """The number of the run that a writer of this name began for a directory, if it did."""
    path = _path(directory, name)
    return path.read_text().strip() if path.exists() else None


def keep_id(directory: Path, name: str, run: str) -> None:
    """Keeps the number of a writer's run, for the training when it is resumed."""
    write_text_whole(_path(directory, name), f"{run}\n")


def title(directory: Path) -> str:
    """What a run of a directory is called: the workdir's name and the stage's."""
    return "/".join(directory.absolute().parts[-2:])


def _path(directory: Path, name: str) -> Path:
    return directory / f"{name}_run.txt"
