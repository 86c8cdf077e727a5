"""The stage `prefer`: preferences as a LoRA, and where it is added."""

import dataclasses
import io
import shutil
import subprocess
import sys

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pipelines import save_pipeline
from test_stages import settings, write_generator
from tiny import max_difference
from untrained_run import save_student

from ladd_jax.cli import preflight
from ladd_jax.config import objectives
from ladd_jax.config.architectures import generator_architecture
from ladd_jax.config.fields import Prefer, to_dict, typed
from ladd_jax.config.identity import difference, identity
from ladd_jax.config.workdir import read
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.families import family_of
from ladd_jax.models.lora import add_adapters
from ladd_jax.parallel.mesh import make_mesh, replicated
from ladd_jax.stages.encode import encode
from ladd_jax.stages.load import (
    load_adapters,
    load_generator,
    load_generator_before,
    load_teacher,
    preference_file,
)
from ladd_jax.stages.prefer import prefer
from ladd_jax.stages.sets import encoded, shards_of
from ladd_jax.stages.students import load_student_weights
from ladd_jax.training.metrics import read_history
from ladd_jax.weights import load_mmdit


def picture(seed, side=8):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def with_pairs(path, **changes):
    """A config whose data are pairs of pictures."""
    config = settings(steps=1, batch_size=8)
    config.data.update(
        dict(source="images", path=str(path), image_column="one", other_column="two",
             preference_column="label", held_out=0.0)
    )  # fmt: skip
    config.pretrain.batch_size = 8
    config.prefer.update(dict(steps=2, batch_size=8, ema_decay=0.5) | changes)
    config.prefer.lora.update(dict(rank=2, layers=("*qkv",)))
    config.prefer.optimizer.update(dict(learning_rate=1e-2, warmup_steps=0))
    return config


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A table of pairs, and their shards."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {"one": picture(i), "two": picture(100 + i), "label": i % 3 / 2, "prompt": f"picture {i}"}
        for i in range(16)
    ]
    datasets.Dataset.from_list(rows).to_parquet(folder / "pairs.parquet")
    encode(typed(with_pairs(folder / "pairs.parquet")), folder)
    return folder


@pytest.fixture(scope="module")
def taught(pairs, tmp_path_factory):
    """A run that has learned preferences, its config, and its data generator before it."""
    workdir = tmp_path_factory.mktemp("taught")
    (workdir / "encoded").symlink_to(encoded(pairs))
    config = with_pairs(pairs / "pairs.parquet")
    written = write_generator(typed(config), workdir)
    prefer(typed(config), workdir)
    return workdir, config, written


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def one_device():
    return make_mesh({"data": 1}, jax.devices()[:1])


def test_the_lora_of_a_run_is_the_average_of_what_it_trained(taught):
    workdir, config, written = taught
    config, mesh = typed(config), one_device()
    network = objectives.preference(config).model
    adapters = load_adapters(config, workdir, network, replicated(mesh))
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(adapters)) > 0
    architecture = generator_architecture(config)
    opened = family_of(config).open_lora(str(preference_file(workdir)), architecture)
    assert_same(load_generator_before(config, workdir, mesh), written)
    expected = network.merge(adapters, written, jnp.float32)
    found = load_generator(config, workdir, mesh)
    changed = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), found, written)
    assert max(jax.tree.leaves(changed)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert_same(load_teacher(config, workdir, mesh), found)
    # What is added to is gone after.
    copied = jax.tree.map(jnp.copy, written)
    assert max_difference(add_adapters(copied, [(opened.load(), 1.0)]), found) < 1e-6
    first, second = read_history(workdir / "prefer")
    # At first it has no preference, and each pair of which one is preferred costs the same.
    decided = first["loss"] / np.log(2) * config.prefer.batch_size
    assert decided == pytest.approx(round(decided), abs=1e-4) and 0 < decided < 8
    assert (first["margin"], second["step"]) == (0, 2) and second["margin"] != 0


@pytest.mark.parametrize("applied", [(), ("before",), ("after",), ("before", "after")])
def test_it_is_added_where_the_config_says(taught, tmp_path, applied):
    workdir, config, written = taught
    config.prefer.applied = applied
    config, mesh = typed(config), one_device()
    (tmp_path / "prefer").symlink_to(workdir / "prefer")
    (tmp_path / "pretrain").symlink_to(workdir / "pretrain")
    student = save_student(config, tmp_path, step=1).ema
    assert ("before" in applied) != same(load_generator(config, tmp_path, mesh), written)
    found = load_student_weights(config, tmp_path, mesh, "ema", 1)
    assert ("after" in applied) != same(found, student)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_a_lora_that_was_not_written_any_more_is_written_from_the_checkpoint(taught):
    workdir, config, _ = taught
    file = preference_file(workdir)
    before = file.read_bytes()
    file.unlink()
    with pytest.raises(NotFoundError):
        load_generator(typed(config), workdir, one_device())
    prefer(typed(config), workdir)
    assert file.read_bytes() == before


def test_other_trainings_do_not_read_what_records_were_compared_with(pairs):
    config = typed(with_pairs(pairs / "pairs.parquet"))
    whole = shards_of(config, pairs, "encoded", pairs=True)
    shards = shards_of(config, pairs, "encoded")
    (bucket,), indices = shards.buckets, np.arange(4)
    found, known = shards.read(bucket, indices), whole.read(bucket, indices)
    assert known["cond"].keys() - found["cond"].keys() == {"other", "preference"}
    np.testing.assert_array_equal(found["latents"], known["latents"])
    assert shards.batch_shapes(4)[bucket]["cond"].keys() == found["cond"].keys()


def test_more_steps_write_another_lora(taught, tmp_path):
    workdir, config, _ = taught
    shutil.copytree(workdir / "prefer", tmp_path / "prefer")
    for name in ("encoded", "pretrain"):
        (tmp_path / name).symlink_to(workdir / name)
    before = preference_file(tmp_path).read_bytes()
    config = typed(config)
    prefer(config, tmp_path)
    assert preference_file(tmp_path).read_bytes() == before
    prefer(
        dataclasses.replace(config, prefer=dataclasses.replace(config.prefer, steps=3)), tmp_path
    )
    assert preference_file(tmp_path).read_bytes() != before


def test_without_steps_nothing_is_learned(pairs, tmp_path):
    prefer(typed(with_pairs(pairs / "pairs.parquet", steps=0)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_data_without_pairs_are_refused(tmp_path):
    config = settings()
    config.prefer.update(dict(steps=1, batch_size=8))
    encode(typed(config), tmp_path)
    with pytest.raises(UserError, match=r"no pairs of pictures .* data\.other_column"):
        prefer(typed(config), tmp_path)
    config.stages = ("encode", "prefer")
    with pytest.raises(UserError, match=r"data\.other_column is empty"):
        preflight.check(typed(config))


def test_what_would_stop_it_late_is_told_before_it_starts(pairs):
    config = with_pairs(pairs / "pairs.parquet")
    config.stages = ("encode", "pretrain", "prefer")
    preflight.check(typed(config))
    config.prefer.lora.layers = ("*",)
    with pytest.raises(UserError, match=r"prefer\.lora\.layers is \*, .*is not a dense layer in"):
        preflight.check(typed(config))
    config.prefer.lora.layers = ("*block*",)
    config.stages = ("encode", "pretrain", "synthesize", "distil")
    with pytest.raises(UserError, match="stage 'prefer' is not among stages, so that 'synthesize'"):
        preflight.check(typed(config))


def test_what_is_made_of_the_data_generator_depends_on_it(pairs):
    path = pairs / "pairs.parquet"
    off, other = (to_dict(typed(with_pairs(path, steps=0, beta=beta))) for beta in (5.0, 7.0))
    on, stronger = (to_dict(typed(with_pairs(path, beta=beta))) for beta in (5.0, 7.0))
    # Added elsewhere it is the same LoRA, and after the distillation nothing else is of it.
    after = to_dict(typed(with_pairs(path, beta=5.0, applied=("after",))))
    before = to_dict(typed(with_pairs(path, beta=5.0, applied=("before",))))
    assert not difference(identity(on, "prefer"), identity(after, "prefer"))
    for name in ("synthesized", "finetune", "distil"):
        assert not difference(identity(off, name), identity(other, name))
        assert "prefer." in difference(identity(off, name), identity(on, name))
        assert "prefer.beta" in difference(identity(on, name), identity(stronger, name))
        assert not difference(identity(off, name), identity(after, name))
        assert not difference(identity(on, name), identity(before, name))
        old = {section: fields for section, fields in off.items() if section != "prefer"}
        assert not difference(identity(old, name), identity(off, name))
    assert not difference(identity(off, "pretrain"), identity(on, "pretrain"))


@pytest.mark.slow
def test_a_released_pipeline_learns_preferences_as_a_lora_that_diffusers_loads(tmp_path):
    """The workflow of the documentation, by its commands, on a small random pipeline."""
    from diffusers import StableDiffusion3Pipeline

    save_pipeline(tmp_path / "pipeline", t5=False)
    rows = [
        {"jpg_0": picture(i, 128), "jpg_1": picture(100 + i, 128), "label_0": i % 3 / 2,
         "caption": f"seven cats {i}"}
        for i in range(12)
    ]  # fmt: skip
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    command = [
        sys.executable, "-m", "ladd_jax.main", f"--workdir={tmp_path / 'run'}",
        f"--config=sd3_turbo:size=tiny,weights={tmp_path / 'pipeline'},resolution=128",
        f"--images={tmp_path / 'pairs.parquet'}", "--config.data.image_column=jpg_0",
        "--config.data.other_column=jpg_1", "--config.data.preference_column=label_0",
        "--config.data.buckets=('16x16',)", "--config.data.text_length=77",
        "--config.prefer.steps=2", "--config.prefer.batch_size=8", "--config.prefer.lora.rank=3",
        "--config.prefer.optimizer.learning_rate=.05", "--config.model.teacher_dtype=float32",
        "--config.data.held_out=0", "--config.log.every=1", "--config.distil.batch_size=8",
        "--config.stages=('encode','prefer')",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in read_history(tmp_path / "run" / "prefer")] == [1, 2]

    folder = tmp_path / "run" / "prefer" / "lora"
    config = dataclasses.replace(read(tmp_path / "run"), loras=(str(folder),))
    plain = dataclasses.replace(config, loras=(), prefer=Prefer())
    mesh = one_device()
    before = load_generator(plain, tmp_path, mesh)
    found = load_generator(dataclasses.replace(config, prefer=Prefer()), tmp_path, mesh)
    assert not same(before, found)
    pipe = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "pipeline", text_encoder_3=None, tokenizer_3=None
    )
    pipe.load_lora_weights(folder)
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    pipe.transformer.save_pretrained(tmp_path / "fused" / "transformer")
    fused = load_mmdit(tmp_path / "fused", jnp.float32).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), fused, found)
