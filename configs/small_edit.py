"""LADD of a network that edits pictures: a picture and an instruction make another picture.

    python -m ladd_jax.main --config=small_edit --workdir=runs/edit

Without data the pictures are scenes of digits, 24 x 24, with three kinds of instructions: "make the
red seven blue", "move the blue three to the left", "remove the green digit". Arguments after the
colon, all optional:

    steps           of distillation, 240
    pretrain        steps of the data generator's training, 1500
    guidance        of the data generator on the instruction, 1.5
    image_guidance  of the data generator on the picture that is edited, 1.2
    recipe          robust; paper leaves out what this project adds to the paper's distillation

The student is distilled on the edits themselves, with the teacher's own predictions beside them, as
the paper distils from real pictures.
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config, parse_arguments, small_recipe


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(
        arguments,
        dict(steps=240, pretrain=1500, guidance=1.5, image_guidance=1.2, recipe="robust"),
    )
    config = base_config()
    # The student learns from the edits themselves, and no sample of the data generator is kept.
    config.stages = ("encode", "pretrain", "distil", "evaluate")
    config.data.update(
        dict(
            source="scene_edits",
            joined="edit",
            buckets=("24x24",),
            examples=8192,
            # "move the yellow three to the right" has 7, and an end token.
            text_tokens="words",
            text_length=8,
            text_width=128,
            text_layers=2,
            text_heads=4,
            pooled_width=256,
            text_dtype="float16",
        )
    )
    config.model.update(
        dict(
            depth=4,
            width=96,
            num_heads=3,
            channels=3,
            patch=4,
            qk_norm=True,
            position_table=6,
            position_base=6,
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
            samples=1024,
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
