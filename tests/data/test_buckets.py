"""Buckets and their names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladd_jax.data.buckets import (
    Bucket,
    bucket_table,
    check_resolution,
    check_sides,
    choose_buckets,
    nearest,
    settle_small,
)
from ladd_jax.errors import UserError

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


steps = st.sampled_from([16, 32, 64])
tables = st.builds(
    lambda side, step, count, aspect: dict(
        pixels=(side * step) ** 2, step=step, count=count, max_aspect=aspect
    ),
    st.integers(1, 100), steps, st.integers(1, 20), st.floats(1, 4),
)  # fmt: skip


@given(tables)
def test_a_table_keeps_to_its_limits(table):
    buckets = bucket_table(**table)
    sizes = [bucket.image_size() for bucket in buckets]
    assert len(set(buckets)) == len(buckets) <= table["count"]
    for height, width in sizes:
        assert height % table["step"] == width % table["step"] == 0
        assert abs(height * width / table["pixels"] - 1) <= 1 / 16
        assert max(height, width) / min(height, width) <= table["max_aspect"]
    assert [(width, height) for height, width in sizes] == sizes[::-1]
    side = round(table["pixels"] ** 0.5)
    assert (side, side) in sizes
    aspects = [width / height for height, width in sizes]
    assert len(set(aspects)) == len(aspects)


@given(tables)
def test_a_longer_table_reaches_no_further_than_a_short_one(table):
    widest = bucket_table(**table | {"count": 99})[0]
    if table["count"] >= 3:
        assert bucket_table(**table)[0] == widest


def test_the_default_table_is_of_one_megapixel_in_latents_of_eight():
    names = [bucket.name for bucket in bucket_table()]
    assert names == ["88x176", "104x160", "112x144", "128x128", "144x112", "160x104", "176x88"]
    assert bucket_table()[0].image_size() == (704, 1408)
    halves = [bucket.name for bucket in bucket_table(reduction=16)]
    assert halves[0] == "44x88" and halves[3] == "64x64"


def test_photographs_lose_little_to_the_nearest_bucket():
    for height, width in [(3000, 4000), (4000, 3000), (2000, 3000), (1080, 1920), (1000, 1000)]:
        bucket = nearest(bucket_table(), height, width)
        cropped = (bucket.width / bucket.height) / (width / height)
        assert min(cropped, 1 / cropped) > 0.85


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"pixels": 800 * 800}, "pixels 640000 is more than 1/16 .* use 589824 or 692224"),
        ({"pixels": 0}, "pixels 0 is more than 1/16 .* use 4096"),
        ({"step": 20}, "step 20 is not a multiple of the reduction 8"),
        ({"step": 0}, "step 0 is not a multiple"),
        ({"count": 0}, "count 0 and max_aspect 2.0 must each be at least 1"),
        ({"max_aspect": 0.5}, "count 8 and max_aspect 0.5 must each be at least 1"),
    ],
)
def test_a_table_that_cannot_be_made_is_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        bucket_table(**fields)


@given(st.lists(st.builds(Bucket, sides, sides), min_size=1, max_size=9), sides, sides)
def test_no_bucket_is_nearer_than_the_nearest(buckets, height, width):
    def cut(bucket):
        """The part of the picture that stays, cropped to the aspect of the bucket."""
        ratio = (bucket.width * height) / (bucket.height * width)
        return min(ratio, 1 / ratio)

    assert cut(nearest(buckets, height, width)) >= max(map(cut, buckets)) * (1 - 1e-12)


def test_buckets_are_chosen_for_the_pictures_as_long_as_another_one_saves_enough():
    def chosen(counts, most=5):
        aspects = np.repeat(list(counts), list(counts.values()))
        return [bucket.name for bucket in choose_buckets(aspects, 32 * 32, 2, most)]

    assert chosen({1.0: 100}) == ["32x32"]
    assert chosen({1.0: 100, 1.9: 1}) == ["32x32"]
    assert chosen({1.0: 100, 1.9: 50}) == ["22x44", "32x32"]
    assert chosen({0.5: 50, 2.0: 50}) == ["22x44", "44x22"]
    assert chosen({0.5: 50, 2.0: 49, 1.0: 40}, most=1) == ["32x32"]
    assert chosen({9.0: 10}) == ["22x44"]


@pytest.mark.parametrize(
    "resolution, step, message",
    [(9, 2, "multiples of 2 pixels: use 8 or 10"), (5, 4, "use 4 or 8"), (3, 8, "use 8$")],
)
def test_a_side_that_no_square_has_is_named_with_the_next_ones(resolution, step, message):
    with pytest.raises(ValueError, match=f"data.resolution is {resolution} .*{message}"):
        check_resolution(resolution, step)


def test_sides_near_a_square_will_do():
    for resolution in (8, 10, 32, 33, 255):
        check_resolution(resolution, 2)


def test_judges_get_their_records_and_a_bucket_that_cannot_spare_them_is_small():
    wide, square = Bucket(22, 44), Bucket(32, 32)
    sizes, apart = {wide: 20, square: 40}, {wide: 1, square: 9}
    assert settle_small(sizes, 8, "drop", apart, 10) == {wide: wide, square: square}
    assert settle_small(sizes, 8, "drop", apart, 14) == {wide: None, square: square}
    # Together they have enough of both.
    sizes = {wide: 20, square: 14}
    assert settle_small(sizes, 8, "merge", apart, 14) == {wide: square, square: square}


TABLE = bucket_table(1024, 2, 9, reduction=1)


@given(
    st.dictionaries(
        st.sampled_from(bucket_table(1024, 2, 9, reduction=1)), st.integers(0, 30), min_size=1
    ),
    st.integers(1, 40),
    st.sampled_from(["merge", "drop"]),
)
def test_small_buckets_go_elsewhere_or_nowhere(sizes, least, small):
    homes = settle_small(sizes, least, small)
    assert homes.keys() == sizes.keys()
    kept = {}
    for bucket, home in homes.items():
        assert home is None or homes[home] == home
        if home is not None:
            kept[home] = kept.get(home, 0) + sizes[bucket]
    assert all(size >= least for size in kept.values())
    if small == "merge":
        # Nothing is lost unless everything together is too little.
        assert sum(kept.values()) == sum(sizes.values()) or not kept
        assert kept or sum(sizes.values()) < least
    else:
        assert set(kept) == {bucket for bucket, size in sizes.items() if size >= least}


def test_sides_that_a_network_cannot_be_given_are_said():
    networks = {"model": (2, 32), "teacher": (4, None)}
    check_sides([Bucket(8, 32), Bucket(4, 4)], networks)
    check_sides([Bucket(8, 400)], {"teacher": (4, None)})
    with pytest.raises(
        UserError, match=r"bucket 8x36 exceeds the position table of model, .* at 32"
    ):
        check_sides([Bucket(8, 8), Bucket(8, 36)], networks)
    with pytest.raises(UserError, match=r"bucket 6x8 has a side .* of 4, which is teacher.patch"):
        check_sides([Bucket(6, 8)], networks)
