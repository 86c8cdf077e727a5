"""Digits: splits, pictures, prompts."""

import numpy as np
import pytest

from ladd_jax.config.fields import base_config
from ladd_jax.data import digits
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.sources import Source, open_source
from ladd_jax.data.sources.held_out import draw, lowest_draws
from ladd_jax.errors import UserError

BUCKETS = (digits.SINGLE, digits.BESIDE, digits.STACKED)


def scans(split):
    return {image.tobytes() for image in split.images}


def test_no_scan_is_in_both_splits():
    train, test = digits.load()
    assert len(train.images) + len(test.images) == 1797
    assert not scans(train) & scans(test)
    assert np.abs(train.images).max() <= 1


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda b: b.name)
def test_pictures_are_made_of_scans_of_their_split_and_labels(bucket):
    train, _ = digits.load()
    by_scan = {i.tobytes(): d for i, d in zip(train.images, train.labels, strict=True)}
    images, labels, prompts = digits.compose(train, bucket, 50, seed=0)
    assert images.shape == (50, bucket.height, bucket.width, 1)
    found = [[by_scan[scan.tobytes()] for scan in row] for row in digits.crops(images, bucket)]
    np.testing.assert_array_equal(found, labels)
    assert [digits.prompt_labels(p) for p in prompts] == [tuple(row) for row in labels]


def test_prompts_read_left_to_right_and_top_to_bottom():
    assert digits.prompt(digits.BESIDE, np.array([3, 7])) == "three and seven"
    assert digits.prompt(digits.STACKED, np.array([3, 7])) == "three over seven"
    for bucket, count in zip(BUCKETS, (10, 100, 100), strict=True):
        prompts = digits.prompts(bucket)
        assert len(set(prompts)) == count
        assert max(len(p.encode()) for p in prompts) <= 16


def test_the_same_seed_draws_the_same_pictures():
    train, _ = digits.load()
    one, two, other = (digits.compose(train, digits.BESIDE, 20, s)[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_another_bucket_is_an_error():
    train, _ = digits.load()
    with pytest.raises(ValueError, match="8x8, 8x16 and 16x8, not 4x4"):
        digits.compose(train, Bucket(4, 4), 1, 0)


def test_a_source_that_there_is_not_is_named_with_those_there_are(tmp_path):
    config = base_config()
    with config.unlocked():
        config.data.source = "audio"
    with pytest.raises(
        UserError, match="'audio' is not one of digits, images, prompts, scene_edits, scenes"
    ):
        open_source(config, BUCKETS, tmp_path)


@pytest.mark.parametrize(
    ("null", "sentence"),
    [
        ({"lable": np.zeros(10)}, "null has 'lable' and the arrays of the data are latents, label"),
        ({"label": np.zeros(1)}, r"of shape \(1,\) and records have it of shape \(10,\)"),
    ],
    ids=["of another name", "of another shape"],
)
def test_what_stands_for_no_array_is_like_the_array(null, sentence):
    arrays = {"latents": ArraySpec(("H", "W", 1)), "label": ArraySpec((10,))}
    with pytest.raises(UserError, match=sentence):
        Source({digits.SINGLE: ["one"]}, arrays, null=null)


def test_digits_are_pictures_with_their_prompts_in_the_order_of_the_records(tmp_path):
    config = base_config()
    config.data.examples = 12
    source = open_source(config, BUCKETS, tmp_path)
    assert source.arrays["latents"].shape_in(digits.BESIDE) == (8, 16, 1)
    train, _ = digits.load(config.seed)
    images, _, prompts = digits.compose(train, digits.BESIDE, 12, config.seed)
    assert source.prompts[digits.BESIDE] == prompts
    np.testing.assert_array_equal(source.read(digits.BESIDE, 3, 7)["latents"], images[3:7])


def test_digits_hold_out_pictures_of_the_test_split(tmp_path):
    config = base_config()
    config.data.update(dict(examples=12, held_out_examples=7))
    held_out = open_source(config, BUCKETS, tmp_path).held_out
    _, test = digits.load(config.seed)
    images, _, prompts = digits.compose(test, digits.STACKED, 7, seed=0)
    assert held_out.prompts[digits.STACKED] == prompts and held_out.held_out is None
    np.testing.assert_array_equal(held_out.read(digits.STACKED, 0, 7)["latents"], images)


def test_single_scans_for_judges_are_there_once(tmp_path):
    config = base_config()
    config.data.update(dict(examples=12, held_out_examples=600))
    held_out = open_source(config, BUCKETS, tmp_path).held_out
    sizes = {bucket: len(prompts) for bucket, prompts in held_out.prompts.items()}
    assert sizes == {digits.SINGLE: 360, digits.BESIDE: 600, digits.STACKED: 600}
    single = held_out.read(digits.SINGLE, 0, 360)["latents"]
    assert len({scan.tobytes() for scan in single}) == 360


def test_pictures_are_held_out_by_their_bytes_alone():
    drawn = [draw(f"tar/{i}".encode()) for i in range(4000)]
    for share in (0.05, 0.2):
        assert abs(sum(value < share for value in drawn) / 4000 - share) < 0.02
    assert min(drawn) >= 0 and max(drawn) < 1
    assert [value < 0.5 for value in drawn[:4]] == [True, False, False, True]


def test_further_pictures_are_held_out_as_by_a_larger_share_and_with_all_their_records():
    draws = [0.5, 0.3, 0.3, 0.7, 0.9]
    assert lowest_draws(draws, missing=0, spare=9) == set()
    assert lowest_draws(draws, missing=1, spare=9) == {0.3}
    assert lowest_draws(draws, missing=3, spare=9) == {0.3, 0.5}
    assert lowest_draws(draws, missing=3, spare=1) == {0.5}
    assert lowest_draws(draws, missing=9, spare=9) == set(draws)
