"""Extractors: ways to look at pictures, by the name that `evaluate.extractor` has.

An extractor is a module here with `open_extractor(given) -> Extractor`, and a line in the table.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping

import numpy as np
from jax.sharding import Mesh

from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError
from ladd_jax.evaluation.extractors.base import Extractor

EXTRACTORS = {
    "digits": "ladd_jax.evaluation.extractors.digits",
    "own": "ladd_jax.evaluation.extractors.own",
    "scenes": "ladd_jax.evaluation.extractors.scenes",
    "inception": "ladd_jax.evaluation.extractors.inception",
    "clip": "ladd_jax.evaluation.extractors.clip",
    "pickscore": "ladd_jax.evaluation.extractors.pickscore",
    "hpsv2": "ladd_jax.evaluation.extractors.hpsv2",
}
"""Modules of the extractors."""

Training = Mapping[Bucket, tuple[np.ndarray, list[str]]]
"""Pictures of the training split, float32 `[n, H, W, C]`, and their prompts."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What an extractor may be made of.

    Attributes:
      path: the weights, for extractors that have some.
      training: gives the pictures of the training split, for extractors that are trained.
      seed: the run's seed.
      mesh: where networks run.
    """

    path: str
    training: Callable[[], Training]
    seed: int
    mesh: Mesh


def open_extractor(name: str, given: Given) -> Extractor:
    """The extractor of a name.

    Raises:
      UserError: there is no such extractor, or its weights are not there or damaged.
    """
    if name not in EXTRACTORS:
        raise UserError(
            f"evaluate.extractor {name!r} is none of {', '.join(EXTRACTORS)}: use one of them"
        )
    extractor: Extractor = importlib.import_module(EXTRACTORS[name]).open_extractor(given)
    return extractor
