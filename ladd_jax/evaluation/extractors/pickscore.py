"""PickScore (Kirstain et al. 2023): a CLIP trained on which of two pictures people chose."""

import numpy as np

from ladd_jax.evaluation.extractors import Given
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.extractors.clip import CLIPExtractor

BASE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The CLIP that it was trained from, whose tokenizer and image processor it uses."""


def pick_score(cosine: np.ndarray, scale: float) -> np.ndarray:
    """The logit, CLIP's own factor times the cosine, as the authors' example computes it."""
    return scale * cosine


def open_extractor(given: Given) -> Extractor:
    """The model at `given.path`: yuvalkirstain/PickScore_v1, or a folder with its files."""
    return CLIPExtractor(given.path, given.mesh, pick_score, BASE)
