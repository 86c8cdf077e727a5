"""The formula of the model's FLOPs counts what the network does."""

import dataclasses
import functools

import jax
import pytest
import tiny

from benchmarks.flops import matrix_flops
from ladd_jax.diffusion.samplers import linear_sigmas
from ladd_jax.models.sd3.flops import forward_flops
from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.objectives.consistency import Consistency
from ladd_jax.objectives.dmd import DMD
from ladd_jax.objectives.flow_matching import FlowMatching
from ladd_jax.objectives.followed import Followed
from ladd_jax.objectives.lcm import LCM
from ladd_jax.objectives.progressive import Progressive
from ladd_jax.training.optimizers import Optimizer


def abstract_batch(config, height, width, length, size=1):
    def array(*shape):
        return jax.ShapeDtypeStruct((size, *shape), "float32")

    joined = config.in_channels - config.out_channels
    cond = {
        "context": array(length, config.context_width),
        "pooled": array(config.pooled_width),
        **({"channels": array(height, width, joined)} if joined else {}),
    }
    return {"latents": array(height, width, config.out_channels), "cond": cond}


@pytest.mark.parametrize(
    ("changes", "height", "width", "length"),
    [
        ({}, 8, 4, 5),
        ({"depth": 3, "in_channels": 5, "mlp_ratio": 2, "qk_norm": True}, 4, 16, 40),
        ({"depth": 4, "dual_attention": (0, 1, 3)}, 16, 16, 7),
        ({"depth": 4, "dual_attention": (0, 1, 3), "cut": 2}, 16, 16, 7),
        # SD3-Medium and SD3.5-Medium at 1024 x 1024: 8.9 and 11.2 TFLOP.
        (dict(depth=24, width=1536, num_heads=24, in_channels=16, out_channels=16,
              context_width=4096, pooled_width=2048, position_table=192), 128, 128, 333),
        (dict(depth=24, width=1536, num_heads=24, in_channels=16, out_channels=16,
              context_width=4096, pooled_width=2048, position_table=384, qk_norm=True,
              dual_attention=tuple(range(13))), 128, 128, 333),
    ],
    ids=["tiny", "channels", "dual", "cut", "sd3-medium", "sd3.5-medium"],
)  # fmt: skip
def test_forward_flops_are_those_of_the_networks_matrix_products(changes, height, width, length):
    config = tiny.mmdit_config(**changes)
    model = mmdit(config)
    batch = abstract_batch(config, height, width, length)
    time = jax.ShapeDtypeStruct((1,), "float32")
    counted = matrix_flops(
        functools.partial(model, tap=lambda *_: None),
        model.shapes, batch["latents"], time, batch["cond"],
    )  # fmt: skip
    assert forward_flops(config, height, width, length) == pytest.approx(counted, rel=0.01)


# Wide enough for the heads to be small next to the teacher, as they are in any real setting.
WIDE = tiny.mmdit_config(depth=4, width=256, num_heads=4)
SHAPE, SIZE = (16, 16, 12), 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_updates": 2, "misaligned_share": 0.5},
        {"accumulation": 2},
        {"accumulation": 2, "accumulated_heads": "before"},
        {"accumulation": 2, "head_updates": 2, "misaligned_share": 0.5},
        {"own_share": 0.5},
        {"loss": "relativistic"},
        {"loss": "relativistic", "accumulation": 2, "misaligned_share": 0.5},
        {"moments_weight": 1.0},
    ],
    ids=[
        "one update",
        "two updates with misaligned pairs",
        "two passes",
        "heads from before",
        "all",
        "inputs of its own",
        "pairs of a fake and a real sample",
        "misaligned pairs in two passes",
        "moments",
    ],
)
def test_a_step_of_ladd_takes_its_forward_units(changes):
    objective = tiny.ladd(WIDE, **changes)
    student, teacher = objective.forward_units
    known = {
        "": 6,
        "accumulation": 8,
        "accumulation accumulated_heads": 6,
        "own_share": 9,
        "loss": 6,
        "moments_weight": 7,
    }
    assert student + teacher == known.get(" ".join(changes), student + teacher)
    state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), objective.student.shapes)
    frozen = {"teacher": objective.critic.teacher.shapes}
    batch = abstract_batch(WIDE, *SHAPE, size=SIZE)
    counted = matrix_flops(objective.step, state, frozen, batch)
    expected = (student + teacher) * SIZE * forward_flops(WIDE, *SHAPE)
    # Heads on top, and no gradient of the latents below.
    assert counted == pytest.approx(expected, rel=0.05)


def test_a_student_that_waits_takes_its_passes_in_its_own_steps_alone():
    units = tiny.ladd(WIDE, student_interval=4, head_updates=2).forward_units
    assert units == (1 + 2 / 4, 4 + 1 / 4)


def abstract_null(batch):
    return {
        name: jax.ShapeDtypeStruct(array.shape[1:], "float32")
        for name, array in batch["cond"].items()
    }


@pytest.mark.parametrize(("guidance", "units"), [(3.0, 6), (1.0, 5)])
def test_consistency_takes_its_forward_units_alone_and_beside_ladd(guidance, units):
    held = Consistency(mmdit(WIDE), Followed(mmdit(WIDE), guidance=guidance), linear_sigmas(4))
    ladd = tiny.ladd(WIDE, consistency=held, consistency_weight=1.0)
    alone = LCM(held, Optimizer(1e-3))
    assert (alone.forward_units, ladd.forward_units) == ((units, 0), (units + 3, 3))
    batch = abstract_batch(WIDE, *SHAPE, size=SIZE)
    frozen = {"teacher": mmdit(WIDE).shapes, "null": abstract_null(batch)}
    for objective in (alone, ladd):
        state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), objective.student.shapes)
        counted = matrix_flops(objective.step, state, frozen, batch)
        expected = sum(objective.forward_units) * SIZE * forward_flops(WIDE, *SHAPE)
        assert counted == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("guidance", "updates", "units"), [(3.0, 1, 9), (None, 2, 11)])
def test_distribution_matching_takes_its_forward_units(guidance, updates, units):
    objective = DMD(
        student=mmdit(WIDE), followed=Followed(mmdit(WIDE), guidance=guidance), fake=mmdit(WIDE),
        optimizer=Optimizer(1e-3), heads_optimizer=Optimizer(1e-3), head_updates=updates,
    )  # fmt: skip
    assert objective.forward_units == (units, 0)
    state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), objective.student.shapes)
    batch = abstract_batch(WIDE, *SHAPE, size=SIZE)
    frozen = {"teacher": mmdit(WIDE).shapes, "null": abstract_null(batch)}
    counted = matrix_flops(objective.step, state, frozen, batch)
    assert counted == pytest.approx(units * SIZE * forward_flops(WIDE, *SHAPE), rel=0.05)


@pytest.mark.parametrize(("image_guidance", "units"), [(1.0, 5), (1.5, 6)])
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_a_step_that_halves_takes_its_forward_units(guidance, image_guidance, units):
    wide = dataclasses.replace(WIDE, in_channels=WIDE.out_channels + 1)
    followed = Followed(mmdit(wide), guidance=guidance, image_guidance=image_guidance)
    objective = Progressive(
        student=mmdit(wide), followed=followed,
        optimizer=Optimizer(1e-3), timesteps=(1.0, 0.5), halvings=2, phase_steps=1,
    )  # fmt: skip
    assert objective.forward_units == (units, 0)
    state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), objective.student.shapes)
    batch = abstract_batch(wide, *SHAPE, size=SIZE)
    frozen = {"teacher": mmdit(wide).shapes, "null": abstract_null(batch)}
    counted = matrix_flops(objective.step, state, frozen, batch)
    assert counted == pytest.approx(units * SIZE * forward_flops(wide, *SHAPE), rel=0.05)


def test_a_step_of_flow_matching_takes_its_forward_units():
    objective = FlowMatching(mmdit(WIDE), Optimizer(1e-3))
    assert objective.forward_units == (3, 0)
    state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), objective.model.shapes)
    batch = abstract_batch(WIDE, *SHAPE, size=SIZE)
    counted = matrix_flops(objective.step, state, {"null": abstract_null(batch)}, batch)
    assert counted == pytest.approx(3 * SIZE * forward_flops(WIDE, *SHAPE), rel=0.05)
