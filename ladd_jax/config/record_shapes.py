"""The arrays of the records that a training reads."""

from ladd_jax.config.architectures import stage_architecture
from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.models.base import OTHER, PREFERENCE
from ladd_jax.models.families import family_of


def record_shapes(config: Config, training: str, bucket: Bucket) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of one record by name: the latents, and all that a training needs in
    its cond.

    Args:
      config: the run's config.
      training: name of the training; the records of `prefer` are pairs.
      bucket: shape of the latents.
    """
    latents = (bucket.height, bucket.width, config.model.channels)
    shapes: dict[str, tuple[int, ...]] = {LATENTS: latents}
    shapes |= family_of(config).cond_shapes(
        stage_architecture(config, training), bucket.height, bucket.width, config.data.text_length
    )
    if training == "prefer":
        shapes |= {OTHER: latents, PREFERENCE: (1,)}
    return shapes
