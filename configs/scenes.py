"""LADD on scenes: digits in colours at random places, where one prompt has many pictures.

python -m ladd_jax.main --config=scenes --workdir=runs/scenes

`--config=scenes:recipe=paper` leaves out what this project adds to the paper's distillation.
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config, parse_arguments, small_recipe


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(arguments, dict(recipe="robust"))
    config = base_config()
    config.data.update(
        dict(
            source="scenes",
            buckets=("24x24", "16x32", "32x16"),
            examples=4096,
            # "a yellow three, a yellow seven and a yellow eight" has 11, and an end token.
            text_tokens="words",
            text_length=12,
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
            position_table=8,
            position_base=8,
            remat="none",
            dtype="float32",
        )
    )
    config.heads.update(dict(channels=32))

    config.pretrain.update(dict(steps=3000, batch_size=64, ema_decay=0.995))
    config.pretrain.optimizer.update(
        dict(learning_rate=2e-3, weight_decay=0.01, warmup_steps=100, decay_steps=3000)
    )

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

    small_recipe(config, steps=1500, recipe=given["recipe"])

    config.checkpoint.every = 1000
    config.log.update(dict(every=50, samples_every=1000))
    return config
