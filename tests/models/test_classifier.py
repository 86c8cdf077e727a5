"""Shapes and range of the classifier."""

import jax
import numpy as np
import pytest

from ladd_jax.models.classifier import classifier


def test_features_are_bounded_and_logits_are_linear_in_them():
    model = classifier(width=4, features=7, classes=5)
    params = model.init(jax.random.key(0))
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
    features, logits = model(params, images)
    assert features.shape == (6, 7) and logits.shape == (6, 5)
    assert np.abs(features).max() <= 1
    design = np.concatenate([features[:, :], np.ones((6, 1))], axis=1)
    fitted = design @ np.linalg.lstsq(design, np.asarray(logits), rcond=None)[0]
    np.testing.assert_allclose(fitted, logits, atol=1e-4)


def test_every_parameter_moves_the_logits():
    model = classifier(width=4, features=7)
    params = model.init(jax.random.key(0))
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)
    gradient = jax.grad(lambda p: (model(p, images)[1] ** 2).sum())(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("shape", [(2, 8, 16, 1), (2, 8, 8, 3), (2, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    model = classifier(width=4)
    with pytest.raises(ValueError, match=r"reads \[B, 8, 8, 1\]"):
        model(model.init(jax.random.key(0)), np.zeros(shape, np.float32))
