"""The judge reads real scans, and says so in the same way every time."""

import numpy as np
import pytest

from ladd_jax.data.digits import Digits, load
from ladd_jax.evaluation.judge import Judge, train_judge

EPOCHS = 12


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, Digits]:
    return load(seed=0)


@pytest.fixture(scope="module")
def judge(digits) -> Judge:
    return train_judge(digits[0].images, digits[0].labels, 0, EPOCHS)


def test_it_reads_held_out_scans(judge, digits):
    assert judge.accuracy(digits[1].images, digits[1].labels) >= 0.97


def test_it_is_wrong_about_wrong_labels(judge, digits):
    test = digits[1]
    assert judge.accuracy(test.images, (test.labels + 1) % 10) < 0.03


def test_it_still_reads_scans_moved_by_a_pixel(judge, digits):
    test = digits[1]
    moved = np.pad(test.images, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=-1)[:, :8]
    assert judge.accuracy(moved, test.labels) >= 0.9


def test_features_are_float64_and_do_not_depend_on_their_neighbours(judge, digits):
    images = digits[1].images
    features = judge.features(images)
    assert features.shape == (len(images), 64) and features.dtype == np.float64
    np.testing.assert_allclose(judge.features(images[5:6]), features[5:6], atol=1e-6)


def test_more_images_than_a_part_are_all_judged(judge, digits):
    images = np.concatenate([digits[0].images] * 2)[:1500]
    assert judge.labels(images).shape == (1500,)


def test_the_same_seed_gives_the_same_judge_and_another_gives_another(judge, digits):
    train, test = digits
    same, other = (train_judge(train.images, train.labels, seed, EPOCHS) for seed in (0, 1))
    np.testing.assert_array_equal(judge.features(test.images), same.features(test.images))
    assert not np.allclose(judge.features(test.images), other.features(test.images))


def test_labels_that_do_not_fit_the_images_are_refused(digits):
    with pytest.raises(ValueError, match="one label for each image"):
        train_judge(digits[0].images, digits[0].labels[:-1])
