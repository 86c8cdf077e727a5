"""LADD from nothing: a small network trained from scratch on pictures with text of your own.

    python -m ladd_jax.main --config=small:data=PATH,resolution=32 --workdir=runs/mine

Arguments after the colon, all but the first optional:

    data         pictures with text: a folder, tars, tables, or a dataset's name on the hub
    resolution   side in pixels of the square bucket, 32; the latents are the pixels up to 64
    channels     1 for grey, 3 for colours, the default; with an autoencoder 16, as SD3 has
    guidance     guidance scale of the data generator's samples, 3
    autoencoder  a pipeline's folder, whose autoencoder makes the latents
    steps        steps of distillation, 1000
    pretrain     steps of the data generator's training, 4000
    text         a folder of CLIP's or T5's text encoder, instead of a random one
    text_length  words of text that are read, with an end token, 24, or tokens of that encoder
    recipe       robust; paper leaves out what this project adds to the paper's distillation

All buckets have about as many pixels as the square, in aspects that suit the data. From a side of
32 pixels on, a patch is 4 x 4 pixels instead of 2 x 2, so that a picture of 32 x 32 has 64 tokens,
like one of 16 x 16. With an autoencoder, only latents above 32 x 32 have such patches.
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config, parse_arguments, small_recipe
from ladd_jax.config.small_networks import check_side, pretrain, use_network, use_words

_SD3_CHANNELS = 16


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(
        arguments,
        dict(
            data="", resolution=32, channels=0, guidance=3.0, autoencoder="", text="", steps=1000,
            pretrain=4000, text_length=24, recipe="robust",
        ),
    )  # fmt: skip
    resolution, autoencoder = given["resolution"], given["autoencoder"]
    if not autoencoder:
        check_side(resolution, "use one of these, or give autoencoder=DIR")
    # Latents of an autoencoder have an eighth of the pixels' side.
    side = resolution // 8 if autoencoder else resolution
    # So a square of 32 pixels takes a quarter of the time. Latents have many channels: a patch of
    # 4 x 4 has more values than the network's width.
    patch = 2 if side < 32 or (autoencoder and side == 32) else 4

    config = base_config()
    config.data.update(
        dict(
            source="images",
            path=given["data"],
            autoencoder=autoencoder,
            buckets=(),
            resolution=resolution,
            max_buckets=3,
            text=given["text"],
        )
    )
    use_words(config, given["text_length"])
    channels = given["channels"] or (_SD3_CHANNELS if autoencoder else 3)
    use_network(config, side, patch, channels)

    pretrain(config, given["pretrain"], batch_size=32, ema_decay=0.998, warmup_steps=200)

    config.synthesize.update(
        dict(
            samples=2048, batch_size=64, records_per_shard=256, steps=32, sampler="dpmpp_2m",
            guidance=given["guidance"], shift=1.0,
        )
    )  # fmt: skip

    small_recipe(config, steps=given["steps"], recipe=given["recipe"], even_shares=True)
    # In so few steps a student does not get as far as second-order paths would take it, and they
    # make samples of one step worse: see "Euler or midpoint paths" in docs/experiments.md.
    config.distil.consistency_solver = "euler"

    config.evaluate.update(dict(batch_size=64, guidances=(1.0, 2.0, 3.0, 5.0)))
    config.checkpoint.every = 500
    config.log.update(dict(every=50, samples_every=500))
    return config
