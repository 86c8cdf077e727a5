"""The networks that the training stages load and run."""

import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from untrained_run import save_student

from configs import digits
from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.workdir import Places, settle
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import Shards
from ladd_jax.data.sources import Source
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages import distil as distilling
from ladd_jax.stages.changes import inputs_in
from ladd_jax.stages.checkpoints import finished_student_step
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.flow_matching import finetune
from ladd_jax.stages.load import (
    FROZEN,
    load_finetuned,
    load_frozen,
    load_generator,
    load_teacher,
)
from ladd_jax.stages.sets import encoded
from ladd_jax.stages.students import load_student, load_student_weights
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.metrics import read_history
from ladd_jax.weights import save_mmdit
from ladd_jax.weights.files import StoredTensor


def settings(**changes):
    config = digits.get_config()
    config.stages = ("distil",)
    config.data.update(dict(buckets=("8x8",), examples=16, records_per_shard=16))
    config.model.update(dict(depth=3, width=16))
    config.heads.update(dict(channels=8, groups=2, projection=8))
    config.pretrain.update(dict(steps=1))
    config.finetune.steps = 0
    # Of a stage that it does not have.
    config.distil.update(dict(consistency_weight=0.0, follows="generator"))
    config.distil.update(dict(data="encoded", steps=2, batch_size=8, head_updates=1) | changes)
    config.log.update(dict(every=1, samples_every=2))
    return config


def write_generator(config, workdir, stage="pretrain", seed=0):
    """A random network, as if `pretrain` had made it, or `finetune`."""
    objective = objectives.flow_matching(config, config.pretrain)
    params = tiny.random_params(objective.model, seed)
    state = jax.jit(objective.init)(jax.random.PRNGKey(0), params)
    saved = Checkpoints(workdir / stage / "checkpoints")
    saved.save(1, state, to_dict(config))
    saved.close()
    return params


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Shards of digits."""
    workdir = tmp_path_factory.mktemp("images")
    encode(typed(settings()), workdir)
    return encoded(workdir)


def test_what_stands_for_no_array_of_the_data_is_written_beside_the_empty_prompt(
    tmp_path, monkeypatch
):
    arrays = {"latents": ArraySpec(("H", "W", 1)), "label": ArraySpec((3,))}

    def read(bucket, start, stop):
        return {"latents": np.zeros((stop - start, 8, 8, 1)), "label": np.ones((stop - start, 3))}

    none = np.full(3, -1, np.float32)
    source = Source({Bucket(8, 8): ["one"]}, arrays, read, null={"label": none})
    monkeypatch.setattr("ladd_jax.stages.encode.open_source", lambda *_: source)
    encode(typed(settings()), tmp_path)
    shards = Shards(encoded(tmp_path))
    assert set(shards.null) == {"context", "pooled", "label"}
    np.testing.assert_array_equal(shards.null["label"], none)


def test_a_network_that_nothing_loads_is_named(tmp_path, monkeypatch):
    config, shards = typed(settings()), types.SimpleNamespace(null={})
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with pytest.raises(
        UserError, match="'ladd' reads a network 'convolutions', which is not one of"
    ):
        load_frozen(config, tmp_path, mesh, ["convolutions"], shards)
    monkeypatch.setitem(FROZEN, "convolutions", lambda *_: {"kernel": 1})
    found = load_frozen(config, tmp_path, mesh, ["convolutions"], shards)
    assert found["convolutions"] == {"kernel": 1}


def test_a_student_under_a_critic_without_the_teacher_starts_from_what_it_starts_from(
    images, tmp_path, monkeypatch
):
    config = settings()
    write_generator(typed(config), tmp_path)
    (tmp_path / "encoded").symlink_to(images)
    begun = []
    monkeypatch.setattr(distilling, "load_frozen", lambda *_: {"convolutions": None})
    monkeypatch.setattr(distilling, "run_training", lambda *_, fresh, **__: begun.append(fresh()))
    distil(typed(config), tmp_path)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    assert_same(begun[0].params, load_generator(typed(config), tmp_path, mesh))


@pytest.mark.parametrize(
    ("joined", "arrays", "sentence"),
    [
        ("", {"latents": 4}, "read 1 channels of 'latents', and records .* 'digits' have 4"),
        ("inpaint", {"latents": 1}, "'inpaint', so that networks read 2 channels of 'channels', "),
    ],
    ids=["latents", "joined"],
)
def test_data_without_the_channels_that_networks_read_are_refused(
    tmp_path, monkeypatch, joined, arrays, sentence
):
    specs = {name: ArraySpec(("H", "W", count)) for name, count in arrays.items()}
    source = Source({Bucket(8, 8): ["one"]}, specs)
    monkeypatch.setattr("ladd_jax.stages.encode.open_source", lambda *_: source)
    config = settings()
    config.data.joined = joined
    with pytest.raises(UserError, match=sentence):
        encode(typed(config), tmp_path)
    assert not encoded(tmp_path).exists()


@pytest.mark.parametrize("name", ["context", "pooled"])
def test_data_with_an_array_named_like_one_of_the_text_are_refused(tmp_path, monkeypatch, name):
    source = Source({Bucket(8, 8): ["one"]}, {name: ArraySpec((4,))})
    monkeypatch.setattr("ladd_jax.stages.encode.open_source", lambda *_: source)
    with pytest.raises(UserError, match=f"both write an array '{name}': rename the array"):
        encode(typed(settings()), tmp_path)
    assert not encoded(tmp_path).exists()


def test_the_student_that_is_evaluated_is_that_of_a_finished_training(tmp_path):
    config, mesh = typed(settings()), make_mesh({"data": 1}, jax.devices()[:1])
    save_student(config, tmp_path, step=1)
    with pytest.raises(NotFoundError, match="holds step 1 of 2 steps: run the stage 'distil'"):
        finished_student_step(config, tmp_path)
    state = save_student(config, tmp_path, step=2)
    step = finished_student_step(config, tmp_path)
    assert step == 2
    assert_same(load_student(config, tmp_path, mesh).ema, state.ema)
    for name, tree in (("ema", state.ema), ("student", state.params)):
        assert_same(load_student_weights(config, tmp_path, mesh, name, step), tree)


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))


def test_a_teacher_that_is_cut_is_the_first_blocks_of_the_whole_one(tmp_path, monkeypatch):
    config = settings(hooked_blocks=(0,))
    write_generator(typed(config), tmp_path)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    whole = load_generator(typed(config), tmp_path, mesh)
    cut = load_teacher(typed(config), tmp_path, mesh)
    assert not {"last_block", "final", "final_modulation"} & cut.keys()
    first = jax.tree.map(lambda leaf: leaf[:1], whole["blocks_0"])
    rest = {name: whole[name] for name in cut if name != "blocks_0"}
    assert_same(cut, {"blocks_0": first, **rest})

    # From files nothing is read that is cut off.
    architecture = architectures.student_architecture(typed(config))
    save_mmdit(tmp_path / "t", whole, architecture, jnp.float32)
    config.weights = str(tmp_path / "t")
    read, map_file = [], StoredTensor.map
    monkeypatch.setattr(
        StoredTensor, "map", lambda tensor: read.append(tensor.name) or map_file(tensor)
    )
    assert_same(load_teacher(typed(config), tmp_path, mesh), cut)
    assert any("transformer_blocks.0." in name for name in read)
    assert not [name for name in read if "blocks.1." in name or "blocks.2." in name]
    assert not [name for name in read if "proj_out" in name or "norm_out" in name]


def test_another_seed_of_distil_has_other_heads_and_batches_and_starts_from_the_same_student(
    images, tmp_path, monkeypatch
):
    config = settings()
    write_generator(typed(config), tmp_path)
    (tmp_path / "encoded").symlink_to(images)
    begun = []
    monkeypatch.setattr(
        distilling, "run_training", lambda *_, seed, fresh, **__: begun.append((seed, fresh()))
    )
    for further in (0, 1):
        config.distil.seed = further
        distil(typed(config), tmp_path)
    (first, start), (second, other) = begun
    assert (first, second) == (0, 1)
    assert_same(start.params, other.params)
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(start.heads), jax.tree.leaves(other.heads), strict=True)
    )


def test_a_run_begins_with_all_of_another_student_and_is_not_fine_tuned_before(
    tmp_path, monkeypatch
):
    first, second = tmp_path / "first", tmp_path / "second"
    state = save_student(typed(settings()), first, step=2)
    changed = settings(steps=4, ema_decay=0.5)
    changed.finetune.steps, changed.log.samples_every = 1, 0
    config = typed(changed)
    settle(second, to_dict(config), Places(first, first, 2))
    begun = []
    monkeypatch.setattr(distilling, "run_training", lambda *_, fresh, **__: begun.append(fresh()))
    monkeypatch.setattr(distilling, "student_data", lambda *_: None)
    monkeypatch.setattr(distilling, "load_frozen", lambda *_: {"teacher": None})
    # There are no shards to read.
    finetune(config, second)
    distil(config, second)
    assert int(begun[0].step) == 2
    for name in ("params", "ema", "heads"):
        assert_same(getattr(begun[0], name), getattr(state, name))


def test_a_run_knows_what_the_first_one_fine_tuned_and_misses_it(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    config = settings(lora=dict(rank=2, layers=("*qkv",)))
    config.finetune.steps = 1
    config = typed(config)
    written = write_generator(config, first, "finetune", seed=7)
    settle(second, to_dict(config), Places(first, first, 2))
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    assert_same(load_finetuned(config, second, mesh), written)
    known = inputs_in(config, second, "distil")
    assert "finetune of the first run" in known
    assert "finetune of the first run" not in inputs_in(config, first, "distil")
    shutil.rmtree(first / "finetune")
    other = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, shift=2.0))
    write_generator(other, first, "finetune", seed=8)
    assert inputs_in(config, second, "distil") != known
    shutil.rmtree(first / "finetune")
    with pytest.raises(NotFoundError, match="first has nothing of its stage 'finetune', which"):
        load_finetuned(config, second, mesh)
    assert not (first / "finetune").exists()


def test_finetune_goes_on_from_the_data_generator_and_distil_from_what_it_makes(
    images, tmp_path, monkeypatch
):
    config = settings()
    config.finetune.update(dict(steps=1, batch_size=8, ema_decay=0.0))
    config.finetune.optimizer.update(dict(learning_rate=1e-3, beta1=0.0, warmup_steps=0))
    # The generator is loaded in fewer bits than the student is trained in.
    config.model.teacher_dtype = "bfloat16"
    written = write_generator(typed(config), tmp_path)
    generator = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), written)
    (tmp_path / "encoded").symlink_to(images)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    finetune(typed(config), tmp_path)
    made = load_finetuned(typed(config), tmp_path, mesh)
    # An update of Adam moves a parameter by no more than the rate.
    moved = jax.tree.map(
        lambda a, b: float(np.max(np.abs(a - b.astype(jnp.float32)))), made, generator
    )
    assert 0 < max(jax.tree.leaves(moved)) < 1.1e-3

    begun = []
    monkeypatch.setattr(distilling, "run_training", lambda *_, fresh, **__: begun.append(fresh()))
    distil(typed(config), tmp_path)
    assert_same(begun[0].params, made)
    assert_same(load_teacher(typed(config), tmp_path, mesh), generator)


@pytest.mark.parametrize(
    ("objective", "loss", "changes"),
    [
        pytest.param("lcm", "consistency", {}, marks=pytest.mark.slow),
        pytest.param("dmd", "dmd", {}, marks=pytest.mark.slow),
        # Guidance, and then a phase that goes on.
        pytest.param(
            "progressive",
            "progressive",
            {"halvings": 1, "phase_steps": 1, "steps": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["lcm", "dmd", "progressive"],
)
def test_a_rival_runs_through_the_same_stage(images, tmp_path, objective, loss, changes):
    config = settings(**{"objective": objective, "steps": 1} | changes)
    config.log.samples_every = steps = config.distil.steps + 1
    config.distil.optimizer.update(dict(learning_rate=1e-2, warmup_steps=0))
    (tmp_path / "encoded").symlink_to(images)
    written = write_generator(typed(config), tmp_path)
    if objective == "dmd":
        # It begins as what `finetune` has made, and follows that.
        config.finetune.steps, config.distil.follows = 1, "finetuned"
        written = write_generator(typed(config), tmp_path, "finetune", seed=7)
    distil(typed(config), tmp_path)
    # More steps go on from the first, and samples are shown.
    config.distil.steps = steps
    distil(typed(config), tmp_path)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    state = load_student(typed(config), tmp_path, mesh)
    assert int(state.step) == steps and bool(state.heads) == (objective != "lcm")
    # An update of Adam moves a parameter by no more than the rate.
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), state.params, written)
    assert 1e-3 < max(jax.tree.leaves(moved)) < 1.1e-2 * steps
    history = read_history(tmp_path / "distil")
    assert [record["step"] for record in history] == list(range(1, steps + 1))
    assert history[-1][f"loss/{loss}"] > 0 and "accuracy" not in history[-1]
    assert history[-1]["preview/seed_spread/1"] > 0


@pytest.mark.slow
def test_a_student_that_waits_for_its_heads_is_trained_to_the_end(images, tmp_path):
    config = settings(student_interval=2, refreshed_heads=0.5, r1_gamma=1e-2, r1_noise=0.1)
    config.distil.ramp.update(dict(steps=(0, 2), generator=(0.5, 1.0)))
    config.log.samples_every = 0
    (tmp_path / "encoded").symlink_to(images)
    write_generator(typed(config), tmp_path)
    distil(typed(config), tmp_path)
    first, second = read_history(tmp_path / "distil")
    # In the first step the heads are updated alone.
    assert "loss/generator" not in first and first["loss/discriminator"] > 0
    assert np.isfinite(second["loss/generator"]) and second["gradient_norm/student"] > 0
    assert first["skipped"] == second["skipped"] == 0


def step_flops(config):
    cond = {"context": jax.ShapeDtypeStruct((config.data.text_length, 1), jnp.float32)}
    return objectives.model_flops(config, objectives.ladd(config), Bucket(8, 8), cond)


def test_the_teacher_is_cut_wherever_that_changes_nothing():
    def cut(depth=3, **changes):
        config = settings(**changes)
        config.model.depth = depth
        return architectures.teacher_architecture(typed(config)).cut

    assert cut() == 0
    assert cut(hooked_blocks=(0,)) == 1
    assert cut(hooked_blocks=(1, 0)) == 2
    # The last block's tokens are read, or the velocity is.
    assert cut(hooked_blocks=(0, 2)) == 0
    assert cut(hooked_blocks=(0,), distillation_weight=2.5) == 0
    with pytest.raises(ValueError, match="block 3 of a teacher of 3"):
        objectives.ladd(typed(settings(hooked_blocks=(3, 1))))
    cut_off, whole = (step_flops(typed(settings(hooked_blocks=hooked))) for hooked in ((0,), ()))
    assert cut_off < 0.8 * whole


@pytest.mark.slow
def test_distillation_with_a_teacher_that_is_cut_starts_from_the_whole_one(images, tmp_path):
    config = settings(hooked_blocks=(0,), steps=1)
    config.distil.optimizer.update(dict(learning_rate=1e-6, warmup_steps=0))
    (tmp_path / "encoded").symlink_to(images)
    write_generator(typed(config), tmp_path)
    mesh = make_mesh(config.mesh)
    distil(typed(config), tmp_path)
    state = load_student(typed(config), tmp_path, mesh)
    generator = load_generator(typed(config), tmp_path, mesh)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, generator)
    assert 0 < max(jax.tree.leaves(moved)) < 1e-5
    assert state.heads["heads"]["residual"]["scale"].shape[0] == 1


@pytest.mark.parametrize(
    "shared",
    [pytest.param(True, marks=pytest.mark.slow, id="of-the-teacher"),
     pytest.param(False, id="of-another")],
)  # fmt: skip
def test_adapters_are_trained_saved_and_read_as_a_whole_student(images, tmp_path, shared):
    config = settings(steps=1, lora=dict(rank=2, layers=("*qkv",)))
    config.distil.optimizer.update(dict(learning_rate=1e-2, warmup_steps=0))
    # Constant beside the adapters, in fewer bits than these.
    config.model.update(dict(depth=2, teacher_dtype="bfloat16"))
    (tmp_path / "encoded").symlink_to(images)
    start = written = write_generator(typed(config), tmp_path)
    if shared:
        config.log.samples_every = 0
    else:
        # The teacher is cut, and the student begins as what `finetune` has made.
        config.distil.hooked_blocks = (0,)
        config.finetune.steps = 1
        start = write_generator(typed(config), tmp_path, "finetune", seed=7)
    mesh = make_mesh(config.mesh)
    assert architectures.begins_as_teacher(typed(config)) == shared
    distil(typed(config), tmp_path)
    if shared:
        config.distil.steps = 2
        distil(typed(config), tmp_path)
    config, student = typed(config), objectives.ladd(typed(config)).student
    state = load_student(config, tmp_path, mesh)
    assert int(state.step) == config.distil.steps
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, student.shapes)
    assert_same(load_generator(config, tmp_path, mesh), half(written))
    for name, adapters in (("student", state.params), ("ema", state.ema)):
        found = load_student_weights(config, tmp_path, mesh, name, config.distil.steps)
        assert_same(found, student.merge(adapters, half(start), jnp.float32))
        moved = {
            jax.tree_util.keystr(path)
            for (path, new), old in zip(
                jax.tree.leaves_with_path(found), jax.tree.leaves(half(start)), strict=True
            )
            if np.any(np.asarray(new) != np.asarray(old.astype(jnp.float32)))
        }
        assert moved and all(name.endswith("['qkv']['kernel']") for name in moved)


def half(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)
