"""One update is the same on 1, 2, 4 and 8 devices, however they are arranged."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
import tiny

from ladd_jax.diffusion.samplers import linear_sigmas
from ladd_jax.models.dinov2 import Dinov2, Dinov2Config
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.models.lora import BASE, Adapted, LoRA
from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.objectives.add import ADD
from ladd_jax.objectives.consistency import Consistency
from ladd_jax.objectives.critics.pixels import PixelCritic
from ladd_jax.objectives.dmd import DMD
from ladd_jax.objectives.dpo import DPO
from ladd_jax.objectives.flow_matching import FlowMatching
from ladd_jax.objectives.followed import Followed
from ladd_jax.objectives.lcm import LCM
from ladd_jax.objectives.progressive import Progressive
from ladd_jax.parallel.mesh import batch_sharding, make_mesh, parameter_shardings, replicated
from ladd_jax.training.optimizers import Optimizer
from ladd_jax.training.program import state_layout, step_program
from ladd_jax.training.state import create, state_shardings

# Of an array's update over its largest element: float32 sums over devices in another order.
TOLERANCE = 1e-3

# Each axis, each pair of them, and all three.
MESHES = [
    {"data": 8}, {"fsdp": 8}, {"tensor": 2},
    {"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
]  # fmt: skip
# Each compiles a step, which takes seconds: the others are slow tests.
QUICK = {
    "ladd": ({"data": 2, "fsdp": 2, "tensor": 2},),
    "flow_matching": ({"data": 2, "fsdp": 2, "tensor": 2},),
    "lora": ({"fsdp": 2, "tensor": 2},),
    "lcm": ({"fsdp": 2, "tensor": 2},),
    "dmd": ({"fsdp": 2, "tensor": 2},),
    "progressive": ({"fsdp": 2, "tensor": 2},),
    "dpo": ({"fsdp": 2, "tensor": 2},),
    "add": ({"data": 2, "fsdp": 2, "tensor": 2},),
    "waiting": ({"fsdp": 2, "tensor": 2},),
}

# The large epsilon keeps Adam's update in proportion to the gradient, where a small one takes its
# sign, and the sign of a rounding error is anything. The large rate keeps the update of a single
# step above the rounding of the parameters that it is read from.
STUDENT = Optimizer(1000.0, epsilon=1.0)
HEADS = Optimizer(0.1, epsilon=1.0)


def ladd(mesh):
    """(objective, shardings, initial state, frozen)."""
    target = tiny.ladd(optimizer=STUDENT, heads_optimizer=HEADS, ema_decay=0.9)
    _, shardings = state_layout(target, mesh)
    student, teacher = (tiny.random_params(target.student, seed) for seed in (3, 5))
    state = create(target.init, shardings, jax.random.PRNGKey(0), student)
    return target, shardings, state, jax.device_put({"teacher": teacher}, replicated(mesh))


def waiting(mesh):
    """The same of a student that was waited for, under heads of which some are made anew."""
    target = tiny.ladd(
        optimizer=STUDENT, heads_optimizer=HEADS, ema_decay=0.9, student_interval=2,
        refreshed_heads=0.5, r1_gamma=1e-2, r1_noise=0.1,
    )  # fmt: skip
    _, shardings = state_layout(target, mesh)
    student, teacher = (tiny.random_params(target.student, seed) for seed in (3, 5))
    state = create(target.init, shardings, jax.random.PRNGKey(0), student)
    step = jax.device_put(jnp.ones((), jnp.int32), shardings.step)
    state = dataclasses.replace(state, step=step)
    return target, shardings, state, jax.device_put({"teacher": teacher}, replicated(mesh))


def flow_matching(mesh):
    """The same of the teacher's training."""
    target = FlowMatching(mmdit(tiny.mmdit_config()), STUDENT, ema_decay=0.9)
    params = tiny.random_params(target.model, 3)
    shapes = jax.eval_shape(target.init, jax.random.PRNGKey(0), params)
    shardings = state_shardings(
        shapes, mesh, axes=target.model.axes, optimizer=STUDENT.build()
    )  # fmt: skip
    state = create(target.init, shardings, jax.random.PRNGKey(0), params)
    null = {"context": jnp.zeros((tiny.T, tiny.CONTEXT)), "pooled": jnp.zeros(tiny.POOLED)}
    return target, shardings, state, jax.device_put({"null": null}, replicated(mesh))


def lora(mesh):
    """The same of adapters, whose base lies on the mesh as other parameters do."""
    whole = tiny.ladd(optimizer=STUDENT, heads_optimizer=HEADS, ema_decay=0.9)
    adapted = Adapted(whole.student, LoRA(rank=4))
    target = dataclasses.replace(whole, student=adapted)
    _, shardings = state_layout(target, mesh)
    # Without zeros, so that both adapters of a layer have a gradient.
    params = tiny.random_params(adapted, 3)
    state = create(target.init, shardings, jax.random.PRNGKey(0), params)
    state = dataclasses.replace(
        state, params=jax.device_put(params, shardings.params),
        ema=jax.device_put(jax.tree.map(jnp.copy, params), shardings.ema),
    )  # fmt: skip
    base, teacher = (tiny.random_params(whole.student, seed) for seed in (4, 5))
    laid = parameter_shardings(mesh, whole.student.shapes, whole.student.axes)
    frozen = {"teacher": jax.device_put(teacher, laid), BASE: jax.device_put(base, laid)}
    return target, shardings, state, frozen


def rival(make):
    """The same of a target whose followed network lies on the mesh as other parameters do."""

    def build(mesh):
        target = make(mmdit(tiny.mmdit_config()))
        _, shardings = state_layout(target, mesh)
        student, followed = (tiny.random_params(target.student, seed) for seed in (3, 5))
        state = create(target.init, shardings, jax.random.PRNGKey(0), student)
        laid = parameter_shardings(mesh, target.student.shapes, target.student.axes)
        null = {"context": jnp.zeros((tiny.T, tiny.CONTEXT)), "pooled": jnp.zeros(tiny.POOLED)}
        frozen = {
            "teacher": jax.device_put(followed, laid),
            "null": jax.device_put(null, replicated(mesh)),
        }
        return target, shardings, state, frozen

    return build


@rival
def lcm(network):
    followed = Followed(network, guidance=3.0)
    return LCM(Consistency(network, followed, linear_sigmas(4), accumulation=2), STUDENT, 0.9)


@rival
def dmd(network):
    return DMD(
        student=network, followed=Followed(network, guidance=3.0), fake=network,
        optimizer=STUDENT, heads_optimizer=HEADS, warmup_steps=0, own_share=0.5, accumulation=2,
        ema_decay=0.9,
    )  # fmt: skip


@rival
def phases(network):
    return Progressive(
        student=network, followed=Followed(network, guidance=3.0), optimizer=STUDENT,
        timesteps=(1.0, 0.5), halvings=1, phase_steps=1, accumulation=2, ema_decay=0.9,
    )  # fmt: skip


def progressive(mesh):
    """The same where its first halving begins, with another average than the student is."""
    target, shardings, state, frozen = phases(mesh)
    average = jax.device_put(tiny.random_params(target.student, 7), shardings.ema)
    step = jax.device_put(jnp.ones((), jnp.int32), shardings.step)
    return target, shardings, dataclasses.replace(state, step=step, ema=average), frozen


def add(mesh):
    """The same of a critic in pixels, on grey latents that are pictures."""
    network = mmdit(tiny.mmdit_config(depth=1, in_channels=1, out_channels=1))
    heads = HeadConfig(16, tiny.POOLED, told_noise=False, channels=16, groups=4)
    critic = PixelCritic(
        dino=Dinov2(
            Dinov2Config(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16,
                patch_size=4, num_register_tokens=1,
            )
        ),
        head=head(heads), heads=head_stack(heads, 1), hooked_blocks=(1,), resolution=8,
        summary="pooled", teacher=network,
    )  # fmt: skip
    target = ADD(
        student=network, critic=critic, optimizer=STUDENT, heads_optimizer=HEADS, warmup_steps=0,
        distillation_weight=2.5, ema_decay=0.9,
    )  # fmt: skip
    _, shardings = state_layout(target, mesh)
    state = create(target.init, shardings, jax.random.PRNGKey(0), tiny.random_params(network, 3))
    frozen = {
        name: jax.device_put(
            tiny.random_params(part, seed), parameter_shardings(mesh, part.shapes, part.axes)
        )
        for seed, (name, part) in enumerate(target.networks.items(), 5)
    }
    return target, shardings, state, frozen


def dpo(mesh):
    """The same of adapters that learn preferences."""
    base = mmdit(tiny.mmdit_config())
    target = DPO(Adapted(base, LoRA(rank=4)), STUDENT, beta=5.0, accumulation=2, ema_decay=0.9)
    params = tiny.random_params(target.model, 3)
    shapes = jax.eval_shape(target.init, jax.random.PRNGKey(0), params)
    shardings = state_shardings(shapes, mesh, axes=target.model.axes, optimizer=STUDENT.build())
    state = create(target.init, shardings, jax.random.PRNGKey(0), params)
    laid = parameter_shardings(mesh, base.shapes, base.axes)
    null = {"context": jnp.zeros((tiny.T, tiny.CONTEXT)), "pooled": jnp.zeros(tiny.POOLED)}
    frozen = {
        BASE: jax.device_put(tiny.random_params(base, 5), laid),
        "null": jax.device_put(null, replicated(mesh)),
    }
    return target, shardings, state, frozen


OBJECTIVES = {
    "ladd": ladd, "flow_matching": flow_matching, "lora": lora, "lcm": lcm, "dmd": dmd,
    "progressive": progressive, "dpo": dpo, "add": add, "waiting": waiting,
}  # fmt: skip
# The others are tested on the meshes of `QUICK`.
ON_ALL_MESHES = ("ladd", "flow_matching")

# Of these a mesh is looked at in a quick test.
IN_QUICK_TESTS = ("ladd", "flow_matching", "lora")


def update(objective, sizes):
    """What one step adds to each parameter, and the metrics, on a mesh of these sizes."""
    devices = jax.devices()[: math.prod(sizes.values())]
    mesh = make_mesh(sizes, devices)
    target, shardings, state, frozen = OBJECTIVES[objective](mesh)
    trees = ("params", "ema", "heads")
    before = jax.device_get({tree: getattr(state, tree) for tree in trees})
    batch = tiny.batch(height=4, width=4)
    batch = tiny.compared(batch) if objective == "dpo" else batch
    if objective == "add":
        batch = batch | {"latents": batch["latents"][..., :1]}
    batch = jax.device_put(batch, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        state, metrics = step_program(target, shardings, mesh)(state, frozen, batch)
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == len(devices)
    after = jax.device_get({tree: getattr(state, tree) for tree in trees})
    return jax.tree.map(lambda a, b: a - b, after, before), jax.device_get(metrics)


@functools.cache
def on_one_device(objective):
    return update(objective, {"data": 1})


@pytest.mark.parametrize(
    ("objective", "sizes"),
    [
        pytest.param(
            objective,
            sizes,
            marks=()
            if objective in IN_QUICK_TESTS and sizes in QUICK[objective]
            else pytest.mark.slow,
            id=f"{objective}-{'x'.join(f'{axis}{size}' for axis, size in sizes.items())}",
        )
        for objective in OBJECTIVES
        for sizes in (MESHES if objective in ON_ALL_MESHES else QUICK[objective])
    ],
)
def test_an_update_is_that_of_one_device(objective, sizes):
    (updates, metrics), (wanted, wanted_metrics) = (
        update(objective, sizes),
        on_one_device(objective),
    )
    for tree in filter(updates.get, updates):
        assert tiny.gradient_difference(updates[tree], wanted[tree]) < TOLERANCE, tree
    for name, value in wanted_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), name
