"""Every field of a config reaches the object that it describes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import digits
from ladd_jax.cli.preflight import check
from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.diffusion.samplers import linear_sigmas
from ladd_jax.errors import UserError
from ladd_jax.models.sd3.flops import forward_flops

# Fields of a stage, not of its objective.
OF_THE_STAGE = {"data", "steps", "batch_size", "seed", "weights", "family", "objective", "follows"}
CHANGED = {
    "timesteps": (1.0, 0.5),
    "probabilities": (0.4, 0.6, 0.0, 0.0),
    "warmup_probabilities": (0.1, 0.2, 0.3, 0.4),
    "loss": "lsgan",
    "hooked_blocks": (1, 2),
    "accumulated_heads": "before",
    "consistency_solver": "midpoint",
    "moment_dtype": "bfloat16",
    "remat": "dots",
    "dtype": "bfloat16",
    "param_dtype": "bfloat16",
    "teacher_dtype": "bfloat16",
    "dual_attention": (0, 1),
}


def other(name, value):
    if name in CHANGED:
        return CHANGED[name]
    if isinstance(value, bool):
        return not value
    # Half of a number is in every range that the number is in.
    return (value / 2 or 0.5) if isinstance(value, float) else value * 2 or 1


def fields(section):
    config = digits.get_config()[section]
    return [
        name for name in config if name not in OF_THE_STAGE and not hasattr(config[name], "items")
    ]


def built(section, config):
    make = {
        "teacher": architectures.teacher_architecture,
        "model": architectures.student_architecture,
        "pretrain": lambda config: objectives.flow_matching(config, config.pretrain),
        "finetune": lambda config: objectives.flow_matching(config, config.finetune),
        "distil": objectives.distillation,
    }
    return make[section](typed(config))


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (section, name)
        for section in ("model", "teacher", "pretrain", "finetune", "distil")
        for name in fields(section)
    ],
)
def test_a_field_reaches_the_objective(section, name):
    config = digits.get_config()
    if section == "teacher":
        config.teacher.update(dict(depth=2, width=32, num_heads=2))
    value = other(name, config[section][name])
    config[section][name] = value
    if name == "timesteps":
        config.distil.probabilities = config.distil.warmup_probabilities = (0.5, 0.5)
    if name == "image_dropout":
        config.data.update(dict(source="scene_edits", joined="edit"))
    if name in ("halvings", "phase_steps"):
        config.distil.update(dict(objective="progressive", steps=100_000))
    result = built(section, config)
    if name == "teacher_dtype":
        result, name = architectures.generator_architecture(typed(config)), "param_dtype"
    if name == "hooked_blocks":
        result = result.critic
    if name == "consistency_steps":
        assert len(result.consistency.levels) == value + 1
        return
    if name == "consistency_solver":
        result, name = result.consistency, "solver"
    attribute = {"channels": "out_channels"}.get(name, name)
    if name == "joined_channels":
        assert result.in_channels - result.out_channels == value
        return
    assert getattr(result, attribute) == value


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("pretrain", "optimizer"),
        ("finetune", "optimizer"),
        ("distil", "optimizer"),
        ("distil", "heads_optimizer"),
    ],
)
def test_every_optimizer_has_the_settings_of_its_own_section(stage, name):
    config = digits.get_config()
    section = config[stage][name]
    wanted = {field: other(field, section[field]) for field in section}
    # A rate cannot fall before it has risen.
    wanted["decay_steps"] = wanted["warmup_steps"] + 1
    section.update(wanted)
    assert dataclasses.asdict(getattr(built(stage, config), name)) == wanted


def test_the_heads_read_the_teacher_and_not_the_student():
    config = digits.get_config()
    config.teacher.update(dict(depth=3, width=48, num_heads=2, patch=4))
    config = typed(config)
    objective = objectives.ladd(config)
    assert objective.critic.heads.shapes["heads"]["entry"]["convolution"]["kernel"].shape[:4] == (
        3, 1, 1, 48
    )  # fmt: skip
    assert objective.critic.teacher.blocks == 3
    bucket, length = Bucket(8, 8), config.data.text_length
    cond = {"context": jax.ShapeDtypeStruct((length, 1), jnp.float32)}
    student, teacher = objective.forward_units
    assert objectives.model_flops(config, objective, bucket, cond) == (
        student * forward_flops(architectures.student_architecture(config), 8, 8, length)
        + teacher * forward_flops(architectures.teacher_architecture(config), 8, 8, length)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(weights="other"), "teacher.weights is other and teacher.depth is 0"),
        (dict(depth=2, width=32), "teacher.num_heads is 0 and teacher.depth is 2"),
        (dict(depth=2, width=32, num_heads=2), "teacher.depth is 2 and teacher.weights is empty"),
        (dict(depth=2, width=32, num_heads=3), "teacher.width 32 is not divisible by teacher.num"),
    ],
)
def test_a_teacher_that_is_half_described_is_refused(changes, words):
    config = digits.get_config()
    config.teacher.update(changes)
    # With this stage the third would be trained from nothing.
    config.stages = tuple(name for name in config.stages if name != "pretrain")
    with pytest.raises(UserError, match=words):
        check(typed(config))


def test_the_heads_have_the_settings_of_their_section():
    config = digits.get_config()
    config.heads.update(dict(channels=16, kernel=5, groups=4, projection=8, spectral_norm=False))
    shapes = objectives.ladd(typed(config)).critic.heads.shapes["heads"]
    assert shapes["residual"]["convolution"]["kernel"].shape == (4, 5, 5, 16, 16)
    assert shapes["exit"]["kernel"].shape == (4, 1, 1, 16, 8)


def test_the_baseline_has_no_heads_and_follows_the_guided_data_generator():
    config = digits.get_config()
    config.distil.update(
        dict(objective="lcm", follows="generator", accumulation=2, consistency_steps=7)
    )
    config.synthesize.update(dict(guidance=2.5, shift=2.0))
    config.model.teacher_dtype = "bfloat16"
    objective = objectives.distillation(typed(config))
    assert objective.heads is None and list(objective.networks) == ["teacher"]
    held = objective.consistency
    assert (held.levels, held.accumulation) == (linear_sigmas(7, 2.0), 2)
    assert (held.followed.guidance, held.followed.tree) == (2.5, "teacher")
    generator = architectures.generator_architecture(typed(config))
    assert architectures.teacher_architecture(typed(config)) == generator
    assert objective.optimizer == typed(config).distil.optimizer
    assert objective.ema_decay == config.distil.ema_decay


def test_distribution_matching_has_a_network_for_the_students_samples_that_is_told_as_it_is():
    config = digits.get_config()
    config.distil.update(
        dict(
            objective="dmd", follows="generator", head_updates=4, own_share=0.5, renoise_mean=0.3
        )
    )  # fmt: skip
    config.synthesize.guidance_range = (2.0, 6.0)
    objective = objectives.distillation(typed(config))
    assert list(objective.networks) == ["teacher"] and objective.heads is objective.fake
    assert "guidance_up" in objective.fake.shapes and "guidance_up" in objective.student.shapes
    assert "guidance_up" not in objective.followed.network.shapes
    stage = typed(config).distil
    for name in ("head_updates", "own_share", "renoise_mean", "timesteps", "heads_optimizer"):
        assert getattr(objective, name) == getattr(stage, name)


@pytest.mark.parametrize(
    ("changes", "networks", "cut"),
    [
        ({}, ["teacher"], 0),
        # Adapters of the same network as is followed.
        ({"teacher.depth": 2, "teacher.width": 32, "teacher.num_heads": 2, "finetune.steps": 0,
          "distil.lora.rank": 2}, ["teacher", "generator"], 0),
        # One whole tree of parameters instead of a part of it and the whole.
        ({"distil.hooked_blocks": (0, 1)}, ["teacher"], 0),
        ({"teacher.depth": 2, "teacher.width": 32, "teacher.num_heads": 2},
         ["teacher", "generator"], 0),
        ({"teacher.depth": 3, "teacher.width": 32, "teacher.num_heads": 2,
          "distil.hooked_blocks": (0,)}, ["teacher", "generator"], 1),
        ({"teacher.weights": "elsewhere", "teacher.depth": 4, "teacher.width": 64,
          "teacher.num_heads": 2}, ["teacher", "generator"], 0),
    ],
)  # fmt: skip
def test_the_data_generator_is_the_teachers_tree_where_they_are_one(changes, networks, cut):
    config = digits.get_config()
    config.distil.update(dict(consistency_weight=1.0, follows="generator"))
    config.update_from_flattened_dict(changes)
    objective = objectives.distillation(typed(config))
    assert list(objective.networks) == networks
    assert objective.consistency.followed.tree == networks[-1]
    assert architectures.teacher_architecture(typed(config)).cut == cut


def test_a_teacher_under_heads_that_are_not_there_is_refused():
    config = digits.get_config()
    config.distil.objective = "lcm"
    config.teacher.update(dict(weights="elsewhere", depth=2, width=32, num_heads=2))
    with pytest.raises(UserError, match="distil.objective is lcm, without heads, and the section"):
        typed(config)
    config.teacher.update(dict(weights="", depth=0))
    config.model.teacher_dtype = "int8"
    with pytest.raises(UserError, match="lcm and model.teacher_dtype int8, which is for a teacher"):
        typed(config)


@pytest.mark.parametrize(
    "name",
    ["paired_weight", "moments_weight", "misaligned_share", "refreshed_heads", "student_interval"],
)
def test_what_would_do_nothing_without_heads_is_refused(name):
    config = digits.get_config()
    value = 2 if name == "student_interval" else 0.25
    config.distil.update({"objective": "dmd", name: value})
    words = f"distil.{name} is {value} and distil.objective dmd, which"
    with pytest.raises(UserError, match=words):
        typed(config)


def test_a_loss_that_is_one_has_no_ramp():
    config = digits.get_config()
    config.distil.ramp.update(dict(steps=(0, 100), consistency=(1.0, 0.5)))
    assert typed(config).distil.ramp.ramped == ("consistency",)
    config.distil.objective = "lcm"
    with pytest.raises(UserError, match="ramp has factors of consistency and distil.objective is"):
        typed(config)
    config.distil.ramp.steps = (100, 0)
    with pytest.raises(UserError, match=r"distil\.ramp\.steps is \(100, 0\): use two steps"):
        typed(config)


def test_what_is_followed_is_guided_as_the_samples_are():
    config = digits.get_config()
    config.distil.update(dict(objective="dmd", follows="generator"))
    config.synthesize.update(dict(guidance=1.0, guidance_interval=(0.2, 0.9)))
    plain = objectives.distillation(typed(config)).followed
    assert (plain.guidance, plain.interval, plain.passes) == (1.0, (0.2, 0.9), 1)
    config.synthesize.guidance_range = (1.0, 6.0)
    told = objectives.distillation(typed(config)).followed
    assert (told.guidance, told.passes) == ((1.0, 6.0), 2)


def test_progressive_distillation_has_its_teacher_beside_the_student_and_told_as_it_is():
    config = digits.get_config()
    config.distil.update(
        dict(objective="progressive", follows="generator", halvings=2, phase_steps=7)
    )
    config.synthesize.update(
        dict(guidance_range=(2.0, 6.0), guidance_interval=(0.2, 0.9), shift=2.0)
    )
    objective = objectives.distillation(typed(config))
    assert list(objective.networks) == ["teacher"] and objective.heads is objective.student
    assert "guidance_up" in objective.heads.shapes
    assert "guidance_up" not in objective.followed.network.shapes
    followed = objective.followed
    assert (followed.guidance, followed.interval) == ((2.0, 6.0), (0.2, 0.9))
    assert objective.shift == 2.0
    stage = typed(config).distil
    for name in ("halvings", "phase_steps", "timesteps", "optimizer", "ema_decay", "accumulation"):
        assert getattr(objective, name) == getattr(stage, name)
    # What `finetune` has made is what it begins as, and is not learned again.
    config.distil.follows = "finetuned"
    objective = objectives.distillation(typed(config))
    assert objective.followed is None and not objective.networks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(halvings=2), "halvings is 2 and distil.objective ladd, which has no phases: leave"),
        (dict(objective="lcm", phase_steps=5), "phase_steps is 5 and distil.objective lcm, which"),
        (dict(objective="progressive", halvings=0), "halvings is 0: use a number from 1 to 10"),
        (dict(objective="progressive", phase_steps=0), "phase_steps is 0: use 1 or more"),
        (dict(objective="progressive", phase_steps=1, own_share=0.5), "own_share is 0.5 and"),
        (dict(objective="progressive", phase_steps=200, follows="finetuned"),
         "steps is 400 and the last phase begins after 400"),
        (dict(objective="progressive", phase_steps=134, follows="generator"),
         r"steps is 400 and the last phase begins after 402 .halvings 3, phase_steps 134.: use m"),
        (dict(objective="progressive", phase_steps=133, paired_weight=0.5), "paired_weight is 0.5"),
    ],
    ids=str,
)  # fmt: skip
def test_phases_that_would_do_nothing_or_never_begin_are_refused(changes, words):
    config = digits.get_config()
    config.distil.update(changes)
    with pytest.raises(UserError, match=words):
        typed(config)


@pytest.mark.parametrize("objective", ["lcm", "dmd", "ladd"])
def test_what_finetune_has_made_may_be_followed_instead(objective):
    config = digits.get_config()
    weight = float(objective == "ladd")
    config.distil.update(
        dict(
            objective=objective, follows="finetuned", consistency_weight=weight, hooked_blocks=(0,)
        )
    )  # fmt: skip
    config.synthesize.guidance_range = (2.0, 6.0)
    config.model.teacher_dtype = "bfloat16"
    target = objectives.distillation(typed(config))
    followed = (target.consistency if objective != "dmd" else target).followed
    assert (followed.tree, followed.guidance, followed.passes) == ("base", None, 1)
    assert "base" in target.networks and "guidance_up" in followed.network.shapes
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(followed.network.shapes))
    # The teacher under the heads may end early then.
    assert architectures.teacher_architecture(typed(config)).cut == (objective == "ladd")
    config.finetune.steps = 0
    with pytest.raises(UserError, match="distil.follows is finetuned and finetune.steps is 0: use"):
        typed(config)
    config.distil.update(dict(objective="ladd", consistency_weight=0.0))
    typed(config)
