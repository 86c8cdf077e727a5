"""What would stop a run late is told before it starts, all of it at once."""

import errno
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

import jax
import pytest

from configs import digits
from ladd_jax.cli import disk_space, flags
from ladd_jax.cli.disk_space import check_space, check_writable, stage_bytes
from ladd_jax.cli.inputs import count_records
from ladd_jax.cli.preflight import check, look
from ladd_jax.config import objectives
from ladd_jax.config.fields import partly_typed, typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.sources import SOURCES, Kind
from ladd_jax.data.sources.chosen_buckets import buckets_for
from ladd_jax.data.sources.fill_buckets import readers
from ladd_jax.errors import Problems, UserError, UserErrors


def problems_of(config, workdir=None):
    problems = Problems()
    found, refused = partly_typed(config)
    for errors in refused.values():
        for error in errors:
            problems.add(error)
    look(found, problems, workdir, refused)
    with pytest.raises(UserError) as raised:
        problems.tell()
    error = raised.value
    return error.problems if isinstance(error, UserErrors) else (str(error),)


def test_problems_of_all_kinds_are_told_at_once(tmp_path):
    (tmp_path / "run").touch()
    config = digits.get_config()
    config.seed = -1
    config.mesh.fsdp = 64
    config.log.every = 0
    config.log.samples_every = -1
    config.synthesize.samples = 3
    config.evaluate.per_prompt = 1
    found = problems_of(config, tmp_path / "run")
    for words in (
        "seed is -1", "needs 64 devices", "log.every is 0", "log.samples_every is -1",
        "synthesize.samples 3 are fewer", "needs 2: raise it", "is a file: name a directory",
    ):  # fmt: skip
        assert any(words in sentence for sentence in found), words
    assert len(found) == len(set(found))


def test_what_follows_from_a_refused_field_is_not_told():
    config = digits.get_config()
    config.distil.batch_size = 0
    assert problems_of(config) == ("distil.batch_size is 0: use 1 or more",)


def test_several_problems_are_a_line_each_and_one_is_a_sentence(capsys):
    for error in (UserErrors(("a is 1: use 2", "b is\n3: use 4")), UserError("a is 1: use 2")):
        with pytest.raises(SystemExit) as raised:
            flags.fail(error)
        assert raised.value.code == 2
    assert capsys.readouterr().err == (
        "error: 2 problems:\n- a is 1: use 2\n- b is 3: use 4\nerror: a is 1: use 2\n"
    )


def prompts(tmp_path, count):
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"prompt {i}\n" for i in range(count)))
    config = digits.get_config()
    config.stages = ("encode",)
    config.data.update(dict(source="prompts", path=str(file), buckets=("8x8", "8x16")))
    config.synthesize.samples = 0
    config.pretrain.batch_size = config.finetune.batch_size = config.distil.batch_size = 16
    return config


def test_prompts_are_counted_by_bucket_against_the_batches_before_anything(tmp_path):
    with pytest.raises(UserError, match="hold 9 records for training, .* one batch of"):
        count_records(typed(prompts(tmp_path, 9)))
    sizes = count_records(typed(prompts(tmp_path, 100)))
    assert sum(sizes.values()) == 100 and set(sizes) == {Bucket(8, 8), Bucket(8, 16)}
    # One of them fills no batch: its prompts are the other's.
    assert list(count_records(typed(prompts(tmp_path, 24))).values()) == [24]


@pytest.mark.parametrize("count", [0, 40])
def test_a_source_that_reads_no_path_needs_none_and_is_asked_how_much_it_has(count, monkeypatch):
    module = types.SimpleNamespace(open_source=None, **({"count": lambda _: 40} if count else {}))
    monkeypatch.setitem(sys.modules, "theirs", module)
    monkeypatch.setitem(SOURCES, "theirs", Kind("theirs"))
    config = digits.get_config()
    config.data.update(dict(source="theirs", buckets=("8x8", "8x16"), path=""))
    config.stages, config.model.channels = ("encode", "pretrain"), 4
    check(typed(config))
    config.data.joined = "edit"
    assert typed(config).data.joined == "edit"
    config.data.joined = ""
    sizes = {Bucket(8, 8): 20, Bucket(8, 16): 20} if count else {}
    assert count_records(typed(config)) == sizes


def test_a_source_of_another_package_may_choose_buckets_by_a_resolution(monkeypatch):
    config = digits.get_config()
    config.data.update(dict(source="theirs", buckets=(), resolution=16))
    monkeypatch.setitem(sys.modules, "theirs", types.SimpleNamespace(open_source=None))
    monkeypatch.setitem(SOURCES, "theirs", Kind("theirs"))
    words = "data.buckets is empty and the source 'theirs' chooses none for its records: name one"
    with pytest.raises(UserError, match=words):
        typed(config)
    monkeypatch.setitem(SOURCES, "theirs", Kind("theirs", chooses_buckets=True))
    check(typed(config))
    assert count_records(typed(config)) == {}
    found = buckets_for(typed(config), [1.0] * 9 + [2.0] * 9)
    assert [bucket.name for bucket in found] == ["12x22", "16x16"]
    config.data.resolution = 0
    with pytest.raises(UserError, match="data.buckets is empty and data.resolution 0: name bucket"):
        typed(config)


def test_a_source_of_few_records_at_a_path_is_refused_before_anything(monkeypatch):
    module = types.SimpleNamespace(open_source=None, most=lambda _: 9)
    monkeypatch.setitem(sys.modules, "theirs", module)
    monkeypatch.setitem(SOURCES, "theirs", Kind("theirs", path=True, encoded=True))
    config = digits.get_config()
    config.data.update(dict(source="theirs", path="some.blobs"))
    with pytest.raises(UserError, match="some.blobs holds 9 records, fewer than one batch"):
        count_records(typed(config))


def test_data_that_are_not_there_are_told_before_anything(tmp_path):
    config = prompts(tmp_path, 100)
    config.data.path = str(tmp_path / "promts.txt")
    found = problems_of(config)
    assert any("promts.txt, and" in line and "prompts.txt is there" in line for line in found)


@pytest.mark.parametrize(
    ("weights", "data", "samples", "finetune", "expected"),
    [
        ("", "synthesized", 100, 5, ["pretrain"]),
        ("x", "synthesized", 100, 5, []),
        ("x", "synthesized", 0, 5, ["finetune", "distil"]),
        ("", "encoded", 100, 0, ["pretrain", "distil"]),
    ],
)
def test_trainings_read_records_of_the_source_or_samples(
    weights, data, samples, finetune, expected
):
    config = digits.get_config()
    config.weights, config.distil.data = weights, data
    config.synthesize.samples, config.finetune.steps = samples, finetune
    assert readers(config) == expected


def test_a_disk_that_is_too_small_is_told_with_what_the_stages_write(tmp_path, monkeypatch):
    config = typed(digits.get_config())
    sizes = {Bucket(8, 8): 1000}
    built = {
        "pretrain": objectives.flow_matching(config, config.pretrain),
        "distil": objectives.ladd(config),
    }
    parts = stage_bytes(config, sizes, built)
    # Latents of one channel in float32, 17 tokens of 128 features, and a vector of 256.
    assert parts["encode"] == 1000 * 4 * (8 * 8 + 17 * 128 + 256)
    assert set(parts) == {"encode", "synthesize", "pretrain", "distil"}
    state = jax.eval_shape(
        built["distil"].init, jax.random.PRNGKey(0), built["distil"].student.shapes
    )
    assert parts["distil"] == 3 * sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    run = tmp_path / "run"
    check_space(config, run, run, sizes, built)
    usage = type(shutil.disk_usage(tmp_path))(total=10**9, used=0, free=10**6)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(
        UserError, match="has 0.001 GB free and the stages write at least .* GB .encode 0.00749 GB"
    ):
        check_space(config, run, run, sizes, built)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second disk")
def test_shards_count_on_the_disk_of_the_data_and_the_student_on_that_of_the_workdir(
    tmp_path, monkeypatch
):
    config = typed(digits.get_config())
    sizes = {Bucket(8, 8): 1000}
    built = {"distil": objectives.ladd(config)}
    run, free, kind = tmp_path / "run", {}, type(shutil.disk_usage(tmp_path))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        data = Path(other, "data")

        def usage(place):
            return kind(total=10**12, used=0, free=free[Path(place) == Path(other)])

        monkeypatch.setattr(disk_space.shutil, "disk_usage", usage)
        free |= {True: 10**9, False: 10**9}
        check_space(config, run, data, sizes, built)
        free |= {True: 10**6}
        with pytest.raises(
            UserError, match=f"--data={data} .*encode [^()]*synth[^()]* GB.: "
        ) as told:
            check_space(config, run, data, sizes, built)
        assert "distil" not in str(told.value)
        free |= {False: 10**6}
        with pytest.raises(UserErrors) as told:
            check_space(config, run, data, sizes, built)
        assert len(told.value.problems) == 2 and f"--workdir={run}" in str(told.value)


def test_where_it_is_encoded_already_by_another_run_nothing_is_counted(tmp_path):
    config, data = prompts(tmp_path, 9), tmp_path / "data"
    for encoded in (False, True):
        problems = Problems()
        look(typed(config), problems, tmp_path / "run", data=data)
        # A prompt's records need weights, which are not looked for here.
        with pytest.raises(UserError) as told:
            problems.tell()
        assert ("hold 9 records for training" in str(told.value)) is not encoded
        (data / "encoded").mkdir(parents=True, exist_ok=True)
        (data / "encoded/null_text.npz").touch()


def test_where_nothing_can_be_written_is_told_and_nothing_is_left(tmp_path):
    check_writable(tmp_path / "a/b")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="--workdir=/proc/here/run cannot be written to"):
        check_writable(type(tmp_path)("/proc/here/run"))


def test_a_bucket_that_refuses_a_file_when_it_is_closed_is_told(tmp_path, monkeypatch):
    close = os.close

    def refuse(descriptor):
        close(descriptor)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "close", refuse)
    with pytest.raises(UserError, match=r"cannot be written to \(Permission denied"):
        check_writable(tmp_path)


def test_a_config_that_is_well_passes(tmp_path):
    check(typed(digits.get_config()), tmp_path / "run")
    assert not list(tmp_path.iterdir())
