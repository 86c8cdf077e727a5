"""Edits of scenes: instructions, the pictures that they make, and the source of data."""

import numpy as np
import pytest

from ladd_jax.data import digits, scene_edits
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.scene_edits import KINDS, MOVE, RECOLOUR, REMOVE, Edit, Picture, Placed
from ladd_jax.data.scenes import BUCKETS, GAP, SIDE, SQUARE, Item
from ladd_jax.errors import UserError


@pytest.fixture(scope="module")
def train() -> digits.Digits:
    return digits.load()[0]


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("make the red seven blue", Edit(RECOLOUR, Item(7, "red"), "blue")),
        ("make the seven blue", Edit(RECOLOUR, Item(7, None), "blue")),
        ("move the blue digit to the left", Edit(MOVE, Item(None, "blue"), "to the left")),
        ("move the blue one up", Edit(MOVE, Item(1, "blue"), "up")),
        ("remove the green four", Edit(REMOVE, Item(4, "green"))),
    ],
)
def test_an_instruction_says_what_is_asked_for_and_is_read_again(text, edit):
    assert scene_edits.instruction(edit) == text
    assert scene_edits.parse(text) == edit


@pytest.mark.parametrize("text", ["", "a red seven", "make the red seven", "remove a red seven"])
def test_other_text_is_no_instruction(text):
    with pytest.raises(UserError, match="is not an instruction for a scene: write one such as"):
        scene_edits.parse(text)


def test_an_edit_changes_the_scan_that_is_named_alone():
    seven, three = Placed(7, "red", 0, (0, 0)), Placed(3, "blue", 1, (12, 12))
    picture = Picture(0.1, (seven, three))

    def after(text):
        return scene_edits.edited(picture, scene_edits.parse(text)).scans

    assert after("make the red digit pink") == (Placed(7, "pink", 0, (0, 0)), three)
    assert after("move the three to the left") == (seven, Placed(3, "blue", 1, (12, 4)))
    assert after("remove the blue three") == (seven,)


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda b: b.name)
def test_drawn_edits_can_be_made_and_name_one_scan(train, bucket):
    drawn = scene_edits.draw_edits(train, bucket, 300, seed=0)
    assert {edit.kind for _, edit in drawn} == set(KINDS)
    assert {len(picture.scans) for picture, _ in drawn} == {1, 2, 3}
    for picture, edit in drawn:
        assert sum(scan.fits(edit.item) for scan in picture.scans) == 1
        assert scene_edits.parse(scene_edits.instruction(edit)) == edit
        for made in (picture, scene_edits.edited(picture, edit)):
            places = np.array([scan.place for scan in made.scans]).reshape(-1, 2)
            assert np.all(places >= 0) and np.all(places + SIDE <= (bucket.height, bucket.width))
            for i, place in enumerate(places):
                apart = np.abs(places[i + 1 :] - place).max(axis=1)
                assert np.all(apart >= SIDE + GAP)


def test_pixels_away_from_the_scan_that_is_named_stay(train):
    drawn = scene_edits.draw_edits(train, SQUARE, 60, seed=1)
    after, before, _ = scene_edits.compose(train, SQUARE, 60, seed=1)
    for (picture, edit), new, old in zip(drawn, after, before, strict=True):
        free = np.ones((24, 24), bool)
        for made in (picture, scene_edits.edited(picture, edit)):
            row, column = next(
                (scan.place for scan in made.scans if scan not in _kept(picture, edit)), (24, 24)
            )
            free[row : row + SIDE, column : column + SIDE] = False
        np.testing.assert_array_equal(new[free], old[free])
        assert np.any(new != old)


def _kept(picture, edit):
    return set(picture.scans) & set(scene_edits.edited(picture, edit).scans)


def test_the_same_seed_and_bucket_draw_the_same_edits(train):
    one, two, other = (scene_edits.compose(train, SQUARE, 20, seed) for seed in (0, 0, 1))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one[2] != other[2]


def test_another_bucket_is_an_error(train):
    with pytest.raises(UserError, match="24x24, 16x32 and 32x16, not 8x8"):
        scene_edits.compose(train, Bucket(8, 8), 1, 0)
