"""The scenes' extractor: one part of a picture, and whether it shows what its prompt says."""

import numpy as np

from ladd_jax.data import digits, scenes
from ladd_jax.evaluation.extractors.scenes import Scenes
from ladd_jax.evaluation.scenes import FEATURES, train_reader


def test_it_looks_at_a_picture_as_one_part_and_reads_the_prompt():
    train, test = digits.load()
    extractor = Scenes(train_reader(train, epochs=8))
    images, prompts = scenes.compose(test, scenes.TALL, 40, seed=3)
    features, alignment = extractor.look(images, prompts)
    assert features.shape == (40, 1, FEATURES)
    assert features.dtype == alignment.dtype == np.float64
    assert alignment.mean() > 0.9
    assert extractor.look(images, prompts[9:] + prompts[:9])[1].mean() < 0.2
