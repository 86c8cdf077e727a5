"""A config as dataclasses: one statement of each default, and what a section refuses."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import digits, scenes, sd3_turbo
from ladd_jax.config.arguments import parse_arguments
from ladd_jax.config.fields import Config, base_config, to_dict, typed
from ladd_jax.errors import UserError
from ladd_jax.models.families import family
from ladd_jax.models.heads import HeadConfig
from ladd_jax.objectives.flow_matching import FlowMatchingSettings
from ladd_jax.objectives.ladd_settings import LADDSettings
from ladd_jax.ranges import Range


def changed(**fields):
    """The base config with `section__field=value`."""
    config = base_config()
    for path, value in fields.items():
        *sections, name = path.split("__")
        section = config
        for part in sections:
            section = section[part]
        section[name] = value
    return config


def test_the_base_config_is_the_defaults_and_is_locked():
    assert base_config().to_dict() == dataclasses.asdict(Config())
    assert typed(base_config()) == Config()
    with pytest.raises(AttributeError):
        base_config().distil.stepz = 3
    with pytest.raises(TypeError):
        base_config().distil.steps = "many"


def test_what_is_the_setting_of_an_object_has_its_default():
    config = Config()
    objects = (
        (config.distil, LADDSettings), (config.pretrain, FlowMatchingSettings),
        (config.heads, HeadConfig), (config.model, family(config.model.family).architecture),
    )  # fmt: skip
    for section, kind in objects:
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(kind)
            if field.default is not dataclasses.MISSING and not field.name.endswith("dtype")
        }
        shared = defaults.keys() & {field.name for field in dataclasses.fields(section)}
        assert len(shared) >= 5
        assert {name: getattr(section, name) for name in shared} == {
            name: defaults[name] for name in shared
        }


@pytest.mark.parametrize(
    "config", [digits.get_config(), scenes.get_config(), sd3_turbo.get_config("size=large")]
)
def test_a_config_and_its_dataclasses_say_the_same(config):
    again = base_config()
    again.update(dataclasses.asdict(typed(config)))
    assert typed(again) == typed(config)
    # A whole number is a float where the default is one.
    assert isinstance(typed(config).model.position_base, float)
    assert to_dict(typed(config))["distil"]["timesteps"] == [1.0, 0.75, 0.5, 0.25]


def test_sd3_trains_adapters_where_a_rank_is_given():
    whole, adapters = (typed(sd3_turbo.get_config(f"size=medium,lora={r}")) for r in (0, 64))
    assert (whole.distil.lora.rank, adapters.distil.lora.rank) == (0, 64)
    rates = [config.distil.optimizer.learning_rate for config in (whole, adapters)]
    assert rates == [1e-5, 1e-4]


numbers = st.integers(1, 10**6)
rates = st.floats(0, 1, exclude_max=True)


scales = st.lists(st.floats(1, 20), max_size=4, unique=True)


@given(numbers, rates, scales, st.booleans())
def test_what_a_config_says_survives_dataclasses_and_json(steps, decay, guidances, norm):
    config = changed(
        distil__steps=steps, distil__ema_decay=decay, evaluate__guidances=tuple(guidances),
        model__qk_norm=norm,
    )  # fmt: skip
    found = typed(config)
    assert (found.distil.steps, found.distil.ema_decay, found.model.qk_norm) == (steps, decay, norm)
    again = json.loads(json.dumps(to_dict(found)))
    assert again == to_dict(found) and again["evaluate"]["guidances"] == guidances


texts = st.text("abc/~.-_0", min_size=1)


@given(texts, st.lists(texts, min_size=1, max_size=3), st.integers(), st.floats(allow_nan=False))
def test_arguments_of_a_config_file_are_read_as_they_were_written(place, paths, number, rate):
    defaults = {"weights": "w", "data": "d", "steps": 1, "rate": 0.5}
    written = f"weights={place},data={','.join(paths)},steps={number},rate={rate!r}"
    assert parse_arguments(written, defaults) == {
        "weights": place, "data": ",".join(paths), "steps": number, "rate": rate,
    }  # fmt: skip
    assert parse_arguments("", defaults) == defaults


def test_a_field_that_is_unknown_or_missing_is_named():
    config = base_config().unlock()
    config.distil.lose = "hinge"
    with pytest.raises(UserError, match=r"unknown config field distil\.lose: did you mean loss"):
        typed(config)
    config = base_config().unlock()
    del config.log.every
    with pytest.raises(UserError, match=r"config field log\.every is missing"):
        typed(config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(stages=("distill",)), "stages 'distill' is not one of encode, pretrain"),
        (
            dict(data__source="cifar"),
            "data.source 'cifar' is not one of digits, images, prompts, scene_edits, scenes",
        ),
        (dict(data__text_dtype="half"), "data.text_dtype 'half' is not one of float32, float16"),
        (dict(data__examples=0), "data.examples is 0: use 1 or more"),
        (dict(data__buckets=()), "data.buckets is empty"),
        (dict(data__buckets=("8 by 8",)), "8 by 8"),
        (dict(data__bucket_weights=(1.0, 2.0)), "give 3 numbers of 0 or more"),
        (dict(data__bucket_weights=(1.0, 2.0, -1.0)), "give 3 numbers of 0 or more"),
        (
            dict(data__source="images", data__other_column="b"),
            "data.other_column is 'b' and data.preference_column is '': name both, .* or neither",
        ),
        (
            dict(data__source="images", data__preference_column="c"),
            "data.other_column is '' and data.preference_column is 'c': name both, .* or neither",
        ),
        (
            dict(data__other_column="b", data__preference_column="c"),
            "data.other_column is 'b' and data.source is 'digits': pairs are read by .* 'images'",
        ),
        (dict(model__depth=0), "model.depth is 0: use 1 or more"),
        (dict(model__dtype="float17"), "model.dtype 'float17' is not one of float32, bfloat16"),
        (
            dict(model__teacher_dtype="int4"),
            "model.teacher_dtype 'int4' is not one of float32, bfloat16, int8",
        ),
        (dict(teacher__weights="other"), "teacher.weights is other and teacher.depth is 0"),
        (dict(teacher__depth=2), "teacher.width is 0 and teacher.depth is 2"),
        (dict(student__width=128), "student.width is 128 and student.depth 0, .* leave the width"),
        (dict(teacher__num_heads=2), "teacher.num_heads is 2 and teacher.depth 0, which means no"),
        (dict(heads__groups=0), "heads.groups is 0: use 1 or more"),
        (dict(heads__channels=30), "not divisible by groups"),
        (dict(pretrain__batch_size=0), "pretrain.batch_size is 0: use 1 or more"),
        (dict(pretrain__accumulation=0), "accumulation is 0: use 1 or more"),
        (
            dict(model__param_dtype="half"),
            "model.param_dtype 'half' is not one of float32, bfloat16",
        ),
        (
            dict(distil__heads_optimizer__moment_dtype="half"),
            "distil.heads_optimizer.moment_dtype 'half' is not one of float32, bfloat16: use one",
        ),
        (dict(synthesize__samples=-1), "synthesize.samples is -1: use 0"),
        (dict(distil__data="real"), "distil.data 'real' is not one of synthesized, encoded"),
        (dict(distil__loss="hing"), "'hing' is not one of hinge, softplus, lsgan"),
        (dict(evaluate__student="best"), "evaluate.student 'best' is not one of ema, params"),
        (dict(evaluate__teacher_steps=()), "evaluate.teacher_steps is"),
        (dict(evaluate__samples=0), "evaluate.samples is 0: use 1 or more"),
        (
            dict(pretrain__optimizer__decay_steps=9, pretrain__optimizer__warmup_steps=9),
            "pretrain.optimizer.decay_steps is 9 and warmup_steps is 9: use more",
        ),
        (dict(data__held_out_examples=1), "data.held_out_examples is 1: use 2 or more"),
        (dict(checkpoint__keep=0), "checkpoint.keep is 0: use 1 or more"),
        (dict(distil__steps=2**31), "distil.steps is 2147483648: use 2147483647 or less"),
        (
            dict(distil__optimizer__epsilon=1e-300),
            "epsilon is 1e-300: use 1e-37 or more, since less is 0 in 32 bits",
        ),
        (dict(distil__timesteps=(1.0, 1e-50)), "timesteps is .*: use 1e-37 or more, .* for each"),
        (dict(log__every=0), "log.every is 0: use 1 or more"),
        (dict(seed=-1), "seed is -1: use a number from 0 to 4294967295"),
        (dict(seed=2**32), "seed is 4294967296: use a number from 0 to 4294967295"),
        (dict(seed=2**32 - 1, distil__seed=1), "distil.seed 1: use a number from 0 to 4294967295"),
        (dict(stages=()), "stages is empty: name one or more of encode, pretrain"),
        (dict(stages=("encode", "encode")), "stages is .* with 'encode' more than once"),
        (
            dict(data__buckets=("8x8", "8x16", "8x8")),
            "data.buckets is .* with '8x8' more than once",
        ),
        (dict(mesh__fsdp=0), "mesh.fsdp is 0: use 1 or more, or -1"),
        (dict(evaluate__guidances=(2.0, 2.0)), "evaluate.guidances is .* with 2.0 more than once"),
        (
            dict(evaluate__student_steps=(1, 1)),
            "evaluate.student_steps is .* with 1 more than once",
        ),
        (
            dict(distil__timesteps=(1.0, 0.5, 0.5, 0.25)),
            "distil.timesteps is .* with 0.5 more than",
        ),
        (
            dict(distil__timesteps=(1.5, 0.75, 0.5, 0.25)),
            "distil.timesteps is .*: use a number from above 0 to 1 for each",
        ),
        (
            dict(distil__probabilities=(1.5, -0.5, 0.0, 0.0)),
            "distil.probabilities is .*: use a number from 0 to 1 for each",
        ),
        (
            dict(distil__optimizer__learning_rate=-1e-4),
            "distil.optimizer.learning_rate is -0.0001: use 0 or more",
        ),
        (
            dict(pretrain__optimizer__beta2=1.0),
            "pretrain.optimizer.beta2 is 1.0: use a number from 0 to below 1",
        ),
        (
            dict(pretrain__text_dropout=1.1),
            "pretrain.text_dropout is 1.1: use a number from 0 to 1",
        ),
        (
            dict(synthesize__guidance_interval=(0.8, 0.2)),
            r"synthesize.guidance_interval is \(0.8, 0.2\): use the first and the last time",
        ),
        (dict(synthesize__guidance_interval=(0.5,)), "synthesize.guidance_interval is"),
        (dict(synthesize__guidance_interval=("0", "1")), "use a tuple.float, float."),
        (dict(distil__timesteps=("1", "0.5")), r"distil.timesteps is \('1', .*: use a tuple.float"),
        (dict(data__buckets=(8, 16)), r"data.buckets is \(8, 16\): use a tuple.str"),
        (dict(evaluate__student_steps=(1.0,)), r"student_steps is \(1.0,\): use a tuple.int"),
        (dict(data__max_unreadable=(0.1,)), r"data.max_unreadable is \(0.1,\): use a tuple"),
        (dict(stages=(True,)), r"stages is \(True,\): use a tuple.str"),
        (dict(synthesize__guidance_interval=(0.0, 1.5)), "synthesize.guidance_interval is"),
        (dict(synthesize__shift=0.0), "synthesize.shift is 0.0: use a number above 0"),
        (dict(log__profile="9:9"), "log.profile '9:9' is not START:STOP with 1 <= START < STOP"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_section_refuses_what_no_stage_could_use(fields, words):
    with pytest.raises(UserError, match=words):
        typed(changed(**fields))


def test_traced_steps_are_those_of_the_profile():
    assert typed(changed(log__profile="10:13")).log.traced == range(10, 13)
    assert not Config().log.traced


def _numbers(section, path=""):
    """Path and default of every number of a config, and of every tuple of numbers."""
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{name}__")
        elif isinstance(value, bool) or (isinstance(value, tuple) and "[str" in str(field.type)):
            continue
        elif isinstance(value, (int, float)):
            yield name, value
        elif isinstance(value, tuple):
            yield name, (float if "[float" in str(field.type) else int,)


NUMBERS = dict(_numbers(Config()))

# Of which every finite number is of use.
SIGNED = {
    "model__position_start", "student__position_start", "teacher__position_start",
    "distil__renoise_mean", "distil__renoise_slope", "pretrain__time_mean", "prefer__time_mean",
    "finetune__time_mean",
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_range(name):
    default = NUMBERS[name]
    # Its other fields mean nothing without a network of its own.
    section, network = name.partition("__")[0], dict(depth=2, width=8, num_heads=2)
    own = network if section in ("student", "teacher") else {}
    fields = {f"{section}__{field}": value for field, value in own.items()}
    *_, kind = default if isinstance(default, tuple) else (type(default),)
    wrong = [] if name in SIGNED else [kind(-7)]
    wrong += [math.nan, math.inf, -math.inf] if kind is float else []
    for number in wrong:
        value = (number,) if isinstance(default, tuple) else number
        with pytest.raises(UserError, match=name.rpartition("__")[2]):
            typed(changed(**fields | {name: value}))


def test_a_range_says_what_it_holds():
    for allowed, words, inside, outside in (
        (Range(), "a finite number", (-1e9, 0), (math.inf, math.nan, 10**400, -(10**400))),
        (Range(least=1), "1 or more", (1, 1.5), (0.99, -1)),
        (Range(above=0), "a number above 0", (1e-9,), (0, -1)),
        (Range(above=0, most=1), "a number from above 0 to 1", (0.5, 1), (0, 1.01)),
        (Range(least=0, below=1), "a number from 0 to below 1", (0, 0.999), (1, -0.1)),
        (Range(below=3), "a number below 3", (2,), (3,)),
    ):
        assert str(allowed) == words
        assert all(value in allowed for value in inside)
        assert not any(value in allowed for value in outside)
