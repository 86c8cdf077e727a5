"""What a run compiles when it starts, and when it starts again."""

import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import jax
import pytest
from quick_compilation import quick_flags

from ladd_jax import main
from ladd_jax.cli import run as command
from ladd_jax.training.metrics import read_history

ROOT = Path(__file__).parent.parent

# Processes as real as any, forked from one that has done the imports: seconds less for each.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "ladd_jax.main",
        "ladd_jax.cli.preflight",
        "ladd_jax.stages.distil",
        "ladd_jax.stages.evaluate",
    ]
)

TINY = [
    "--config=configs/digits.py",
    "--config.compilation_cache=compilation_cache",  # The default, which the demo sets off.
    "--config.stages=('encode', 'pretrain')",
    "--config.data.buckets=('8x8', '8x16')",
    "--config.data.examples=64",
    "--config.model.depth=2",
    "--config.model.width=16",
    "--config.pretrain.steps=6",
    "--config.pretrain.batch_size=16",
    "--config.checkpoint.every=3",
    "--config.log.every=3",
]


def _command(arguments, told):
    events = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
    os.chdir(ROOT)
    os.environ["XLA_FLAGS"] = quick_flags(devices=2)
    # Where tests keep programs: the run has a place of its own, or none.
    jax.config.update("jax_compilation_cache_dir", None)
    sys.argv = ["main", *arguments]
    try:
        command.run(main.main)
    finally:
        told.write_text(json.dumps(events))


def compiled_and_read(workdir, *arguments):
    """Programs that a run compiled, and that it read from disk."""
    told = workdir.parent / "events.json"
    process = PROCESSES.Process(
        target=_command, args=([*TINY, *arguments, f"--workdir={workdir}"], told)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    events = json.loads(told.read_text())
    names = ("cache_misses", "cache_hits")
    return tuple(events.get(f"/jax/compilation_cache/{name}", 0) for name in names)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run that is done, and what it compiled and read."""
    workdir = tmp_path_factory.mktemp("startup") / "run"
    return workdir, *compiled_and_read(workdir)


def losses(workdir):
    return {r["step"]: (r["loss"], r["gradient_norm"]) for r in read_history(workdir / "pretrain")}


@pytest.mark.slow
def test_a_run_that_starts_again_compiles_nothing_and_trains_the_same_bits(first):
    workdir, compiled, _ = first
    assert compiled
    before = losses(workdir)
    # As if it had been stopped after step 3.
    shutil.rmtree(workdir / "pretrain" / "checkpoints" / "6")
    (workdir / "pretrain" / "history.jsonl").unlink()
    compiled, read = compiled_and_read(workdir)
    assert not compiled and read
    assert losses(workdir) == {6: before[6]}
    # From its first step.
    shutil.rmtree(workdir / "pretrain")
    compiled, read = compiled_and_read(workdir)
    assert not compiled and read
    assert losses(workdir) == before


@pytest.mark.slow
def test_programs_are_kept_elsewhere_or_not_at_all(first, tmp_path):
    workdir, compiled, _ = first
    elsewhere = f"--config.compilation_cache={workdir / 'compilation_cache'}"
    only = "--config.stages=('encode',)"
    assert compiled_and_read(tmp_path / "a", elsewhere, only)[0] == 0
    assert not (tmp_path / "a" / "compilation_cache").exists()
    assert compiled_and_read(tmp_path / "b", "--config.compilation_cache=", only) == (0, 0)
    assert not (tmp_path / "b" / "compilation_cache").exists()
