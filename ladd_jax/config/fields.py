"""Every field of a config, with its default, and where the default comes from.

`known` marks what the paper states; all else is a default of this project. A config file starts
from ladd_jax.errors import UserError
from `base_config()` and sets what differs: a misspelt field or a wrong type is an error that names
the nearest valid one.
"""

import difflib
import json
import re
from typing import Any

from ml_collections import ConfigDict

from ladd_jax.errors import UserError

STAGES = ("encode", "pretrain", "synthesize", "distil", "evaluate")


def _optimizer(learning_rate: float, **changes: Any) -> ConfigDict:
    fields = dict(
        learning_rate=learning_rate,
        beta1=0.9,
        beta2=0.99,
        epsilon=1e-8,
        weight_decay=0.0,
        warmup_steps=0,
        decay_steps=0,  # length of a cosine to zero; 0 keeps the rate
        clip_norm=1.0,  # 0 does not clip
        moment_dtype="float32",  # float32, bfloat16
    )
    return ConfigDict(fields | changes)


def base_config() -> ConfigDict:
    """All fields. Lengths are in latent pixels, times in [0, 1] with 1 pure noise."""
    config = ConfigDict()
    config.seed = 0
    config.stages = STAGES
    # Mesh axes; one of them may be -1 and takes the devices that are left. `slices` is how many TPU
    # slices a data-centre network joins: it divides `data`, and fsdp and tensor stay inside of one.
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1, slices=1))

    # A released pipeline, whose transformer the student starts from, which makes its data, and
    # which is its teacher, unless `teacher` names another: a folder, or owner/name of the hub.
    # Empty: `pretrain` makes the teacher.
    config.weights = ""
    config.data = ConfigDict(
        dict(
            source="digits",  # digits, prompts, images
            path="",  # of the prompts (txt, tsv, csv, jsonl) or the images (a folder, tars)
            column="",  # of the prompts in their table; empty: the only one that it can be
            buckets=("8x8", "8x16", "16x8"),  # rows x columns
            bucket_weights=(),  # share of the prompts for each bucket; empty: the same for all
            examples=1437,  # of digits, for each bucket
            records_per_shard=512,
            text_dtype="float32",  # on disk: float32, float16
            text_batch_size=256,
            image_batch_size=8,
            # Of the text encoder: of `weights` where there are some, else random and frozen.
            text_length=17,  # tokens
            text_width=32,
            text_layers=2,
            text_heads=2,
            pooled_width=32,
        )
    )
    # Of the student, and of the teacher unless `teacher` has another (known: the paper's default).
    config.model = ConfigDict(
        dict(
            depth=24,
            width=1536,
            num_heads=24,
            channels=16,
            patch=2,
            mlp_ratio=4,
            qk_norm=False,
            dual_attention=(),
            position_table=192,
            position_base=64.0,
            position_start=0.0,
            remat="full",  # none, full, attention, dots, dots_attention
            unroll=1,
            dtype="bfloat16",
            param_dtype="float32",
            # Of the frozen teacher's parameters: float32, bfloat16, or int8 under the heads alone
            # and bfloat16 where it makes data or a student starts from it.
            teacher_dtype="float32",
        )
    )
    # Another teacher under the heads than the network that the student starts from (known: its size
    # matters less than the student's): `weights` as above, and fields of `model` of its network,
    # which commands read from those weights where depth is 0. Without weights 0 is the same one.
    config.teacher = ConfigDict(
        dict(
            weights="",
            depth=0,
            width=0,
            num_heads=0,
            patch=2,
            mlp_ratio=4,
            qk_norm=False,
            dual_attention=(),
            position_table=192,
            position_base=64.0,
            position_start=0.0,
        )
    )
    config.heads = ConfigDict(
        dict(channels=64, kernel=3, groups=8, projection=64, spectral_norm=True)
    )
    config.pretrain = ConfigDict(
        dict(
            steps=10_000,
            batch_size=256,
            accumulation=1,  # micro-batches of a batch, which divide it
            time_mean=0.0,
            time_std=1.0,
            shift=1.0,
            text_dropout=0.1,
            ema_decay=0.999,
            optimizer=_optimizer(1e-4),
        )
    )
    config.synthesize = ConfigDict(
        dict(
            samples=10_000,  # for each bucket; 0: one for each encoded record
            batch_size=256,
            records_per_shard=1024,
            steps=50,
            guidance=5.0,  # known: one constant scale; its value is not
            shift=3.0,
        )
    )
    config.distil = ConfigDict(
        dict(
            data="synthesized",  # known; encoded: real images, with a distillation_weight
            steps=10_000,  # known
            batch_size=256,
            accumulation=1,  # micro-batches of a batch, which divide it
            # The heads that the generator sees where there are several: updated, the update of one
            # for a third more work; before, those of before the step.
            accumulated_heads="updated",
            timesteps=(1.0, 0.75, 0.5, 0.25),  # known
            probabilities=(0.7, 0.1, 0.1, 0.1),  # known, above 512^2
            warmup_probabilities=(0.0, 0.0, 0.5, 0.5),  # known, above 512^2
            warmup_steps=500,  # known, above 512^2
            renoise_mean=1.0,  # known
            renoise_std=1.0,  # known
            same_renoise=True,
            loss="hinge",  # hinge, softplus, lsgan
            r1_gamma=1e-5,
            r1_interval=1,
            # Empty: all (known). Without a distillation_weight the teacher ends with the last one.
            hooked_blocks=(),
            distillation_weight=0.0,  # known: none with synthetic data; 2.5 with real data
            misaligned_share=0.0,
            head_updates=1,
            ema_decay=0.999,
            optimizer=_optimizer(1e-5, beta1=0.0),
            heads_optimizer=_optimizer(1e-4, beta1=0.0),
        )
    )
    config.evaluate = ConfigDict(
        dict(
            student="ema",  # ema, params
            samples_per_prompt=(36, 4, 4),  # for each bucket
            test_images=600,  # for each bucket, made of the test split
            student_steps=(1, 2, 4),
            teacher_steps=(50, 4),
            batch_size=400,
            shown_prompts=10,  # columns of the report's grids
        )
    )
    config.checkpoint = ConfigDict(dict(every=1000, keep=2))
    config.log = ConfigDict(
        dict(
            every=50,  # steps between records, the only ones at which training waits for the device
            samples_every=500,
            profile="",  # START:STOP, an xprof trace of steps START to STOP - 1 of each training
        )
    )
    # Compiled programs stay here for the next start: in the workdir, unless it is an absolute path
    # or an address (gs://...). Empty keeps none.
    config.compilation_cache = "compilation_cache"
    return config.lock()


def steps_of(text: str) -> range:
    """The steps that `START:STOP` names, START to STOP - 1, counted from 1; empty names none.

    Raises:
      UserError: the text is not of that form, or names no step.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) < int(match[2]):
        raise UserError(
            f"profile {text!r} is not START:STOP with 1 <= START < STOP: use a range such as 10:13 "
            f"for steps 10, 11 and 12"
        )
    return range(int(match[1]), int(match[2]))


def parse_arguments(text: str | None, defaults: dict[str, Any]) -> dict[str, Any]:
    """The argument of a config file, `name=value,name=value`, over defaults of the same types.

    Raises:
      UserError: a name that is not in `defaults`, or a value that is not of its default's type.
    """
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        name, equals, value = part.partition("=")
        if name not in defaults or not equals:
            raise UserError(
                f"{part!r} after the config's colon is no name=value{nearest(name, defaults)}"
            )
        kind = type(defaults[name])
        try:
            values[name] = kind(value)
        except ValueError as error:
            raise UserError(
                f"{name} is {value!r}: use a value such as {defaults[name]!r}"
            ) from error
    return values


def nearest(name: str, valid: Any) -> str:
    """` (did you mean X?)`, or nothing where no valid name is near."""
    close = difflib.get_close_matches(name, list(valid), 1, 0.5)
    return f": did you mean {close[0]}?" if close else f": valid are {', '.join(sorted(valid))}"


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Plain nested dict as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def validate(config: ConfigDict) -> None:
    """Raises UserError where a field is unknown, lacks, or has another type than its default."""
    compare(base_config().to_dict(), config.to_dict(), "")


def compare(base: dict[str, Any], given: dict[str, Any], prefix: str) -> None:
    for name in given.keys() - base.keys():
        raise UserError(f"unknown config field {prefix}{name}{nearest(name, base)}")
    for name in base.keys() - given.keys():
        raise UserError(f"config field {prefix}{name} is missing: start from base_config()")
    for name, default in base.items():
        value, path = given[name], f"{prefix}{name}"
        if isinstance(default, dict):
            if not isinstance(value, dict):
                raise UserError(f"{path} is {value!r}: use fields {', '.join(default)}")
            compare(default, value, f"{path}.")
        elif type(value) is not type(default) and not (
            isinstance(default, float) and type(value) is int
        ):
            raise UserError(
                f"{path} is {value!r} of type {type(value).__name__}: "
                f"use a {type(default).__name__}, such as {default!r}"
            )
