"""LADD of a network that edits pictures: a picture and an instruction make another picture.

    python -m ladd_jax.main --config=small_edit --workdir=runs/edit

Arguments after the colon, all optional:

    data            edits: tables with the columns of InstructPix2Pix or MagicBrush, or a folder
                    that names a source in its metadata; without data they are of scenes of digits,
                    24 x 24: "make the red seven blue", "move the blue three to the left", "remove
                    the green digit"
    resolution      of data, side in pixels of the square bucket, 24, up to 64
    guidance        of the data generator on the instruction, 1.5
    image_guidance  of the data generator on the picture that is edited, 1.2
    steps           of distillation, 240
    pretrain        steps of the data generator's training, 1500
    text_length     words of an instruction that are read, 8
    knobs           1: the student is told both scales, from 1 to 3 and from 1 to 2, and learns
                    samples of the data generator at them; 0, the default: it learns the edits
    recipe          robust; paper leaves out what this project adds to the paper's distillation
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config, parse_arguments, small_recipe
from ladd_jax.errors import UserError

_LARGEST = 64


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(
        arguments,
        dict(
            data="", resolution=24, guidance=1.5, image_guidance=1.2, steps=240, pretrain=1500,
            text_length=8, knobs=0, recipe="robust",
        ),
    )  # fmt: skip
    side = given["resolution"]
    if not 8 <= side <= _LARGEST:
        raise UserError(
            f"resolution {side} is not from 8 to {_LARGEST}, since pixels are the latents: use one "
            f"of these"
        )
    config = base_config()
    config.data.update(
        dict(
            source="images" if given["data"] else "scene_edits",
            path=given["data"],
            joined="edit",
            buckets=() if given["data"] else ("24x24",),
            examples=8192,
            # "move the yellow three to the right" has 7, and an end token.
            text_tokens="words",
            text_length=given["text_length"],
            text_width=128,
            text_layers=2,
            text_heads=4,
            pooled_width=256,
            text_dtype="float16",
        )
    )
    if given["data"]:
        config.data.update(dict(resolution=side, max_buckets=3))
    patch = 2 if side < 24 else 4
    config.model.update(
        dict(
            depth=4,
            width=96,
            num_heads=3,
            channels=3,
            patch=patch,
            qk_norm=True,
            # In patches; wide buckets are longer than the square.
            position_table=2 * -(-side // patch) if given["data"] else side // patch,
            position_base=-(-side // patch),
            remat="none",
            dtype="float32",
        )
    )
    config.heads.update(dict(channels=32))

    config.pretrain.update(
        dict(
            steps=given["pretrain"],
            batch_size=32,
            ema_decay=0.995,
            # InstructPix2Pix's: 5% of the samples lose the text, 5% the picture, 5% both.
            text_dropout=0.1,
            image_dropout=0.1,
        )
    )
    config.pretrain.optimizer.update(
        dict(
            learning_rate=2e-3,
            weight_decay=0.01,
            warmup_steps=min(100, given["pretrain"] // 10),
            decay_steps=given["pretrain"],
        )
    )

    config.synthesize.update(
        dict(
            samples=2048,
            batch_size=64,
            records_per_shard=256,
            steps=16,
            sampler="dpmpp_2m",
            guidance=given["guidance"],
            image_guidance=given["image_guidance"],
            shift=1.0,
        )
    )

    small_recipe(config, steps=given["steps"], recipe=given["recipe"])
    if given["knobs"]:
        config.synthesize.update(dict(guidance_range=(1.0, 3.0), image_guidance_range=(1.0, 2.0)))
    else:
        # The student learns from the edits themselves, and no sample is kept.
        config.stages = ("encode", "pretrain", "distil", "evaluate")
        config.distil.update(
            dict(
                data="encoded",
                distillation_weight=2.5,  # known: there is one with real pictures; ADD's: its value
            )
        )
        # The data generator has learned these data already, and is what is followed.
        config.finetune.steps = 0
        config.distil.follows = "generator"

    config.evaluate.update(
        dict(
            # An instruction has one right answer to each picture: no two samples of a prompt.
            metrics=("edit_error", "kept_error", "alignment", "fd", "fd_real", "outside"),
            samples=256,
            per_prompt=1,
            batch_size=64,
        )
    )
    config.checkpoint.every = 500
    config.log.update(dict(every=50, samples_every=0))
    return config
