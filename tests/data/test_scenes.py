"""Scenes: prompts and what they ask for, pictures, and the source of data made of them."""

import numpy as np
import pytest

from configs import scenes as scenes_config
from ladd_jax.data import digits, scenes
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.scenes import BUCKETS, SQUARE, TALL, WIDE, Item, Wanted
from ladd_jax.data.sources import open_source
from ladd_jax.errors import UserError
from ladd_jax.models.random_text import WordTokenizer


@pytest.fixture(scope="module")
def train() -> digits.Digits:
    return digits.load()[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a seven", Wanted((Item(7, None),))),
        ("an eight", Wanted((Item(8, None),))),
        ("a red digit", Wanted((Item(None, "red"),))),
        ("a pink one", Wanted((Item(1, "pink"),))),
        (
            "a red seven left of a blue three",
            Wanted((Item(7, "red"), Item(3, "blue")), "left of"),
        ),
        (
            "a red seven, a blue three and a green one",
            Wanted((Item(7, "red"), Item(3, "blue"), Item(1, "green"))),
        ),
    ],
)
def test_a_prompt_says_what_is_wanted_and_is_read_again(text, wanted):
    assert scenes.prompt(wanted) == text
    assert scenes.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "seven", "a purple seven", "a red seven left of", "a a seven"]
)
def test_other_text_is_no_prompt(text):
    with pytest.raises(UserError, match="is not a prompt of a scene: write one such as"):
        scenes.parse(text)


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda b: b.name)
def test_drawn_prompts_are_read_again_and_fit_the_tokenizer(bucket):
    wanted = scenes.draw_wanted(bucket, 500, seed=0)
    prompts = [scenes.prompt(each) for each in wanted]
    assert [scenes.parse(text) for text in prompts] == wanted
    tokenizer = WordTokenizer(scenes_config.get_config().data.text_length)
    tokenizer(prompts)
    assert not tokenizer.truncated
    assert {len(each.items) for each in wanted} == {1, 2, 3}
    relations = {each.relation for each in wanted} - {None}
    assert relations == {SQUARE: {"left of", "above"}, WIDE: {"left of"}, TALL: {"above"}}[bucket]


def test_the_longest_prompt_fits_the_tokenizer():
    longest = Wanted((Item(7, "yellow"),) * 3)
    tokenizer = WordTokenizer(scenes_config.get_config().data.text_length)
    tokenizer([scenes.prompt(longest)])
    assert not tokenizer.truncated


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda b: b.name)
def test_pictures_are_in_range_on_a_dark_ground(train, bucket):
    images, prompts = scenes.compose(train, bucket, 60, seed=0)
    assert images.shape == (60, bucket.height, bucket.width, 3) and images.dtype == np.float32
    assert len(prompts) == 60 and np.abs(images).max() <= 1
    grounds = np.median(images, axis=(1, 2))
    assert grounds.max() <= -0.5 and np.ptp(grounds) > 0.4


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda b: b.name)
def test_scans_lie_apart_and_stand_as_the_prompt_says(bucket):
    """With scans that are full squares the places can be seen."""
    squares = digits.Digits(np.ones((10, 8, 8, 1), np.float32), np.arange(10))
    items = (Item(1, "red"), Item(2, "blue"))
    relations = ["left of"] * (bucket != TALL) + ["above"] * (bucket != WIDE)
    for relation in relations:
        images = scenes.draw(squares, bucket, [Wanted(items, relation)] * 30, seed=0)
        for image in images:
            red, blue = (
                np.argwhere(np.all(np.abs(image - 2 * np.array(colour) + 1) < 1e-6, axis=-1))
                for colour in (scenes.COLOURS["red"], scenes.COLOURS["blue"])
            )
            assert len(red) == len(blue) == 64
            assert not np.any(red.min(0) % scenes.PITCH) and not np.any(blue.min(0) % scenes.PITCH)
            offset = blue.min(0) - red.min(0)
            axis = scenes.RELATIONS[relation]
            assert offset[axis] >= 9 and offset[axis] > abs(offset[1 - axis])


def test_every_place_of_a_canvas_is_drawn():
    squares = digits.Digits(np.ones((10, 8, 8, 1), np.float32), np.arange(10))
    images = scenes.draw(squares, SQUARE, [scenes.parse("a red seven")] * 400, seed=0)
    corners = [np.argwhere(image[..., 0] > 0.9).min(0) // scenes.PITCH for image in images]
    assert len({tuple(corner) for corner in corners}) == 25


def test_one_prompt_has_many_pictures(train):
    images = scenes.draw(train, SQUARE, [scenes.parse("a red seven")] * 50, seed=0)
    assert len({image.tobytes() for image in images}) == 50


def test_the_same_seed_and_bucket_draw_the_same_pictures(train):
    one, two, other = (scenes.compose(train, WIDE, 20, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1] and one[1] != other[1]
    assert one[1] != scenes.compose(train, TALL, 20, 0)[1]


def test_another_bucket_is_an_error(train):
    with pytest.raises(UserError, match="24x24, 16x32 and 32x16, not 8x8"):
        scenes.compose(train, Bucket(8, 8), 1, 0)


def test_a_relation_that_has_no_room_is_an_error(train):
    with pytest.raises(UserError, match="16x32 has no room for a scan above another"):
        scenes.draw(train, WIDE, [scenes.parse("a red seven above a blue one")], 0)


def test_the_source_has_pictures_with_their_prompts_in_the_order_of_the_records(train, tmp_path):
    config = scenes_config.get_config()
    config.data.update(dict(examples=12, held_out_examples=5))
    source = open_source(config, BUCKETS, tmp_path)
    assert source.arrays["latents"].shape_in(WIDE) == (16, 32, 3)
    images, prompts = scenes.compose(train, WIDE, 12, config.seed)
    assert source.prompts[WIDE] == prompts
    np.testing.assert_array_equal(source.read(WIDE, 3, 7)["latents"], images[3:7])
    held_out = source.held_out
    assert len(held_out.prompts[WIDE]) == len(held_out.read(WIDE, 0, 5)["latents"]) == 5
    assert held_out.prompts[WIDE] != prompts[:5]
