"""What a training tells reaches every writer, and a resumed training goes on in the same run."""

import importlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ladd_jax.config.fields import Log
from ladd_jax.errors import UserError
from ladd_jax.training.metrics import MetricWriter, read_history
from ladd_jax.training.writers import WRITERS, Entry, check_writers


def tell(directory, step, writers, picture=None):
    """One start of a training, with one record."""
    writer = MetricWriter(directory, writers, {"seed": 3})
    writer.add({"loss": jnp.asarray(float(step)), "logit": jnp.asarray([0.25, 0.5])})
    writer.write(step, {"preview/fd/1": step + 0.125})
    if picture is not None:
        writer.image(step, "preview/8x8/1", picture)
    writer.close()


PICTURE = np.linspace(-1.5, 1.5, 4 * 6 * 3).reshape(4, 6, 3)


def test_a_writer_that_there_is_not_is_named_with_those_there_are():
    with pytest.raises(UserError, match="'paper' is not one of tensorboard, wandb, mlflow"):
        Log(writers=("paper",))


def test_a_writer_whose_client_is_missing_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(WRITERS, "wandb", Entry("nowhere", "not_installed", "wandb"))
    with pytest.raises(UserError, match=r"pip install ladd_jax\[wandb\]"):
        check_writers(("tensorboard", "wandb"))
    with pytest.raises(UserError, match="not_installed is not installed"):
        MetricWriter(tmp_path, ("wandb",))


def test_a_writer_of_another_package_has_no_extra_of_this_one(monkeypatch):
    monkeypatch.setitem(WRITERS, "theirs", Entry("nowhere", "not_installed", ""))
    with pytest.raises(UserError, match="run `pip install not_installed`, or leave it out"):
        check_writers(("theirs",))


def test_without_writers_there_is_still_a_history(tmp_path):
    tell(tmp_path, 2, (), PICTURE)
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    assert read_history(tmp_path)[0]["preview/fd/1"] == 2.125


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    tell(tmp_path, 2, ("tensorboard",), PICTURE)
    assert not list(tmp_path.iterdir())


def test_tensorboard_is_given_numbers_and_pictures(tmp_path, monkeypatch):
    from ladd_jax.training.writers import tensorboard

    told = {}

    class Board:
        def __init__(self, directory):
            told["directory"] = directory

        def add_scalar(self, name, value, step):
            told[name] = (value, step)

        def add_image(self, name, picture, step, dataformats):
            told[name] = (picture, step, dataformats)

        def close(self):
            told["closed"] = True

    monkeypatch.setattr(tensorboard, "SummaryWriter", Board)
    tell(tmp_path, 2, ("tensorboard",), PICTURE)
    picture, *rest = told.pop("preview/8x8/1")
    assert rest == [2, "HWC"] and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.round((np.clip(PICTURE, -1, 1) + 1) * 127.5))
    assert told == {
        "directory": str(tmp_path), "loss": (2.0, 2), "logit/00": (0.25, 2), "logit/01": (0.5, 2),
        "preview/fd/1": (2.125, 2), "closed": True,
    }  # fmt: skip


def installed(client):
    """The clients are no part of the tests' requirements: they would add dozens of packages."""
    return pytest.mark.skipif(
        importlib.util.find_spec(client) is None, reason=f"{client} is not installed"
    )


@installed("wandb")
def test_wandb_has_one_run_for_a_training_that_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (2, 4):
        tell(tmp_path, step, ("wandb",), PICTURE)
        # Its service writes until the process ends.
        importlib.import_module("wandb").teardown()
    run = (tmp_path / "wandb_run.txt").read_text().strip()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == [run, run]
    for folder, step in zip(folders, (2, 4), strict=True):
        (log,) = folder.glob("*.wandb")
        data = log.read_bytes()
        assert b"preview/fd/1" in data and f"{step}.125".encode() in data
        assert len(list(folder.rglob("*.png"))) == 1


@installed("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_one_run_for_a_training_that_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    # Newer clients want a database, or to be told so.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    stage = tmp_path / "run" / "distil"
    for step in (2, 4):
        tell(stage, step, ("mlflow",), PICTURE)
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("ladd_jax").experiment_id])
    assert run.info.run_id == (stage / "mlflow_run.txt").read_text().strip()
    assert (run.info.run_name, run.info.status) == ("run/distil", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "preview/fd/1")
    assert [(metric.step, metric.value) for metric in history] == [(2, 2.125), (4, 4.125)]
    files = {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert json.loads(next((tmp_path / "store").rglob("config.json")).read_text()) == {"seed": 3}
    assert len([name for name in files if name.endswith(".png")]) == 2
