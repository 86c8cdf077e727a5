"""Masks of pictures to be filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladd_jax.data.images import enlarged
from ladd_jax.data.masks import KINDS, LEAST, MOST, draw_mask, reduced

SIDES = st.integers(2, 12)
SHARES = st.tuples(*[st.floats(0, 1)] * 3).filter(any)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.text(), SIDES, SIDES, st.sampled_from([1, 2, 8]), SHARES)
def test_a_mask_is_neither_empty_nor_full_and_follows_from_its_seed_and_key(
    seed, key, rows, columns, reduction, shares
):
    height, width = rows * reduction, columns * reduction
    mask = draw_mask(seed, key, height, width, reduction, shares)
    assert mask.shape == (height, width) and mask.dtype == bool
    small = reduced(mask, reduction)
    assert small.any() and not small.all() and LEAST <= small.mean() <= MOST
    np.testing.assert_array_equal(mask, draw_mask(seed, key, height, width, reduction, shares))
    # What is known to latents has no pixel that is to be filled.
    assert not (mask & ~enlarged(small, reduction)).any()


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_masks_of_every_kind_differ_between_records_and_fill_a_fair_share(kind):
    shares = [float(i == kind) for i in range(len(KINDS))]
    masks = np.array([draw_mask(0, str(i), 64, 96, 8, shares) for i in range(100)])
    assert len({mask.tobytes() for mask in masks}) == 100
    assert 0.15 < masks.mean() < 0.75
    # Those of strokes and boxes leave most corners, and frames take most.
    corners = masks[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert corners > 0.4 if KINDS[kind] == "outpainting" else corners < 0.3


def test_another_seed_draws_another_mask():
    one, other = (draw_mask(seed, "a", 64, 64, 8, (1, 1, 1)) for seed in (0, 1))
    assert (one != other).any()
