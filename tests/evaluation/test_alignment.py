"""Agreement with prompts."""

import numpy as np
import pytest

from ladd_jax.evaluation.alignment import agreement


def test_a_picture_agrees_only_when_all_its_digits_do():
    predicted = np.array([[1, 2], [1, 3], [4, 2], [5, 5]])
    assert agreement(predicted, np.array([[1, 2]] * 4)) == 0.25


def test_digits_in_the_wrong_order_do_not_agree():
    assert agreement(np.array([[2, 1]]), np.array([[1, 2]])) == 0.0


def test_a_place_without_a_wanted_digit_is_not_judged():
    assert agreement(np.array([[3, 7], [3, -1]]), np.array([[3, -1], [3, -1]])) == 1.0


def test_a_wanted_digit_that_is_absent_does_not_agree():
    assert agreement(np.array([[3, -1]]), np.array([[3, 4]])) == 0.0


@pytest.mark.parametrize(
    ("predicted", "wanted"),
    [(np.zeros((2, 1)), np.zeros((2, 2))), (np.zeros(2), np.zeros(2)), (*[np.zeros((0, 1))] * 2,)],
)
def test_labels_that_can_not_be_compared_are_refused(predicted, wanted):
    with pytest.raises(ValueError, match="give"):
        agreement(predicted, wanted)
