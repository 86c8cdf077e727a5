"""LADD of Stable Diffusion 3: the paper's settings. Not ready: weights can not be loaded yet.

    python -m ladd_jax.main --config=configs/sd3_turbo.py --workdir=DIR

What the paper does not state is this project's default, marked as such in `ladd_jax/config.py`.
"""

from ml_collections import ConfigDict

from ladd_jax.config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.data.update(
        dict(
            source="latents",
            # About one megapixel in latent pixels, 8 image pixels each.
            buckets=("128x128", "112x144", "144x112", "104x152", "152x104", "96x168", "168x96"),
            text_length=333,
            text_width=4096,
            pooled_width=2048,
        )
    )
    config.mesh.update(dict(data=1, fsdp=-1))
    config.stages = ("synthesize", "distil")
    return config
