"""Previews of a student in training: a PNG for each training step, number of steps and bucket."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ladd_jax.evaluation.pictures import png
from ladd_jax.whole_files import write_whole

_NAME = re.compile(r"(\d+)_(\d+)steps_(\d+x\d+)\.png")
_SIDE = 180


class Preview(NamedTuple):
    """Samples of a student at a step of its training.

    Attributes:
      step: step of the training.
      steps: number of sampling steps.
      bucket: rows x columns of the bucket.
      png: the picture, with the samples of a prompt in a row.
    """

    step: int
    steps: int
    bucket: str
    png: bytes


def save_preview(folder: Path, step: int, steps: int, bucket: str, picture: np.ndarray) -> None:
    """Writes a PNG atomically; small pictures are enlarged.

    Args:
      folder: folder to write to; it is created if necessary.
      step: step of the training.
      steps: number of sampling steps.
      bucket: rows x columns of the bucket.
      picture: `[H, W, 1 or 3]` in [-1, 1].
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step:06d}_{steps}steps_{bucket}.png"
    data = png(picture, max(1, _SIDE // max(picture.shape[:2])))
    write_whole(path, lambda file: file.write(data))


def read_previews(folder: Path, count: int = 5) -> list[Preview]:
    """Previews of a few evenly spread training steps, including the first and the last, in order.

    Args:
      folder: folder that they were saved in, which need not exist.
      count: largest number of training steps, 2 or more.
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
