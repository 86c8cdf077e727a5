"""Buckets and their names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladd_jax.data.buckets import Bucket, nearest

sides = st.integers(1, 512)


@given(sides, sides)
def test_a_name_gives_its_bucket_back(height, width):
    assert Bucket.parse(Bucket(height, width).name) == Bucket(height, width)


@pytest.mark.parametrize("name", ["8", "8x", "0x8", "8x16x2", "a x b", " 8x8"])
def test_a_name_that_is_no_bucket_is_an_error(name):
    with pytest.raises(ValueError, match="ROWSxCOLUMNS"):
        Bucket.parse(name)


@given(sides, sides)
def test_a_bucket_is_nearest_to_itself(height, width):
    buckets = [Bucket(1, 3), Bucket(3, 1), Bucket(height, width)]
    near = nearest(buckets, height, width)
    assert near.height * width == near.width * height


def test_wide_and_tall_are_told_apart():
    buckets = [Bucket(8, 8), Bucket(8, 16), Bucket(16, 8)]
    assert nearest(buckets, 100, 190) == Bucket(8, 16)
    assert nearest(buckets, 190, 100) == Bucket(16, 8)
    assert nearest(buckets, 100, 120) == Bucket(8, 8)
