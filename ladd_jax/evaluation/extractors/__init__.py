"""Extractors: ways to look at pictures, by the name that `evaluate.extractor` has.

An extractor is a module here with `open_extractor(given) -> Extractor`, and a line in the table,
which says what it needs.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping

import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError
from ladd_jax.evaluation.extractors.base import Extractor


@dataclasses.dataclass(frozen=True)
class Kind:
    """An extractor of the table, and what it needs.

    Attributes:
      module: its module.
      weights: whether it reads weights, which `evaluate.extractor_weights` names.
      source: the only `data.source` whose pictures it can look at; empty: any.
      learns: whether it is trained on the run's own pictures, so that what it says of how well just
        these fit their prompts says nothing.
    """

    module: str
    weights: bool = False
    source: str = ""
    learns: bool = False


EXTRACTORS = {
    "digits": Kind("ladd_jax.evaluation.extractors.digits", source="digits"),
    "own": Kind("ladd_jax.evaluation.extractors.own", learns=True),
    "scenes": Kind("ladd_jax.evaluation.extractors.scenes", source="scenes"),
    "scene_edits": Kind("ladd_jax.evaluation.extractors.scene_edits", source="scene_edits"),
    "inception": Kind("ladd_jax.evaluation.extractors.inception", weights=True),
    "clip": Kind("ladd_jax.evaluation.extractors.clip", weights=True),
    "pickscore": Kind("ladd_jax.evaluation.extractors.pickscore", weights=True),
    "hpsv2": Kind("ladd_jax.evaluation.extractors.hpsv2", weights=True),
}
"""By the name that `evaluate.extractor` has."""


def extractor_for(config: Config) -> str:
    """The extractor of a run: the one that is named, else its source's, else its own."""
    source = config.data.source
    return config.evaluate.extractor or (source if source in EXTRACTORS else "own")


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
    extractor: Extractor = importlib.import_module(EXTRACTORS[name].module).open_extractor(given)
    return extractor
