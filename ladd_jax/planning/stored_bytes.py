"""Bytes that stages leave on disk, with checkpoints counted before their own compression."""

import math
from typing import Any

import jax

from ladd_jax.config.architectures import generator_architecture
from ladd_jax.config.fields import Config
from ladd_jax.data.array_specs import ArraySpec, joined_spec, text_spec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.sources import SOURCES
from ladd_jax.models.base import CHANNELS
from ladd_jax.models.families import family_of


def record_bytes(config: Config, bucket: Bucket, *, released: bool) -> int:
    """Bytes of a record of `encode`: text, latents, and what is joined to x_t.

    Args:
      config: the run's config.
      bucket: bucket of the record.
      released: whether the encoders are those of released pipelines, whose zeros are not stored.
    """
    family, length = family_of(config), config.data.text_length
    blocks = family.text_blocks(length) if released else {}
    shapes = family.cond_shapes(generator_architecture(config), bucket.height, bucket.width, length)
    specs = [
        joined_spec(ArraySpec(shape), config.data.latents_dtype)
        if name == CHANNELS
        else text_spec(shape, config.data.text_dtype, blocks.get(name, ()))
        for name, shape in shapes.items()
    ]
    latents = _latents_of_record(config) * latent_bytes(config, bucket)
    return latents + sum(spec.bytes_in(bucket) for spec in specs)


def latent_bytes(config: Config, bucket: Bucket) -> int:
    """Bytes of the latents of a record: all that a record of `synthesize` has, except for its
    prompt and, at most, its guidance scale."""
    spec = ArraySpec(("H", "W", config.model.channels), config.data.latents_dtype)
    return spec.bytes_in(bucket)


def pictures_of_record(config: Config) -> int:
    """How many pictures of a record `encode` makes latents of, including that of `data.joined`."""
    return _latents_of_record(config) + bool(config.data.joined)


def _latents_of_record(config: Config) -> int:
    """How many arrays of latents a record has besides what is joined to x_t: none for a prompt, two
    for a pair."""
    if SOURCES[config.data.source].prompts_alone:
        return 0
    return 2 if config.data.other_column else 1


def checkpoint_bytes(config: Config, state: Any) -> int:
    """Bytes of a training's checkpoints, including the one that is being written.

    Args:
      config: the run's config.
      state: the training's state, or shapes and dtypes of its leaves.
    """
    one = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return (config.checkpoint.keep + 1) * one
