"""Errors of edited pictures."""

import numpy as np
import pytest

from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.metrics.edits import errors
from ladd_jax.evaluation.seen import Seen


@pytest.fixture
def edits():
    """(sources, truths) of two pictures whose left half is edited."""
    sources = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    truths = sources.copy()
    truths[:, :, :2] = -np.sign(sources[:, :, :2])
    return sources, truths


def test_the_true_picture_has_no_error_and_the_source_has_kept_all(edits):
    sources, truths = edits
    assert all(np.all(found == 0) for found in errors(truths, sources, truths).values())
    still = errors(sources, sources, truths)
    assert np.all(still["kept_error"] == 0) and np.all(still["edit_error"] > 0.5)


def test_errors_are_root_mean_squares_and_of_the_other_half_alone_where_it_is_kept(edits):
    sources, truths = edits
    images = np.clip(truths, -0.9, 0.9)
    images[:, :, 2:] += 0.1
    images = np.clip(images, -1, 1)
    found = errors(images, sources, truths)
    away = images.astype(np.float64) - truths
    np.testing.assert_allclose(found["edit_error"], np.sqrt((away**2).mean(axis=(1, 2, 3))))
    np.testing.assert_allclose(
        found["kept_error"], np.sqrt((away[:, :, 2:] ** 2).mean(axis=(1, 2, 3))), atol=1e-6
    )


def test_what_is_beyond_the_range_is_clipped(edits):
    sources, truths = edits
    beyond = np.where(np.abs(truths) == 1, 3 * truths, truths)
    assert np.all(errors(beyond, sources, truths)["edit_error"] == 0)


def test_the_metric_is_a_mean_over_pictures_and_there_is_none_without_edits(edits):
    sources, truths = edits
    prompts, features = np.array(["a", "b"]), np.zeros((2, 1, 1))
    own = errors(sources, sources, truths)
    seen = Seen(sources, prompts, features, None, np.arange(2), own)
    assert METRICS["edit_error"].measure([seen], []) == pytest.approx(np.mean(own["edit_error"]))
    second = seen.take(np.array([1, 1]))
    assert METRICS["edit_error"].measure([second], []) == pytest.approx(own["edit_error"][1])
    # A bucket with fewer pictures counts for less.
    both = METRICS["edit_error"].measure([seen, seen.take(np.array([1]))], [])
    assert both == pytest.approx(np.mean([*own["edit_error"], own["edit_error"][1]]))
    plain = Seen(sources, prompts, features, None, np.arange(2))
    assert METRICS["edit_error"].measure([plain], []) is None
