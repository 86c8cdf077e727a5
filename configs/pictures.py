"""LADD from nothing on real colour pictures with names: emoji, 64 x 64, 80 x 48 and 48 x 80.

    python -m benchmarks.pictures --output=runs/emoji
    python -m ladd_jax.main --config=pictures:data=runs/emoji --workdir=runs/pictures

Arguments after the colon, all but the first optional:

    data        the folder that `benchmarks/pictures.py` makes
    resolution  side in pixels of the square bucket, a multiple of 16 up to 64: 64
    patch       side in pixels of what the network reads as one token: a sixteenth of resolution
    depth       blocks of the network, 8
    width       width of the network, a multiple of 64: 256
    guidance    guidance scale of the data generator's samples, 3
    pretrain    steps of the data generator's training, 20000
    steps       steps of distillation, 4000
    recipe      robust; paper leaves out what this project adds to the paper's distillation

A step of 64 pictures is 0.77 TFLOP, with `patch=8` 0.20 and with `depth=6,width=128` 0.17; one CPU
core does about 0.05 in a second. The same command continues a run that was stopped or killed, from
a checkpoint at most 100 steps back; where a step takes milliseconds,
`--config.checkpoint.every=1000` is often enough.
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config, parse_arguments, small_recipe
from ladd_jax.config.small_networks import pretrain, use_words
from ladd_jax.errors import UserError

_SHAPES = ((4, 4), (3, 5), (5, 3))  # the buckets' sides, in quarters of the resolution


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(
        arguments,
        dict(
            data="", resolution=64, patch=0, depth=8, width=256, guidance=3.0, pretrain=20_000,
            steps=4000, recipe="robust",
        ),
    )  # fmt: skip
    resolution, depth, width = given["resolution"], given["depth"], given["width"]
    if resolution not in (16, 32, 48, 64):
        raise UserError(f"resolution {resolution} is not 16, 32, 48 or 64: use one of these")
    if width % 64 or width < 64:
        raise UserError(f"width {width} is not a multiple of 64, a head's width: use 128 or 256")
    quarter, patch = resolution // 4, given["patch"] or resolution // 16
    if patch < 1 or quarter % patch:
        raise UserError(
            f"patch {patch} does not divide {quarter}, a quarter of resolution: use one that does"
        )

    config = base_config()
    config.data.update(
        dict(
            source="images",
            path=given["data"],
            # The shapes of the pictures, so that at resolution 64 each is used as it is.
            buckets=tuple(f"{h * quarter}x{w * quarter}" for h, w in _SHAPES),
        )
    )
    # For the longest name, its maker and an end token: 15 if all its words had two letters.
    use_words(config, 16)
    config.model.update(
        dict(
            depth=depth,
            width=width,
            num_heads=width // 64,
            channels=3,
            patch=patch,
            qk_norm=True,
            # Both are in patches; wide buckets are longer than the square.
            position_table=2 * resolution // patch,
            position_base=resolution // patch,
            remat="none",
            unroll=depth,
            dtype="float32",
        )
    )
    config.heads.update(dict(channels=64))

    pretrain(
        config, given["pretrain"], batch_size=64, ema_decay=0.998, warmup_steps=500,
        learning_rate=5e-4,
    )  # fmt: skip

    config.synthesize.update(
        dict(
            samples=4096, batch_size=64, records_per_shard=256, steps=16, sampler="dpmpp_2m",
            guidance=given["guidance"], shift=1.0,
        )
    )  # fmt: skip

    small_recipe(config, steps=given["steps"], recipe=given["recipe"])

    config.evaluate.update(dict(batch_size=64))
    # Steps take seconds on a CPU, and a run may be stopped at any time.
    config.checkpoint.every = 100
    config.log.update(dict(every=50, samples_every=500))
    return config
