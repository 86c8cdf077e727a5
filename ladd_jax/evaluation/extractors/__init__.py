"""Extractors of pictures' features, by their names in `evaluate.extractor`.

An extractor is a module in this package with `open_extractor(given) -> Extractor`, and an entry in
the table, which says what it needs.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping

import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.ranges import check_choice


@dataclasses.dataclass(frozen=True)
class Kind:
    """An extractor of the table, and what it needs.

    Attributes:
      module: name of its module.
      weights: whether it reads weights, which `evaluate.extractor_weights` names.
      source: the only `data.source` whose pictures it can look at; empty for any.
      learns: whether it is trained on the run's own pictures, so that its alignment of those same
        pictures means nothing.
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
"""All extractors, by their names in `evaluate.extractor`."""


def extractor_for(config: Config) -> str:
    """The name of a run's extractor: the configured one, else its source's, else `own`."""
    source = config.data.source
    return config.evaluate.extractor or (source if source in EXTRACTORS else "own")


Training = Mapping[Bucket, tuple[np.ndarray, list[str]]]
"""Pictures of the training split, float32 `[n, H, W, C]`, and their prompts."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What an extractor may be made from.

    Attributes:
      path: path of the weights, for extractors that read some.
      training: gives the pictures of the training split, for extractors that are trained.
      seed: the run's seed.
      mesh: mesh that networks run on.
    """

    path: str
    training: Callable[[], Training]
    seed: int
    mesh: Mesh


def open_extractor(name: str, given: Given) -> Extractor:
    """The extractor of a name.

    Raises:
      UserError: there is no such extractor, or its weights are missing or damaged.
    """
    check_choice(name, "evaluate.extractor", *EXTRACTORS)
    extractor: Extractor = importlib.import_module(EXTRACTORS[name].module).open_extractor(given)
    return extractor
