"""HPSv2 (Wu et al. 2023): a CLIP trained on which pictures people prefer."""

import numpy as np

from ladd_jax.evaluation.extractors import Given
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.extractors.clip import CLIPExtractor
from ladd_jax.evaluation.extractors.pickscore import BASE


def preference(cosine: np.ndarray, scale: float) -> np.ndarray:
    """The cosine alone, as `hpsv2.score` gives it; the paper's tables have 100 times that."""
    del scale
    return cosine


def open_extractor(given: Given) -> Extractor:
    """The model of `given.path`: HPSv2 in `transformers`' layout.

    The authors publish a ViT-H/14 in open_clip's layout, of which the hub has conversions. Pictures
    that are not square are cut to their middle, as CLIP's processor does.
    """
    return CLIPExtractor(given.path, given.mesh, preference, BASE)
