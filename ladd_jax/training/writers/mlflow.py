"""MLflow, by its own client."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from ladd_jax.training.writers.base import Writer, keep_id, kept_id, title

_EXPERIMENT = "ladd_jax"


class MLflow:
    """See `Writer`. One run for a training, however often that is stopped and resumed.

    The client's own variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, and the others.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]):
        self._client = MlflowClient()
        run = kept_id(directory, "mlflow")
        if run is None:
            run = self._begin(title(directory))
            keep_id(directory, "mlflow", run)
            self._client.log_dict(run, dict(config), "config.json")
        self._client.update_run(run, status="RUNNING")
        self._run = run

    def _begin(self, name: str) -> str:
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(wanted)
        experiment = found.experiment_id if found else str(self._client.create_experiment(wanted))
        return str(self._client.create_run(experiment, run_name=name).info.run_id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer`."""
        now = int(1000 * time.time())
        self._client.log_batch(
            self._run, [Metric(name, value, now, step) for name, value in values.items()]
        )

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """See `Writer`."""
        self._client.log_image(self._run, picture, key=name, step=step)

    def close(self) -> None:
        """See `Writer`."""
        self._client.set_terminated(self._run)


def open_writer(directory: Path, config: Mapping[str, Any]) -> Writer:
    """The run of a directory, begun or gone on with."""
    return MLflow(directory, config)
