"""What a source does where a config names no buckets."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ladd_jax.data.buckets import Bucket, check_resolution, check_sides, choose_buckets
from ladd_jax.models.families import family_of


def buckets_for(config: Any, aspects: Sequence[float], reduction: int = 1) -> list[Bucket]:
    """A few buckets for records of these aspects, of about `data.resolution` squared pixels.

    Args:
      config: the run's config.
      aspects: width over height of each record, at least one.
      reduction: pixels on a side of a latent pixel.

    Raises:
      UserError: `data.resolution` is no multiple of the patch, or a bucket is larger than a
        network allows.
    """
    step = config.model.patch * reduction
    check_resolution(config.data.resolution, step)
    found = choose_buckets(
        np.asarray(aspects), config.data.resolution**2, step, config.data.max_buckets, reduction
    )
    sides, sections = family_of(config).sides, {"model": config.model}
    others = {"student": config.student, "teacher": config.teacher}
    sections |= {name: section for name, section in others.items() if section.depth}
    check_sides(found, {name: sides(section) for name, section in sections.items()})
    return found
