"""Pictures of a student from while it trained: a PNG for each step, number of steps and bucket."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ladd_jax.evaluation.pictures import png
from ladd_jax.whole_files import write_whole

_NAME = re.compile(r"(\d+)_(\d+)steps_(\d+x\d+)\.png")
_SIDE = 180


class Preview(NamedTuple):
    """What a student made at a step of its training.

    Attributes:
      step: step of the training.
      steps: sampling steps.
      bucket: rows x columns.
      png: the picture, samples of a prompt in a row.
    """

    step: int
    steps: int
    bucket: str
    png: bytes


def save_preview(folder: Path, step: int, steps: int, bucket: str, picture: np.ndarray) -> None:
    """Writes a PNG, whole; small pictures are enlarged.

    Args:
      folder: where; made if it is not there.
      step: step of the training.
      steps: sampling steps.
      bucket: rows x columns.
      picture: `[H, W, 1 or 3]` in [-1, 1].
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step:06d}_{steps}steps_{bucket}.png"
    data = png(picture, max(1, _SIDE // max(picture.shape[:2])))
    write_whole(path, lambda file: file.write(data))


def read_previews(folder: Path, count: int = 5) -> list[Preview]:
    """Previews of a few steps, evenly spread, the first and the last among them, in order.

    Args:
      folder: where they were saved; there may be none.
      count: how many steps of the training, at most; 2 or more.
    """
    found = []
    for path in folder.glob("*.png"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), int(match[2]), match[3], path))
    steps = sorted({step for step, *_ in found})
    if len(steps) > count:
        steps = [steps[i * (len(steps) - 1) // (count - 1)] for i in range(count)]
    return [
        Preview(step, number, bucket, path.read_bytes())
        for step, number, bucket, path in sorted(found)
        if step in steps
    ]
