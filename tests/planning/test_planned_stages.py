"""`plan` compiles the step of the training that `--stage` names: the one that this compiles."""

import jax
import numpy as np
import pytest
import tiny

from configs import digits, sd3_turbo
from ladd_jax.config import objectives
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import STAGES, to_dict, typed
from ladd_jax.config.record_shapes import record_shapes
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS, Layout
from ladd_jax.data.shard_writing import finalize, missing_shards, write_shard
from ladd_jax.errors import UserError
from ladd_jax.models.base import OTHER
from ladd_jax.parallel.chips import chip_named
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.planning.compile import shard_bytes, step_arguments
from ladd_jax.planning.entry import bucket_entry
from ladd_jax.planning.job import Job
from ladd_jax.planning.plan import Options, plan
from ladd_jax.planning.report import headline
from ladd_jax.planning.trainings import check_training, trainings_run
from ladd_jax.planning.whole_run import run_costs
from ladd_jax.stages.flow_matching import finetune, pretrain
from ladd_jax.stages.prefer import prefer
from ladd_jax.stages.sets import encoded
from ladd_jax.training import loop
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.program import step_program

BUCKET = Bucket(8, 8)
RECORDS = 16
BATCHES = {"pretrain": 8, "prefer": 8, "finetune": 16}


def small(**changes):
    """A config of a tiny network with a batch of its own for each training."""
    config = digits.get_config()
    config.stages = STAGES[:-1]
    config.data.update(dict(source="images", buckets=(BUCKET.name,)))
    config.model.update(dict(depth=2, width=16))
    config.prefer.lora.rank = 2
    for name, batch_size in BATCHES.items():
        config[name].update(dict(steps=2, batch_size=batch_size))
    config.finetune.accumulation = 2
    for path, value in changes.items():
        section, _, field = path.rpartition("__")
        (config[section] if section else config)[field] = value
    if not config.weights:
        read_architectures(config)
    return typed(config)


def job_of(training, config=None):
    config = config or small()
    mesh = make_mesh(config.mesh.sizes)
    objective = objectives.of_training(config, training)
    return Job(config, objective, chip_named("v5e"), mesh, 0.5, training)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that has pairs of pictures, all zeros, and a data generator."""
    workdir, config = tmp_path_factory.mktemp("run"), small()
    shapes = record_shapes(config, "prefer", BUCKET)
    grids = {name: ArraySpec(("H", "W", *shapes[name][2:])) for name in (LATENTS, OTHER)}
    arrays = {name: ArraySpec(shape) for name, shape in shapes.items()} | grids
    layout = Layout({BUCKET: RECORDS}, RECORDS, arrays)
    cond = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    record = {LATENTS: cond.pop(LATENTS), "cond": cond, "prompt": "one"}
    for shard in missing_shards(encoded(workdir), layout):
        write_shard(encoded(workdir), layout, shard, [record] * RECORDS)
    finalize(encoded(workdir), layout, {name: cond[name] for name in ("context", "pooled")})

    objective = objectives.of_training(config, "pretrain")
    state = objective.init(jax.random.PRNGKey(0), tiny.random_params(objective.model))
    saved = Checkpoints(workdir / "pretrain" / "checkpoints")
    saved.save(config.pretrain.steps, state, to_dict(config))
    saved.close()
    return workdir


class LoweredError(Exception):
    """A training lowered its step; it goes no further."""


def lowering(*arguments):
    """`step_program` whose program is told instead of compiled."""
    program = step_program(*arguments)

    class Told:
        def lower(self, *arguments):
            raise LoweredError(program.lower(*arguments).as_text())

    return Told()


@pytest.mark.parametrize("training", BATCHES)
def test_the_planned_step_is_the_one_that_the_stage_compiles(
    training, workdir, tmp_path, monkeypatch
):
    (tmp_path / "encoded").symlink_to(encoded(workdir))
    if training != "pretrain":
        (tmp_path / "pretrain").symlink_to(workdir / "pretrain")
    monkeypatch.setattr(loop, "step_program", lowering)
    config, stages = small(), {"pretrain": pretrain, "prefer": prefer, "finetune": finetune}
    if training == "finetune":
        # Of what the run has: its pictures in the place of samples, and no adapters.
        config = small(distil__data="encoded", prefer__steps=0)
    with pytest.raises(LoweredError) as trained:
        stages[training](config, tmp_path)

    job = job_of(training, config)
    shapes = job.batch_shapes(BUCKET, BATCHES[training])
    shardings, arguments = step_arguments(job.objective, job.mesh, shapes)
    with jax.set_mesh(job.mesh):
        planned = step_program(job.objective, shardings, job.mesh).lower(*arguments).as_text()
    assert planned == str(trained.value)


def test_adapters_are_planned_with_the_network_that_they_are_of():
    job = job_of("prefer")
    program = job.compiled(BUCKET, 8)
    _, arguments = step_arguments(job.objective, job.mesh, job.batch_shapes(BUCKET, 8))
    assert program.memory.arguments == shard_bytes(arguments)
    entry = bucket_entry(job, BUCKET, 8, program)
    # Each of two pictures, with adapters and without: forward four times, and backward twice.
    assert 0.5 < entry["compiled_over_model_flops"] < 1.5
    assert entry["hours"] == pytest.approx(2 * entry["step_s"] / 3600)
    line = headline(job, "v5e:2x4", slices=1, batch_size=8)
    assert "batch 8, prefer by DPO, 0.00 B parameters of the LoRA, 0.00 B of the base" in line


def test_a_network_of_another_size_is_planned_with_its_own():
    config = small(student__depth=1, prefer__applied=("before",))
    whole, other = (job_of(name, config) for name in ("pretrain", "pretrain_student"))
    sizes = [
        shard_bytes(step_arguments(job.objective, job.mesh, job.batch_shapes(BUCKET, 8))[1])
        for job in (whole, other)
    ]
    assert sizes[1] < 0.8 * sizes[0]
    assert "pretrain_student by flow matching" in headline(other, "v5e:2x4", 1, batch_size=8)


def test_the_compiled_stage_has_its_hours_and_batch_and_others_keep_theirs():
    job = job_of("prefer")
    before = {cost.stage: cost for cost in run_costs(job_of("distil"), [BUCKET], 32, 100, {})}
    found = {cost.stage: cost for cost in run_costs(job, [BUCKET], 24, 100, {BUCKET.name: 5.0})}
    assert list(found) == list(before)
    assert found["prefer"].seconds == 2 * 5.0
    assert found["prefer"].model_flops == 3 * before["prefer"].model_flops
    assert found["finetune"] == before["finetune"] and found["pretrain"] == before["pretrain"]
    batch_size = job.config.distil.batch_size
    assert found["distil"].model_flops == before["distil"].model_flops * batch_size / 32


@pytest.mark.parametrize(
    ("training", "changes", "words"),
    [
        ("prefer", {"prefer__steps": 0},
         r"\(pretrain, finetune, distil\), since prefer\.steps is 0: use more, such as"),
        ("finetune", {"stages": ("distil",)},
         r"\(distil\), since stages is distil: name 'finetune' among them"),
        ("pretrain_student", {}, r"student\.depth is 0: give .*--config\.student\.depth=12"),
        ("pretrain", {"weights": "a/b", "model__joined_channels": 0}, "the weights a/b: leave"),
        ("pretrain_teacher", {"teacher__depth": 1, "student__depth": 1, "prefer__steps": 0},
         "are one network: use --stage=pretrain_student"),
    ],
)  # fmt: skip
def test_a_stage_that_the_config_does_not_run_is_refused_in_one_sentence(training, changes, words):
    config = small(**changes)
    assert training not in trainings_run(config)
    with pytest.raises(UserError, match=words):
        check_training(config, training)


def test_a_stage_is_refused_before_anything_is_compiled():
    config = typed(sd3_turbo.get_config("size=medium,resolution=256"))
    with pytest.raises(UserError, match=r"--stage=prefer .* prefer\.steps is 0"):
        plan(config, Options(topology="v5e:2x2", stage="prefer"))
    with pytest.raises(
        UserError, match=r"--stage=preferr is not a training: did you mean prefer\?"
    ):
        Options(topology="v5e:2x2", stage="preferr")
