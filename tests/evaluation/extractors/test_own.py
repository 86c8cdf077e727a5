"""The run's own encoder learns what captions tell."""

import jax
import numpy as np
import pytest

from ladd_jax.data.buckets import Bucket
from ladd_jax.evaluation.extractors.own import OwnEncoder, train_encoder
from ladd_jax.models.image_text import image_text, terms, word_ids

WORDS = ("left", "right", "top", "bottom")


def pictures(bucket: Bucket, count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """A bright half on the side that the caption names."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 4, count)
    images = rng.normal(-0.5, 0.3, (count, bucket.height, bucket.width, 1))
    h, w = bucket.height // 2, bucket.width // 2
    places = ((slice(None), slice(0, w)), (slice(None), slice(w, None)),
              (slice(0, h), slice(None)), (slice(h, None), slice(None)))  # fmt: skip
    for image, kind in zip(images, kinds, strict=True):
        image[places[kind]] += 1
    return images.astype(np.float32), [f"bright {WORDS[kind]}" for kind in kinds]


@pytest.fixture(scope="module")
def encoder():
    buckets = (Bucket(8, 8), Bucket(8, 16))
    return train_encoder({b: pictures(b, 200, 0) for b in buckets}, steps=60, batch_size=64)


@pytest.mark.parametrize("bucket", [Bucket(8, 8), Bucket(8, 16)])
def test_it_finds_the_caption_of_held_out_pictures_of_every_shape(encoder, bucket):
    images, captions = pictures(bucket, 100, 1)
    features, alignment = encoder.look(images, captions)
    assert features.shape == (100, 1, 64) and features.dtype == np.float64
    assert np.abs(features).max() <= 1
    assert alignment.mean() >= 0.9
    wrong = [captions[i - 1] for i in range(100)]
    differs = np.array([a != b for a, b in zip(captions, wrong, strict=True)])
    assert encoder.look(images, wrong)[1][differs].mean() < 0.1


def test_features_do_not_depend_on_neighbours(encoder):
    images, captions = pictures(Bucket(8, 8), 300, 2)
    features, _ = encoder.look(images, captions)
    alone, _ = encoder.look(images[270:271], captions[270:271])
    np.testing.assert_allclose(alone[0], features[270], atol=1e-5)


def test_the_order_of_words_is_seen():
    a, b = word_ids(["a red seven left of a blue three", "a blue three left of a red seven"], 32)
    assert set(a) != set(b)


def test_one_caption_for_all_pictures_is_refused():
    images, _ = pictures(Bucket(8, 8), 70, 0)
    with pytest.raises(ValueError, match="only 1 distinct caption: R-precision needs 2 or more"):
        train_encoder({Bucket(8, 8): (images, ["x"] * 70)})


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_encoder_that_tells_nothing_apart_finds_nothing(value):
    model = image_text(1)
    constant = jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), model.shapes)
    captions = [f"bright {word}" for word in WORDS]
    blind = OwnEncoder(model, constant, captions, 0)
    _, alignment = blind.look(pictures(Bucket(8, 8), 8, 0)[0], captions * 2)
    assert not alignment.any()


def test_captions_that_are_read_as_the_same_are_no_choices(encoder):
    images, captions = pictures(Bucket(8, 8), 20, 1)
    louder = [f"{caption.upper()}!" for caption in captions]
    mixed = [louder[i] if i % 2 else captions[i] for i in range(20)]
    assert encoder.look(images, mixed)[1].mean() >= 0.9


def test_pairs_of_words_stand_beside_their_words():
    assert terms("A red cat.") == ["a", "a red", "red", "red cat", "cat"]
    long = " ".join(f"w{i}" for i in range(40))
    swapped = long.replace("w1 w2", "w2 w1")
    assert (word_ids([long], 64) != word_ids([swapped], 64)).any()
