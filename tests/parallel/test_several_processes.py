"""Real processes, talking over the loopback, make what one process makes."""

import collections
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import encode_job
import jax
import numpy as np
import pytest
import quick_compilation
import stopped_job
import tiny
import tiny_job
from damage import damage_within
from PIL import Image

from ladd_jax.data.shards import Shards
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.parallel.stopping import EXIT_CODE
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.metrics import read_history
from ladd_jax.training.state import abstract_like

ROOT = Path(__file__).parents[2]
DEVICES = 4
LEARNT = ("loss/", "gradient_norm/", "logit/", "accuracy", "x0_hat_std")
"""Metrics of the training itself; the others tell how fast it went."""


def launch(processes, *command):
    """A job of four devices over this many processes; returns what it printed."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    result = subprocess.run(
        [
            ROOT / "launch" / "local_processes.sh", "-d", str(DEVICES // processes),
            str(processes), *command,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        env=os.environ | {
            "PYTHONPATH": paths, "XLA_FLAGS": quick_compilation.QUICK,
            # Threads of XLA on CPU, which decide how it splits a sum: else as many as there are
            # cores or devices of a process, whichever are more.
            "NPROC": str(DEVICES),
        },
    )  # fmt: skip
    return result


def launched(processes, *command):
    result = launch(processes, *command)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tiny_train(processes, shards, directory, steps, sizes):
    script = Path(tiny_job.__file__)
    launched(processes, sys.executable, script, shards, directory, str(steps), json.dumps(sizes))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    tiny_job.write_shards(directory)
    return directory


@pytest.fixture(scope="module")
def one(shards, tmp_path_factory):
    """Four steps, an epoch, of one process."""
    directory = tmp_path_factory.mktemp("one")
    tiny_job.run(shards, directory, 4, make_mesh({"data": 1}, jax.devices()[:1]))
    return directory


def state_of(directory, step):
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    _, _, shapes, shardings = tiny_job.setup(mesh)
    checkpoints = Checkpoints(directory / "checkpoints")
    state = checkpoints.restore(abstract_like(shapes, shardings), step)
    checkpoints.close()
    return state


def assert_same_training(directory, one):
    """Sums over devices round in another order; all else is the same."""
    a, b = state_of(directory, 4), state_of(one, 4)
    for name in ("params", "ema", "heads"):
        assert tiny.max_difference(getattr(a, name), getattr(b, name)) < 1e-5
    for name in ("optimizer", "heads_optimizer"):
        mu = (getattr(state, name)[0].mu for state in (a, b))
        assert tiny.max_difference(*mu) < 1e-4
    history, expected = read_history(directory), read_history(one)
    assert [record["step"] for record in history] == [1, 2, 3, 4]
    for record, wanted in zip(history, expected, strict=True):
        names = [name for name in wanted if name.startswith(LEARNT)]
        assert len(names) > 6
        for name in names:
            np.testing.assert_allclose(record[name], wanted[name], rtol=1e-3, atol=1e-4)


def read(directory, steps):
    paths = sorted(directory.glob(f"read.{steps}.*"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(shards, one, tmp_path):
    tiny_train(2, shards, tmp_path, 1, {"data": 2, "fsdp": 2})
    tiny_train(4, shards, tmp_path, 3, {"fsdp": 4})
    tiny_train(1, shards, tmp_path, 4, {"data": 2, "fsdp": 2})
    assert_same_training(tmp_path, one)
    keys = itertools.chain(*(itertools.chain(*read(tmp_path, steps)) for steps in (1, 3, 4)))
    assert set(collections.Counter(keys).values()) == {1}


@pytest.mark.slow
def test_processes_that_share_a_batch_read_the_same_rows_of_it(shards, one, tmp_path):
    tiny_train(4, shards, tmp_path, 4, {"fsdp": 2, "tensor": 2})
    assert_same_training(tmp_path, one)
    first, second, third, fourth = read(tmp_path, 4)
    assert first == second and third == fourth and not set(first) & set(third)


@pytest.mark.slow
def test_slices_of_two_processes_each_train_as_one_process_does(shards, one, tmp_path):
    tiny_train(4, shards, tmp_path, 4, {"data": 2, "fsdp": 2, "slices": 2})
    assert_same_training(tmp_path, one)
    # Between them they have read every record of the epoch once; a slice is a half of the batch.
    parts = read(tmp_path, 4)
    assert [len(part) for part in parts] == [8, 8, 8, 8]
    assert len(set(itertools.chain(*parts))) == tiny_job.RECORDS
    first, second, third, fourth = map(set, parts)
    assert not (first | second) & (third | fourth)
    # One history, one file of events: those of the first process.
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 4
    assert len(list(tmp_path.glob("events.out.*"))) == 1


@pytest.mark.slow
def test_only_data_goes_from_slice_to_slice(tmp_path):
    script = tmp_path / "slices.py"
    script.write_text(
        "import jax\n"
        "from ladd_jax.parallel import processes\n"
        "from ladd_jax.parallel.mesh import make_mesh\n"
        "with processes.together(60.0):\n"
        "    mesh = make_mesh({'data': 4, 'fsdp': -1, 'slices': 2})\n"
        "    if jax.process_index() == 0:\n"
        "        print([sorted({d.process_index for d in row.flat}) for row in mesh.devices])\n"
        "    processes.barrier('done')\n"
    )
    assert "[[0], [0], [1], [1]]" in launched(2, sys.executable, script)


TINY = [
    "--config=configs/digits.py",
    "--config.data.examples=40",
    "--config.data.buckets=('8x8',)",
    "--config.data.records_per_shard=12",
    "--config.model.depth=1",
    "--config.model.width=16",
    "--config.heads.channels=8",
    "--config.pretrain.steps=4",
    "--config.pretrain.batch_size=16",
    "--config.synthesize.samples=20",
    "--config.synthesize.batch_size=8",
    "--config.synthesize.records_per_shard=8",
    "--config.synthesize.steps=2",
    "--config.finetune.steps=4",
    "--config.finetune.batch_size=16",
    "--config.distil.steps=4",
    "--config.distil.batch_size=16",
    "--config.distil.head_updates=1",
    "--config.distil.r1_gamma=0.0",
    "--config.distil.loss=relativistic",
    "--config.distil.paired_weight=0.5",
    "--config.evaluate.samples=20",
    "--config.evaluate.per_prompt=2",
    "--config.data.held_out_examples=40",
    "--config.evaluate.teacher_steps=(2,)",
    "--config.evaluate.student_steps=(1,)",
    "--config.log.every=2",
    "--config.log.samples_every=2",
    "--config.mesh.fsdp=2",
]


# Of judges that are alike, since all jobs have as many threads: what the teacher samples is the
# same to 1e-4.
JUDGES = 1e-3


def command(processes, workdir, module="ladd_jax.main"):
    return launched(processes, sys.executable, "-m", module, *TINY, f"--workdir={workdir}")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The whole job by one process and by two: workdir and what was printed, by their number."""
    made = {}
    for processes in (1, 2):
        workdir = tmp_path_factory.mktemp("job") / "run"
        made[processes] = (workdir, command(processes, workdir))
    return made


def records(workdir, stage):
    shards = Shards(workdir / stage)
    return {bucket: shards.read(bucket, np.arange(size)) for bucket, size in shards.sizes.items()}


def test_each_picture_is_decoded_by_one_process_and_once(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(40):
        size = (24 if i % 4 else 46, 24)
        Image.new("L", size, 5 * i).save(pictures / f"{i}.{'png' if i % 2 else 'jpg'}")
        (pictures / f"{i}.txt").write_text(f"grey {i}")
    # One that is cut, which is left out.
    cut = pictures / "0.jpg"
    cut.write_bytes(cut.read_bytes()[:-10])
    for processes in (1, 2):
        workdir = tmp_path / f"run{processes}"
        launched(processes, sys.executable, encode_job.__file__, pictures, workdir)
        told = [json.loads(path.read_text()) for path in tmp_path.glob("run?.decoded.*")]
        assert len(told) == processes and all(told)
        digests = collections.Counter(itertools.chain(*told))
        assert len(digests) == 40 and set(digests.values()) == {1}
        for path in tmp_path.glob("run?.decoded.*"):
            path.unlink()
    for stage in ("encoded", "held_out"):
        one, two = (records(tmp_path / name, stage) for name in ("run1", "run2"))
        assert one.keys() == two.keys()
        for bucket, found in one.items():
            jax.tree.map(np.testing.assert_array_equal, found, two[bucket])
    for name in ("run1", "run2"):
        left_out = json.loads((tmp_path / name / "unreadable.jsonl").read_text())
        assert left_out["key"] == "0" and "cut" in left_out["reason"]


@pytest.mark.slow
def test_a_job_of_two_leaves_a_damaged_picture_out_when_it_is_started_again(tmp_path):
    pictures, workdir = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for i in range(40):
        Image.new("L", (24, 24), 5 * i).save(pictures / f"{i}.jpg")
        (pictures / f"{i}.txt").write_text(f"grey {i}")
    damage_within(pictures / "7.jpg")
    command = (sys.executable, encode_job.__file__, pictures, workdir)
    first = launch(2, *command)
    assert first.returncode
    words = "picture 7 cannot be decoded .*: run the same command .* all .* leaves this one out"
    assert re.search(words, first.stderr)
    launched(2, *command)
    prompts = [
        prompt
        for stage in ("encoded", "held_out")
        for record in records(workdir, stage).values()
        for prompt in record["prompt"]
    ]
    assert sorted(prompts) == sorted(f"grey {i}" for i in range(40) if i != 7)


def rows(workdir):
    return json.loads((workdir / "metrics.json").read_text())["rows"]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "size"), [("encoded", 40), ("synthesized", 20)])
def test_two_processes_write_each_record_of_one_once(jobs, stage, size):
    (one, _), (two, _) = jobs[1], jobs[2]
    whole = records(one, stage)
    assert {len(record["key"]) for record in whole.values()} == {size}
    for bucket, shared in records(two, stage).items():
        for name in ("key", "prompt"):
            assert shared[name] == whole[bucket][name]
        assert len(set(shared["key"])) == size
        wanted = whole[bucket]
        np.testing.assert_allclose(shared["latents"], wanted["latents"], atol=1e-4)
        for name in ("context", "pooled"):
            np.testing.assert_allclose(shared["cond"][name], wanted["cond"][name], atol=1e-4)
    files = {path.relative_to(one) for path in (one / stage).rglob("*")}
    assert files == {path.relative_to(two) for path in (two / stage).rglob("*")}


@pytest.mark.slow
def test_two_processes_end_in_the_report_of_one(jobs):
    (one, said), (two, said_by_two) = jobs[1], jobs[2]
    # One table, by the first process; without what names the workdir.
    assert said_by_two.count("report:") == said.count("report:") == 1
    for row, wanted in zip(rows(two), rows(one), strict=True):
        for name in ("model", "steps", "bucket"):
            assert row[name] == wanted[name]
        for name in ("fd", "alignment", "diversity"):
            assert row["values"][name] == pytest.approx(wanted["values"][name], rel=JUDGES)
    for workdir in (one, two):
        assert (workdir / "report.html").exists() and (workdir / "samples.png").exists()
        for stage in ("pretrain", "finetune", "distil"):
            assert [record["step"] for record in read_history(workdir / stage)] == [2, 4]
            assert len(list((workdir / stage).glob("events.out.*"))) == 1


@pytest.mark.slow
def test_four_processes_evaluate_what_two_have_trained(jobs):
    workdir, _ = jobs[2]
    expected = rows(workdir)
    (workdir / "metrics.json").unlink()
    command(4, workdir, "ladd_jax.evaluate")
    for row, wanted in zip(rows(workdir), expected, strict=True):
        assert row["values"]["fd"] == pytest.approx(wanted["values"]["fd"], rel=JUDGES)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.seed=$JAX_PROCESS_ID", "process 1 has a different config from process 0"),
        ("--config.distil.batch_size=3", "batch_size 3 is not divisible by 4"),
    ],
)
def test_an_error_ends_all_processes_with_one_sentence(tmp_path, flag, words):
    flags = f"--config=configs/digits.py --workdir={tmp_path / 'run'} --config.mesh.fsdp=2 {flag}"
    script = f"exec {sys.executable} -m ladd_jax.main {flags}"
    result = launch(2, "bash", "-c", script)
    assert result.returncode == 2, result.stderr
    assert f"error: {words}" in result.stderr and "Traceback" not in result.stderr


def test_a_workdir_that_the_others_do_not_see_is_an_error(tmp_path):
    script = (
        f"exec {sys.executable} -m ladd_jax.main --config=configs/digits.py "
        f"--workdir={tmp_path}/$JAX_PROCESS_ID"
    )
    result = launch(2, "bash", "-c", script)
    assert result.returncode == 2, result.stderr
    assert "process 1 does not see" in result.stderr


@pytest.mark.parametrize(
    ("silent", "words"),
    [(0, "process 1 ends, since process 0 at .* did not answer"),
     (1, r"process 0 ends, since process 1 \(\d+ on .*\) gave no sign of life")],
)  # fmt: skip
def test_a_process_that_stands_still_is_named_by_the_other_which_ends(tmp_path, silent, words):
    script = tmp_path / "silent.py"
    script.write_text(
        "import os, signal, jax\n"
        "from ladd_jax.parallel import liveness, processes\n"
        "liveness.LOST_SECONDS, liveness._BEAT_SECONDS = 5.0, 0.25\n"
        "with processes.together(60.0):\n"
        "    processes.barrier('begun')\n"
        f"    if jax.process_index() == {silent}:\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    processes.barrier('done')\n"
    )
    result = launch(2, sys.executable, script)
    assert result.returncode == 1, result.stderr
    assert re.search(words, result.stderr)


HANGING = """
import sys, time, jax
from ladd_jax.parallel import liveness, processes
from ladd_jax.parallel.mesh import make_mesh
liveness.LOST_SECONDS, liveness.READING_SECONDS, liveness._BEAT_SECONDS = 5.0, {reading}, 0.25
def wait(step, seconds=600):
    if step == 5 and jax.process_index() == 1:
        time.sleep(seconds)
def data():
    for step, (bucket, batch) in enumerate(batches(0, {steps}), 1):
        {in_data}
        yield bucket, jax.tree.map(lambda rows: rows[: len(rows) // 2], batch)
with processes.together(60.0):
    from counting import go
    from ladd_jax.training import loop
    from runs import batches
    from pathlib import Path
    put, puts = loop.put, iter(range(1, {steps} + 1))
    def hanging_put(batch, mesh):
        {in_put}
        return put(batch, mesh)
    loop.put = hanging_put
    mesh = make_mesh(dict(data=-1))
    go(Path(sys.argv[1]), data=data(), steps={steps}, mesh=mesh)
"""
IN_DATA = dict(in_data="wait(step)", in_put="pass")
IN_PUT = dict(in_data="pass", in_put="wait(next(puts))")


@pytest.mark.parametrize(
    ("where", "reading", "warned"),
    [(IN_DATA, 8.0, True), (IN_PUT, 600.0, False)],
    ids=["in its data", "elsewhere"],
)
def test_a_process_that_hangs_in_training_is_named_and_all_end(tmp_path, where, reading, warned):
    script = tmp_path / "hanging.py"
    script.write_text(HANGING.format(reading=reading, steps=400, **where))
    result = launch(2, sys.executable, script, tmp_path)
    assert result.returncode == 1, result.stderr
    words = r"process 1 \(\d+ on .*\) hangs after step 4, for \d+ seconds now, in wait \("
    warning = re.search(rf"warning: {words}.*: all wait for it", result.stderr)
    assert bool(warning) == warned, result.stderr
    # On a line of its own, and not behind the progress bar.
    assert re.search(rf"^error: .* ends, since {words}", result.stderr, re.M), result.stderr
    assert "Traceback" not in result.stderr, result.stderr


def test_a_process_whose_data_come_at_last_goes_on(tmp_path):
    script = tmp_path / "slow.py"
    # Longer than a process may hang elsewhere; the step that follows takes a while, too.
    waits = dict(in_data="wait(step, 8)", in_put="wait(next(puts), 3)")
    script.write_text(HANGING.format(reading=600.0, steps=8, **waits))
    result = launch(2, sys.executable, script, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "all wait for it" in result.stderr, result.stderr


@pytest.mark.parametrize(("process", "name"), [(0, "SIGINT"), (1, "SIGTERM")])
def test_a_signal_to_one_process_ends_all_after_the_same_step_with_its_checkpoint(
    tmp_path, process, name
):
    script = Path(stopped_job.__file__)
    result = launch(2, sys.executable, script, tmp_path, str(process), name)
    assert result.returncode == EXIT_CODE, result.stderr
    (step,) = (path.name for path in (tmp_path / "checkpoints").iterdir())
    assert 5 <= int(step) < 400
    assert f"goes on from step {step} of test" in result.stderr
    assert read_history(tmp_path)[-1]["step"] == int(step)
    assert "Traceback" not in result.stderr, result.stderr


def test_of_processes_that_are_all_sent_a_signal_none_counts_as_lost(tmp_path):
    script = tmp_path / "told.py"
    script.write_text(
        "import os, signal, time\n"
        "import jax\n"
        "from ladd_jax.parallel import processes\n"
        "with processes.together(60.0):\n"
        "    processes.barrier('begun')\n"
        "    if jax.process_index() == 1:\n"
        "        time.sleep(600)\n"
        # As where the other one has left: Python sees a signal only after the computation.
        "    try:\n"
        "        raise ValueError('UNKNOWN: Gloo AllGather failed: Connection closed by peer')\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    result = launch(2, sys.executable, script)
    assert result.returncode == EXIT_CODE, result.stderr
    assert "stopped by SIGTERM: the same command goes on" in result.stderr
    assert "lost another process" not in result.stderr


def test_a_process_that_loses_another_says_so_in_one_sentence(tmp_path):
    script = tmp_path / "lost.py"
    script.write_text(
        "import os, jax\n"
        "from ladd_jax.parallel import processes\n"
        "with processes.together(60.0):\n"
        "    processes.barrier('begun')\n"
        "    if jax.process_index() == 1:\n"
        "        raise SystemExit(3)\n"
        "    processes.barrier('done')\n"
    )
    result = launch(2, sys.executable, script)
    # The code is that of the process that knows why, though the other is the one on the terminal.
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
