"""What a step is given on a chip, and what the compiler says of one that does not fit."""

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import digits, sd3_turbo
from ladd_jax.config import objectives
from ladd_jax.config.fields import typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.methods import METHODS
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.planning.compile import memory_refused, shard_bytes, step_arguments
from ladd_jax.planning.job import Job
from ladd_jax.planning.report import headline
from ladd_jax.planning.topology import parse_gpu
from ladd_jax.training.program import step_program


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (73.5G) exceeds available HBM (15.75G).",
            (73.5 * 2**30, 15.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory. Used 900M of 800M hbm.",
            (900 * 2**20, 800 * 2**20),
        ),
        ("INTERNAL: Mosaic failed to compile", None),
    ],
)
def test_the_compilers_refusal_tells_how_much_was_wanted(message, sizes):
    assert memory_refused(message) == sizes


def test_a_shard_is_the_part_of_an_array_on_one_chip():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    tree = [
        jax.ShapeDtypeStruct((16, 4), "float32", sharding=sharding),
        jax.ShapeDtypeStruct((3,), "bfloat16", sharding=whole),
    ]
    assert shard_bytes(tree) == 2 * 4 * 4 + 3 * 2


def job_on(topology, config):
    """A config on as many simulated devices, its parameters over all of them."""
    chip, chips = parse_gpu(topology)
    mesh = make_mesh({"fsdp": chips}, jax.devices()[:chips])
    config = typed(config)
    return Job(config, objectives.distillation(config), chip, mesh)


def given_bytes(job):
    """Bytes of a chip that the step of the first bucket is given, one image a chip."""
    shapes = job.batch_shapes(Bucket.parse(job.config.data.buckets[0]), job.chips)
    return shard_bytes(step_arguments(job.objective, job.mesh, shapes)[1])


def test_a_step_is_given_student_average_moment_and_teacher():
    config = sd3_turbo.get_config("size=medium,resolution=256")
    # Student, average and second moment of float32, and a teacher of bfloat16: 2.03 B of each.
    assert given_bytes(job_on("gpu:80", config)) == pytest.approx(14 * 2.03e9, rel=0.01)


@pytest.mark.parametrize("objective", ["lcm", "dmd", "progressive"])
def test_a_rival_is_planned_with_what_it_is_given(objective):
    config = digits.get_config()
    config.distil.update(dict(objective=objective, batch_size=8))
    if objective == "progressive":
        config.distil.phase_steps = 100
    config.synthesize.guidance_range = (2.0, 6.0)
    job = job_on("gpu:80x8", config)
    shapes = job.batch_shapes(Bucket(8, 8), 8)
    shardings, arguments = step_arguments(job.objective, job.mesh, shapes)
    assert arguments[1]["null"].keys() == {"context", "pooled"}
    with jax.set_mesh(job.mesh):
        state, metrics = step_program(job.objective, shardings, job.mesh).eval_shape(*arguments)
    assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(
        lambda leaf: leaf.shape, arguments[0]
    )
    assert "skipped" in metrics
    line = headline(job, "gpu:80x8", slices=1, batch_size=8)
    assert f"batch 8, {METHODS[objective].short}, " in line


def test_a_smaller_teacher_is_planned_with_its_own_size():
    config = sd3_turbo.get_config("size=large,teacher=medium,resolution=256")
    assert (config.model.depth, config.teacher.depth) == (38, 24)
    job = job_on("gpu:80x8", config)
    line = headline(job, "gpu:80x8", slices=1, batch_size=8)
    assert "8.06 B parameters of the student, 2.03 B of the teacher" in line
    # Student, average and second moment of float32 over eight chips, and a teacher of bfloat16.
    billions = (12 * 8.06 + 2 * 2.03) / 8
    assert given_bytes(job) == pytest.approx(billions * 1e9, rel=0.03)
    bucket = Bucket.parse(config.data.buckets[0])
    cond = job.batch_shapes(bucket, 1)["cond"]
    flops = objectives.model_flops(job.config, job.objective, bucket, cond)
    large = typed(sd3_turbo.get_config("size=large,resolution=256"))
    same = objectives.model_flops(large, objectives.ladd(large), bucket, cond)
    assert 0.5 < flops / same < 0.7
