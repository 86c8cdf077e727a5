"""LADD on scenes: digits in colours at random places, where one prompt has many pictures.

    python -m ladd_jax.main --config=scenes --workdir=runs/scenes

`--config=scenes:recipe=paper` leaves out what this project adds to the paper's distillation.
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config, parse_arguments, small_recipe
from ladd_jax.config.small_networks import pretrain, use_network, use_words


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(arguments, dict(recipe="robust"))
    config = base_config()
    config.data.update(
        dict(
            source="scenes",
            buckets=("24x24", "16x32", "32x16"),
            examples=4096,
        )
    )
    # "a yellow three, a yellow seven and a yellow eight" has 11 tokens, and an end token.
    use_words(config, 12)
    # The longest side is 32, in the wide bucket and in the tall one.
    use_network(config, 32, 4, 3, longest=32)

    pretrain(config, 3000, batch_size=64, ema_decay=0.995, warmup_steps=100)

    config.synthesize.update(
        dict(
            samples=1024,
            batch_size=64,
            records_per_shard=256,
            steps=16,
            sampler="dpmpp_2m",
            guidance=3.0,
            shift=1.0,
        )
    )

    small_recipe(config, steps=1500, recipe=given["recipe"], even_shares=True)

    config.checkpoint.every = 1000
    config.log.update(dict(every=50, samples_every=1000))
    return config
