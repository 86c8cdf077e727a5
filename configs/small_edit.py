"""LADD of a network that edits pictures: a picture and an instruction make another picture.

    python -m ladd_jax.main --config=small_edit --workdir=runs/edit

Arguments after the colon, all optional:

    data            edits: tables with the columns of InstructPix2Pix or MagicBrush, or a folder
                    that names a source in its metadata; without data, edits of scenes of digits,
                    24 x 24: "make the red seven blue", "move the blue three to the left", "remove
                    the green digit"
    resolution      side in pixels of the square bucket of your data, 24, up to 64
    guidance        the data generator's guidance on the instruction, 1.5
    image_guidance  the data generator's guidance on the picture that is edited, 1.2
    steps           steps of distillation, 240
    pretrain        steps of the data generator's training, 1500
    text_length     words of an instruction that are read, with an end token, 8
    knobs           1: the student is told both scales, from 1 to 3 and from 1 to 2, and learns from
                    samples of the data generator at these; 0, the default: it learns from the edits
    recipe          robust; paper leaves out what this project adds to the paper's distillation
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config, learn_real_pictures, parse_arguments, small_recipe
from ladd_jax.config.small_networks import check_side, pretrain, use_network, use_words


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(
        arguments,
        dict(
            data="", resolution=24, guidance=1.5, image_guidance=1.2, steps=240, pretrain=1500,
            text_length=8, knobs=0, recipe="robust",
        ),
    )  # fmt: skip
    side = given["resolution"]
    check_side(side)
    config = base_config()
    config.data.update(
        dict(
            source="images" if given["data"] else "scene_edits",
            path=given["data"],
            joined="edit",
            buckets=() if given["data"] else ("24x24",),
            examples=8192,
        )
    )
    if given["data"]:
        config.data.update(dict(resolution=side, max_buckets=3))
    # "move the yellow three to the right" has 7 words, and an end token.
    use_words(config, given["text_length"])
    use_network(config, side, 2 if side < 24 else 4, 3, longest=None if given["data"] else side)

    pretrain(config, given["pretrain"], batch_size=32, ema_decay=0.995, warmup_steps=100)
    # InstructPix2Pix's: 5% of the samples lose the text, 5% the picture, 5% both.
    config.pretrain.update(dict(text_dropout=0.1, image_dropout=0.1))

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
        # The student learns from the edits themselves, so no samples are made.
        config.stages = ("encode", "pretrain", "distil", "evaluate")
        learn_real_pictures(config)

    config.evaluate.update(
        dict(
            # An edit has one right answer, so there is one sample of each.
            metrics=("edit_error", "kept_error", "alignment", "fd", "fd_real", "outside"),
            samples=256,
            per_prompt=1,
            batch_size=64,
        )
    )
    config.checkpoint.every = 500
    config.log.update(dict(every=50, samples_every=0))
    return config
