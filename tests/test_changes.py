"""Data and configs that are others than those that a result was made of."""

import dataclasses
import json

import numpy as np
import pytest

from configs import digits
from ladd_jax.cli.inputs import count_records
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.workdir import Places
from ladd_jax.data.shard_sets import is_complete
from ladd_jax.data.shards import Shards
from ladd_jax.data.sources import prompts as prompt_source
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.stages import encode as encoding
from ladd_jax.stages import synthesize as synthesizing
from ladd_jax.stages.changes import begin_training, inputs_in
from ladd_jax.stages.made import check_made

PROMPTS = [f"picture of boat {i} at see" for i in range(22)]


def config(path, **changes):
    """Prompts of a file, four of them in a shard, and one sample for each."""
    made = digits.get_config()
    made.stages, made.weights = ("encode", "synthesize", "distil"), "pipeline"
    made.data.update(dict(source="prompts", path=str(path), buckets=("8x8",), records_per_shard=4))
    made.synthesize.update(dict(samples=0, records_per_shard=4))
    made.distil.batch_size = 4
    made.finetune.steps, made.distil.consistency_weight = 0, 0.0
    for name, value in changes.items():
        made.update_from_flattened_dict({name.replace("__", "."): value})
    return typed(made)


class Encoder:
    """Tells texts apart, and counts them."""

    def __init__(self):
        self.truncated, self.blocks, self.read = {}, {}, []

    def encode(self, prompts):
        self.read += [prompt for prompt in prompts if prompt]
        return {"pooled": np.array([[len(p), sum(map(ord, p))] for p in prompts], np.float32)}


class Sampler:
    """Samples that show what they are of."""

    def __init__(self, *_):
        pass

    def __call__(self, params, seeds, cond, shape, sampling, update, scales):
        values = cond["pooled"][:, 1] / 1e4
        return np.broadcast_to(values[:, None, None, None], (len(values), *shape))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Encodes and synthesizes prompts; returns the prompts that were read by the encoder."""
    monkeypatch.setattr(synthesizing, "Sampler", Sampler)
    monkeypatch.setattr(synthesizing, "load_generator", lambda *_: None)
    path = tmp_path / "prompts.txt"

    def stages(prompts=None, workdir=tmp_path / "run", only=("encode", "synthesize"), **changes):
        if prompts is not None:
            path.write_text("\n".join(prompts) + "\n")
        encoder = Encoder()
        monkeypatch.setattr(encoding, "text_encoder", lambda *_: encoder)
        settings = dataclasses.replace(config(path, **changes), stages=only)
        was = is_complete(workdir / "encoded")
        writes = check_made(settings, workdir, Places(workdir))
        if "encode" in only:
            encoding.encode(settings, workdir)
        if "synthesize" in only:
            synthesizing.synthesize(settings, workdir)
        # Readers of what is there are asked before it is changed.
        assert writes.alters or not (was and encoder.read)
        return encoder.read

    return stages


def state(workdir, name):
    """Records of a set, and its files by number: the same file is as it was written."""
    shards = Shards(workdir / name)
    (bucket,) = shards.buckets
    found = shards.read(bucket, np.arange(shards.sizes[bucket]))
    files = {
        file.name.split("-")[2]: (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in workdir.glob(f"{name}/8x8/*/*array_record*")
    }
    return found, files


def assert_of(prompts, workdir):
    """Every record is of its prompt, in both sets."""
    for name in ("encoded", "synthesized"):
        found, _ = state(workdir, name)
        assert found["prompt"] == prompts
        sums = [sum(map(ord, prompt)) for prompt in prompts]
        assert found["cond"]["pooled"][:, 1].tolist() == sums
        if name == "synthesized":
            assert np.allclose(found["latents"][:, 0, 0, 0], np.array(sums) / 1e4)


def test_a_file_of_prompts_is_read_once_from_the_first_look_to_its_shards(
    tmp_path, run, monkeypatch
):
    opened, stream = [], prompt_source.stream_prompt_set

    def counted(*arguments):
        opened.append(arguments)
        return stream(*arguments)

    monkeypatch.setattr(prompt_source, "stream_prompt_set", counted)
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    assert sum(count_records(config(path)).values()) == len(PROMPTS)
    run()
    assert len(opened) == 1
    # Nothing of it stays in memory, and what it says then counts.
    run([*PROMPTS, "one more"])
    assert len(opened) == 2
    assert_of([*PROMPTS, "one more"], tmp_path / "run")


def test_where_prompts_lie_does_not_matter(tmp_path, run):
    run(PROMPTS)
    moved = tmp_path / "elsewhere.txt"
    (tmp_path / "prompts.txt").rename(moved)
    assert run(data__path=str(moved)) == []
    moved.write_text("\n".join(["another picture", *PROMPTS[1:]]) + "\n")
    with pytest.raises(UserError, match="elsewhere.txt: line 1 differs"):
        run(data__path=str(moved))


def test_prompts_that_are_added_are_encoded_and_sampled_and_the_rest_stays(tmp_path, run):
    run(PROMPTS)
    before = {name: state(tmp_path / "run", name)[1] for name in ("encoded", "synthesized")}
    assert run(PROMPTS) == []
    longer = [*PROMPTS, "one more boat", "another", "a third"]
    # The last shard had room for two.
    assert run(longer) == longer[20:]
    assert_of(longer, tmp_path / "run")
    for name, files in before.items():
        after = state(tmp_path / "run", name)[1]
        assert {n: after[n] for n in files if n != "00005"} == {
            n: file for n, file in files.items() if n != "00005"
        }
        assert len(after) == 7


CHANGED = [*PROMPTS[:13], "a cow", *PROMPTS[14:18], "a dog", *PROMPTS[19:]]


def test_a_prompt_that_differs_is_named_and_only_its_shards_are_made_anew(tmp_path, run):
    run(PROMPTS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    words = (
        r"prompts.txt: line 14 differs from what shards 3 to 4 of .*8x8 were made from: .* 2 of 6"
    )
    with pytest.raises(UserError, match=words):
        run(CHANGED)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    files = {name: state(tmp_path / "run", name)[1] for name in ("encoded", "synthesized")}
    assert run(CHANGED, on_change="redo") == CHANGED[12:20]
    assert_of(CHANGED, tmp_path / "run")
    for name, old in files.items():
        new = state(tmp_path / "run", name)[1]
        assert {n for n in old if old[n] != new[n]} == {"00003", "00004"}
    assert run(CHANGED) == []


def test_data_that_are_edited_between_a_stopped_encode_and_its_restart_are_never_mixed(
    tmp_path, run
):
    run(PROMPTS, only=("encode",))
    (tmp_path / "run/encoded/null_text.npz").unlink()
    next((tmp_path / "run/encoded").rglob("*record-00002-of*")).unlink()
    edited = ["a new first line", *(prompt.replace("see", "sea") for prompt in PROMPTS[1:])]
    with pytest.raises(UserError, match="line 1 differs from what shards 0 to 5 of"):
        run(edited, only=("encode",))
    assert run([*PROMPTS, "one more boat"], only=("encode",)) == [*PROMPTS[8:12], *PROMPTS[20:],
                                                                  "one more boat"]  # fmt: skip
    run(edited, only=("encode",), on_change="redo")
    assert state(tmp_path / "run", "encoded")[0]["prompt"] == edited


def test_fewer_prompts_are_told_and_made_anew(tmp_path, run):
    run(PROMPTS)
    with pytest.raises(UserError, match="bucket 8x8 has 18 records now, which differs from what"):
        run(PROMPTS[:18])
    run(PROMPTS[:18], on_change="redo")
    assert_of(PROMPTS[:18], tmp_path / "run")


def test_another_field_makes_a_whole_set_anew_and_what_depends_on_it(tmp_path, run):
    run(PROMPTS)
    with pytest.raises(UserError, match="seed was 0 and is 1.*let --on_change=redo make it again"):
        run(seed=1)
    assert run(seed=1, on_change="redo") == PROMPTS
    with pytest.raises(UserError, match="synthesized is another set .*guidance was"):
        run(seed=1, synthesize__guidance=1.5)
    assert run(seed=1, synthesize__guidance=1.5, on_change="redo") == []
    assert_of(PROMPTS, tmp_path / "run")
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("prompts", "error", "words"),
    [
        (None, NotFoundError, "no file .*prompts.txt, .*: check the path"),
        (["a", " ", "b"], UserError, "line 2 is empty: write a prompt or remove it"),
    ],
)
def test_data_of_no_use_are_found_before_a_workdir_is_made(tmp_path, run, prompts, error, words):
    with pytest.raises(error, match=words):
        run(prompts)
    assert not (tmp_path / "run").exists()


def test_encoded_prompts_are_used_where_their_file_is_gone(tmp_path, run):
    run(PROMPTS)
    (tmp_path / "prompts.txt").unlink()
    assert run() == [] and is_complete(tmp_path / "run/encoded")


def save(workdir, stage, step, settings, inputs):
    """What says of a checkpoint what it was made with."""
    folder = workdir / stage / "checkpoints" / str(step) / "config"
    folder.mkdir(parents=True)
    (folder / "metadata").write_text(json.dumps(to_dict(settings) | {"inputs": inputs}))


def test_a_student_of_other_records_is_refused_before_they_are_made_and_trained_anew_if_asked(
    tmp_path, run
):
    run(PROMPTS)
    workdir, path = tmp_path / "run", tmp_path / "prompts.txt"
    settings = config(path)
    save(workdir, "distil", settings.distil.steps, settings, inputs_in(settings, workdir, "distil"))
    (workdir / "metrics.json").touch()
    every = ("encode", "synthesize", "distil")
    assert run(only=every) == []
    words = "synthesized had other content.*use another --workdir with --from for its student"
    with pytest.raises(UserError, match=words):
        run([*PROMPTS, "another"], only=every)
    # Its stage is left out: data alone are made.
    assert run(only=("encode", "synthesize")) == [*PROMPTS[20:], "another"]
    inputs = inputs_in(settings, workdir, "distil")
    with pytest.raises(UserError, match=words):
        begin_training(settings, workdir, "distil", inputs)
    begin_training(config(path, on_change="redo"), workdir, "distil", inputs)
    assert not (workdir / "distil").exists() and not (workdir / "metrics.json").exists()
