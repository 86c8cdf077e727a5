"""Digits: scikit-learn's 1,797 scans of handwritten digits, alone and in pairs."""

import dataclasses

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError

SINGLE, BESIDE, STACKED = Bucket(8, 8), Bucket(8, 16), Bucket(16, 8)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_JOINERS = {BESIDE: "and", STACKED: "over"}


@dataclasses.dataclass(frozen=True)
class Digits:
    """Scans of one split.

    Attributes:
      images: float32 `[n, 8, 8, 1]` in [-1, 1].
      labels: int64 `[n]`, 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


def load(seed: int = 0) -> tuple[Digits, Digits]:
    """Train and test split (80 % and 20 % of each digit). No scan is in both."""
    # scikit-learn takes seconds to import, and every command imports this module.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = (data.images / 8 - 1).astype(np.float32)[..., None]
    train, test = train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=data.target, random_state=seed
    )
    return Digits(images[train], data.target[train]), Digits(images[test], data.target[test])


def compose(
    digits: Digits, bucket: Bucket, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures of a bucket: single scans in order, or pairs drawn evenly from all ordered pairs.

    Returns:
      float32 `[count, H, W, 1]`, labels int64 `[count, k]` in reading order, and prompts.

    Raises:
      UserError: the bucket is not 8x8, 8x16 or 16x8.
    """
    if bucket == SINGLE:
        index = np.arange(count) % len(digits.images)
        labels = digits.labels[index][:, None]
        return digits.images[index], labels, [prompt(bucket, label) for label in labels]
    if bucket not in _JOINERS:
        raise UserError(f"digits come in buckets 8x8, 8x16 and 16x8, not {bucket.name}")
    rng = np.random.default_rng((seed, bucket.height, bucket.width))
    labels = rng.integers(0, 10, (count, 2))
    images = draw(digits, bucket, labels, seed)
    return images, labels, [prompt(bucket, label) for label in labels]


def draw(digits: Digits, bucket: Bucket, labels: np.ndarray, seed: int) -> np.ndarray:
    """Pictures of random scans of given digits: int `[n, k]` to float32 `[n, H, W, 1]`."""
    rng = np.random.default_rng((seed, bucket.height, bucket.width, 1))
    by_label = [np.flatnonzero(digits.labels == digit) for digit in range(10)]
    index = np.array([[rng.choice(by_label[digit]) for digit in row] for row in labels])
    scans = [digits.images[column] for column in index.T]
    return np.concatenate(scans, axis=2 if bucket == BESIDE else 1)


def prompt(bucket: Bucket, labels: np.ndarray) -> str:
    """`seven`, `three and seven` (left, right) or `three over seven` (top, bottom)."""
    words = [WORDS[int(label)] for label in labels]
    return words[0] if bucket == SINGLE else f" {_JOINERS[bucket]} ".join(words)


def prompt_labels(text: str) -> tuple[int, ...]:
    """The digits of a prompt, the inverse of `prompt`."""
    return tuple(WORDS.index(word) for word in text.split() if word in WORDS)


def prompts(bucket: Bucket) -> list[str]:
    """All prompts of a bucket: 10 for singles, 100 for pairs."""
    pairs = [(a,) for a in range(10)] if bucket == SINGLE else np.ndindex(10, 10)
    return [prompt(bucket, np.array(pair)) for pair in pairs]


def crops(images: np.ndarray, bucket: Bucket) -> np.ndarray:
    """The scans in each picture: `[n, H, W, 1] -> [n, k, 8, 8, 1]` in reading order."""
    if bucket == SINGLE:
        return images[:, None]
    return np.stack(np.split(images, 2, axis=2 if bucket == BESIDE else 1), axis=1)
