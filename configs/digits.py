"""LADD on scikit-learn's handwritten digits, on a CPU in minutes: `make demo`.

    python -m ladd_jax.main --config=digits --workdir=runs/digits

`--config=digits:recipe=paper` leaves out what this project adds to the paper's distillation.
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config, parse_arguments, small_recipe


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(arguments, dict(recipe="robust"))
    config = base_config()
    # Caching compiled programs takes memory, 0.3 GB at the peak, and the demo runs only once.
    config.compilation_cache = ""
    # Wide enough for a random encoder to keep both words of a pair apart in the pooled vector.
    config.data.update(dict(text_width=128, text_layers=2, text_heads=4, pooled_width=256))
    config.model.update(
        dict(
            depth=4,
            width=64,
            num_heads=2,
            channels=1,
            qk_norm=True,
            position_table=16,
            position_base=16,
            remat="none",
            dtype="float32",
        )
    )
    config.heads.update(dict(channels=32))

    config.pretrain.update(dict(steps=1600, batch_size=64, ema_decay=0.995))
    config.pretrain.optimizer.update(
        dict(learning_rate=3e-3, weight_decay=0.01, warmup_steps=50, decay_steps=1600)
    )

    config.synthesize.update(
        dict(
            samples=1024,
            batch_size=32,
            records_per_shard=256,
            sampler="dpmpp_2m",
            steps=12,
            guidance=4.0,
            shift=1.0,
        )
    )

    # The whole run takes 7 to 15 minutes on two quiet cores; more steps would still improve it.
    small_recipe(config, steps=400, recipe=given["recipe"])

    config.evaluate.update(dict(batch_size=40))
    config.checkpoint.every = 400
    config.log.update(dict(every=25, samples_every=200))
    return config
