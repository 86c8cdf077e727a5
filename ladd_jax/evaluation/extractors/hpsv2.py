"""HPSv2 (Wu et al. 2023): a CLIP trained on which pictures people prefer."""

import numpy as np

from ladd_jax.evaluation.extractors import Given
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.extractors.clip import CLIPExtractor
from ladd_jax.evaluation.extractors.pickscore import BASE


def preference(cosine: np.ndarray, scale: float) -> np.ndarray:
    """100 times the cosine, as in the paper's tables; `hpsv2.score` gives the cosine alone."""
    del scale
    return 100 * cosine


def open_extractor(given: Given) -> Extractor:
    """The model at `given.path`: HPSv2 in `transformers`' layout.

    The authors publish a ViT-H/14 in open_clip's layout; the hub has conversions of it. Pictures
    that are not square are cropped to their middle, as CLIP's processor does.
    """
    return CLIPExtractor(given.path, given.mesh, preference, BASE)
