"""LADD for filling holes, from nothing: a small network that completes pictures with a mask.

    python -m ladd_jax.main --config=small_inpaint --workdir=runs/small_inpaint
    python -m ladd_jax.main --config=small_inpaint:data=PATH,resolution=32 --workdir=runs/mine

A data generator learns to fill holes of pictures by flow matching, and is distilled on the same
pictures with the distillation loss, as the paper does; no samples are made. Arguments after the
colon, all optional:

    data         pictures with text: a folder, tars, tables, or a dataset's name on the hub; without
                 any, scenes of digits in colours
    resolution   side in pixels of your pictures' square bucket, 24; the latents are the pixels, up
                 to 64
    channels     1 for grey, 3 for colours
    guidance     guidance scale of the data generator, 1.5
    steps        steps of distillation, 300
    pretrain     steps of the data generator's training, 800
    text_length  words of text that are read, with an end token, 12
    recipe       robust; paper leaves out what this project adds to the paper's distillation
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config, learn_real_pictures, parse_arguments, small_recipe
from ladd_jax.config.small_networks import check_side, pretrain, use_network, use_words
from ladd_jax.errors import UserError

_SCENE = 24


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(
        arguments,
        dict(
            data="", resolution=_SCENE, channels=3, guidance=1.5, steps=300, pretrain=800,
            text_length=12, recipe="robust",
        ),
    )  # fmt: skip
    side = given["resolution"]
    check_side(side)
    if not given["data"] and side != _SCENE:
        raise UserError(
            f"resolution is {side} and data is empty: scenes have {_SCENE} x {_SCENE} pixels; name "
            f"your pictures by data=PATH, or leave resolution out"
        )
    config = base_config()
    config.stages = ("encode", "pretrain", "distil", "evaluate")
    config.data.update(
        dict(
            source="images" if given["data"] else "scenes",
            path=given["data"],
            joined="inpaint",
            buckets=() if given["data"] else (f"{_SCENE}x{_SCENE}",),
            resolution=side,
            max_buckets=3,
            examples=2048,
        )
    )
    use_words(config, given["text_length"])
    use_network(config, side, 2 if side < _SCENE else 4, given["channels"])

    pretrain(config, given["pretrain"], batch_size=32, ema_decay=0.99, warmup_steps=100)

    config.synthesize.update(dict(guidance=given["guidance"], shift=1.0))

    small_recipe(config, steps=given["steps"], recipe=given["recipe"])
    learn_real_pictures(config)

    config.evaluate.update(
        dict(
            batch_size=64,
            metrics=(*config.evaluate.metrics, "masked_distance", "masked_error", "known_error"),
            guidances=(1.0, 2.0, 3.0),
        )
    )
    config.checkpoint.every = 500
    config.log.update(dict(every=50, samples_every=150))
    return config
