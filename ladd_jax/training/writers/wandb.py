"""Weights & Biases, by its own client."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from ladd_jax.training.writers.base import Writer, keep_id, kept_id, title

_PROJECT = "ladd_jax"


class WandB:
    """See `Writer`. One run for a training, however often that is stopped and resumed.

    The client's own variables hold: WANDB_PROJECT and WANDB_ENTITY, WANDB_MODE=offline, and the
    others.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]):
        run = kept_id(directory, "wandb")
        if run is None:
            run = uuid.uuid4().hex
            keep_id(directory, "wandb", run)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=title(directory),
            id=run,
            resume="allow",
            dir=directory,
            config=dict(config),
        )
        # A resumed training writes some steps again, which the client's own count of steps refuses.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer`."""
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """See `Writer`."""
        shown = picture[..., 0] if picture.shape[-1] == 1 else picture
        self._run.log({"step": step, name: wandb.Image(shown)})

    def close(self) -> None:
        """See `Writer`."""
        self._run.finish()


def open_writer(directory: Path, config: Mapping[str, Any]) -> Writer:
    """The run of a directory, begun or gone on with."""
    return WandB(directory, config)
