"""Reading scenes: what real pictures show is read; what they do not show is not."""

import numpy as np
import pytest
from scipy import ndimage

from ladd_jax.data import digits, scenes
from ladd_jax.data.scenes import BUCKETS, SQUARE, TALL, Item, Wanted
from ladd_jax.errors import UserError
from ladd_jax.evaluation.extractors.scenes import Scenes
from ladd_jax.evaluation.metrics.frechet import frechet_distance
from ladd_jax.evaluation.scans import MOST, find
from ladd_jax.evaluation.scenes import FEATURES, MEASURES, Reader, train_reader


@pytest.fixture(scope="module")
def splits() -> tuple[digits.Digits, digits.Digits]:
    return digits.load()


@pytest.fixture(scope="module")
def reader(splits) -> Reader:
    return train_reader(splits[0], seed=0, epochs=12)


def shares(agreement):
    return {name: float(np.mean(values)) for name, values in agreement.items()}


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda b: b.name)
def test_held_out_pictures_agree_with_their_prompts_and_not_with_others(reader, splits, bucket):
    images, prompts = scenes.compose(splits[1], bucket, 200, seed=1)
    right = shares(reader.agreement(images, prompts))
    assert set(right) == set(MEASURES)
    assert right["count"] == right["colours"] == right["relation"] == 1 and right["all"] >= 0.96
    assert shares(reader.agreement(images, prompts[7:] + prompts[:7]))["all"] <= 0.04


def test_the_extractor_looks_at_a_picture_as_one_part_and_reads_its_prompt(reader, splits):
    images, prompts = scenes.compose(splits[1], TALL, 40, seed=3)
    features, alignment = Scenes(reader).look(images, prompts)
    assert features.shape == (40, 1, FEATURES)
    assert features.dtype == alignment.dtype == np.float64
    assert alignment.mean() > 0.9


def picture(*placed, shade=0.1, side=24):
    """A canvas with scans `(ink [8, 8, 1], colour, row, column)`."""
    image = np.full((side, side, 3), shade)
    for scan, colour, row, column in placed:
        ink = (scan + 1) / 2
        image[row : row + 8, column : column + 8] += ink * (np.array(colour) - shade)
    return (2 * image - 1)[None]


@pytest.fixture(scope="module")
def scan(reader, splits):
    """`scan(digit)`: a held-out scan that the judge reads right."""
    test = splits[1]
    read = reader.judge.labels(test.images)
    return lambda digit: test.images[np.flatnonzero((test.labels == digit) & (read == digit))[0]]


RED, BLUE = scenes.COLOURS["red"], scenes.COLOURS["blue"]


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("a red seven left of a blue three", set()),
        ("a red seven above a blue three", {"relation"}),
        ("a blue three left of a red seven", {"relation"}),
        ("a red seven left of a blue four", {"digits"}),
        ("a red seven left of a green three", {"colours"}),
        ("a red seven", {"count"}),
        ("a red seven, a blue three and a pink one", {"count", "digits", "colours"}),
        # Digits and colours are there, but on each other's scans.
        ("a blue seven left of a red three", {"binding"}),
    ],
)
def test_what_is_wrong_is_named(reader, scan, prompt, wrong):
    image = picture((scan(7), RED, 3, 1), (scan(3), BLUE, 6, 14))
    agreement = reader.agreement(image, [prompt])
    assert {name for name in MEASURES[:-1] if not agreement[name][0]} == wrong - {"binding"}
    assert bool(agreement["all"][0]) == (not wrong)


def test_scans_that_grew_together_are_two(scan):
    ones = (scan(1), RED, 4, 2), (scan(1), RED, 12, 2)
    assert len(find(picture(*ones))[0].scans) == 2
    others = (scan(8), RED, 4, 2), (scan(8), BLUE, 7, 9)
    assert {s.colour_name for s in find(picture(*others))[0].scans} == {"red", "blue"}


def test_a_broken_scan_is_one(scan):
    broken = scan(1).copy()
    broken[4] = -1
    assert len(find(picture((broken, RED, 5, 5)))[0].scans) == 1


def test_a_grey_scan_has_no_colour(scan):
    (found,) = find(picture((scan(1), (1, 1, 1), 5, 5)))[0].scans
    assert found.colour_name is None


@pytest.mark.parametrize(
    "change",
    [
        lambda x, rng: ndimage.gaussian_filter(x, (0, 0.5, 0.5, 0)),
        lambda x, rng: x + 0.15 * rng.standard_normal(x.shape),
        lambda x, rng: 1.3 * x,
        lambda x, rng: 0.8 * (x + 1) - 1,
    ],
    ids=["soft", "noisy", "beyond the range", "weak"],
)
def test_slightly_wrong_pictures_are_still_read(reader, splits, change):
    images, prompts = scenes.compose(splits[1], SQUARE, 100, seed=2)
    agreement = shares(reader.agreement(change(images, np.random.default_rng(0)), prompts))
    assert agreement["count"] >= 0.98 and agreement["colours"] >= 0.98 and agreement["all"] >= 0.9


@pytest.mark.parametrize("value", [-1.0, 1.0, np.nan, np.inf, "noise"])
def test_pictures_of_nothing_have_no_scans_that_agree(reader, value):
    images = np.random.default_rng(0).standard_normal((5, 24, 24, 3))
    if value != "noise":
        images[:] = value
    agreement = reader.agreement(images, ["a red seven"] * 5)
    assert not agreement["all"].any()
    features = reader.features(images)
    assert np.isfinite(features).all() and np.abs(features).max() < 8
    assert all(len(scene.scans) <= MOST for scene in find(images))


def test_features_have_one_width_for_every_bucket(reader, splits):
    for bucket in BUCKETS:
        features = reader.features(scenes.compose(splits[1], bucket, 3, seed=0)[0])
        assert features.shape == (3, FEATURES) and features.dtype == np.float64
    assert FEATURES <= 100


def test_features_do_not_depend_on_the_pictures_around(reader, splits):
    images = scenes.compose(splits[1], SQUARE, 8, seed=0)[0]
    np.testing.assert_allclose(
        reader.features(images)[5:6], reader.features(images[5:6]), atol=1e-5
    )


def test_a_distance_sees_digit_colour_place_and_count(reader, splits):
    """Each beyond what two sets of the same kind differ by."""

    def features(seed, digit=7, colour="red", more=(), shift=0):
        wanted = [Wanted((Item(digit, colour), *more))] * 150
        images = scenes.draw(splits[0], SQUARE, wanted, seed)
        return reader.features(np.roll(images, shift, axis=2))

    base = features(0)
    floor = frechet_distance(features(1), base)
    for changes in (
        dict(digit=1),
        dict(colour="pink"),
        dict(more=(Item(7, "red"),)),
        dict(shift=8),
    ):
        assert frechet_distance(features(1, **changes), base) > 2 * floor


def test_prompts_that_do_not_fit_the_pictures_are_refused(reader):
    images = np.zeros((2, 24, 24, 3))
    with pytest.raises(UserError, match="2 pictures and 1 prompts"):
        reader.agreement(images, ["a seven"])
    with pytest.raises(UserError, match="'a cat' is not a prompt of a scene"):
        reader.agreement(images, ["a seven", "a cat"])
