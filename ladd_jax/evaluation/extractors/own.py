"""A run's own extractor: a small image-text encoder, trained on the pictures of its training split.

It needs no labels: it learns to bring a picture nearer to its own caption than to the other
captions of the batch (Radford et al. 2021). So its features represent what captions describe, and
distances between them differences that a reader of captions would notice. Numbers of two runs are
not comparable, since each run has its own encoder.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError
from ladd_jax.evaluation.extractors import Given, Training
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.models.base import Model, Params
from ladd_jax.models.image_text import image_text, terms, word_ids

_LOG = logging.getLogger(__name__)

CHOICES = 100
"""Number of captions among which a picture's own has to be found."""

_WORDS = 64
_PART = 256


class OwnEncoder:
    """Looks at pictures with a trained pair of encoders.

    Alignment is R-precision (Xu et al. 2018): 1 if, among `CHOICES` captions, a picture's own is
    nearer than every other one. Captions that the encoder cannot tell apart are never choices for
    the same picture. It reads at most 64 words and pairs of words of a caption.
    """

    def __init__(self, model: Model, params: Params, captions: Sequence[str], seed: int):
        """Wraps trained encoders.

        Args:
          model: the encoders.
          params: their parameters.
          captions: captions of the training split, from which the wrong choices are drawn.
          seed: seed of that draw.
        """
        self._params, self._seed = params, seed
        self._captions = sorted(set(captions))
        self._image = jax.jit(lambda params, x: model.bind(params).image(x))
        self._text = jax.jit(lambda params, ids: model.bind(params).text(ids))

    def look(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Extractor`; a picture has one part."""
        features, embeddings = self._in_parts(self._image, images.astype(np.float32))
        return features[:, None].astype(np.float64), self._found(embeddings, list(prompts))

    def _found(self, embeddings: np.ndarray, prompts: list[str]) -> np.ndarray:
        pool = sorted(set(prompts) | set(self._captions))
        place = {caption: i for i, caption in enumerate(pool)}
        ids = word_ids(pool, _WORDS)
        _, kinds = np.unique(ids, axis=0, return_inverse=True)
        (texts,) = self._in_parts(lambda p, ids: (self._text(p, ids),), ids)
        rng = np.random.default_rng(self._seed)
        found = np.zeros(len(prompts))
        for i, prompt in enumerate(prompts):
            others = np.flatnonzero(kinds != kinds[place[prompt]])
            wrong = rng.choice(others, min(CHOICES - 1, len(others)), replace=False)
            cosines = texts[[place[prompt], *wrong]] @ embeddings[i]
            # A strict comparison: neither a tie nor a NaN counts as found.
            found[i] = len(wrong) > 0 and np.all(cosines[0] > cosines[1:])
        return found

    def _in_parts(self, function: Any, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = []
        for start in range(0, len(inputs), _PART):
            part = inputs[start : start + _PART]
            # All parts have the same shape, so that one program serves them.
            whole = np.resize(part, (_PART, *part.shape[1:]))
            outputs.append([np.asarray(o)[: len(part)] for o in function(self._params, whole)])
        return tuple(np.concatenate(column) for column in zip(*outputs, strict=True))


def train_encoder(
    training: Training, seed: int = 0, steps: int = 800, batch_size: int = 128
) -> OwnEncoder:
    """Trains the encoders with light noise and shifts of up to one pixel.

    Args:
      training: pictures and captions of each bucket.
      seed: seed of parameters, order and augmentation.
      steps: number of updates, each on one bucket, drawn in proportion to its size.
      batch_size: pairs in an update; in a smaller bucket some are repeated.

    Raises:
      UserError: there are no pictures, or only one distinct caption.
    """
    captions = {caption for _, texts in training.values() for caption in texts}
    if len(captions) < 2:
        raise UserError(
            f"only {len(captions)} distinct caption{'s' * (len(captions) != 1)}: R-precision needs "
            f"2 or more; give them, or another evaluate.extractor than 'own'"
        )
    cut = sum(len(terms(caption)) > _WORDS for caption in captions)
    if cut:
        _LOG.warning(
            "own: %d of %d captions have more than %d words and pairs of words: the rest is cut",
            cut, len(captions), _WORDS,
        )  # fmt: skip
    channels = next(iter(training.values()))[0].shape[-1]
    model = image_text(channels)
    key = jax.random.PRNGKey(seed)
    params = jax.jit(model.init)(key)
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=0.05)
    update: Any = jax.jit(functools.partial(_update, model, optimizer))
    state = optimizer.init(params)
    rng = np.random.default_rng(seed)
    buckets: list[Bucket] = list(training)
    ids = {bucket: word_ids(training[bucket][1], _WORDS) for bucket in buckets}
    sizes = np.array([len(ids[bucket]) for bucket in buckets], float)
    for step in range(steps):
        bucket = buckets[rng.choice(len(buckets), p=sizes / sizes.sum())]
        index = rng.integers(0, len(ids[bucket]), batch_size)
        images = training[bucket][0][index]
        params, state = update(
            params, state, jax.random.fold_in(key, step), images, ids[bucket][index]
        )
    return OwnEncoder(model, params, sorted(captions), seed)


def _update(
    model: Model, optimizer: Any, params: Params, state: Any, key: Any, images: Any, ids: Any
) -> tuple[Params, Any]:
    gradient = jax.grad(lambda p: _loss(model(p, _augment(key, images), ids), ids))(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _loss(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Cross-entropy in both directions; equal captions in a batch all count as correct."""
    same = jnp.all(ids[:, None] == ids[None], axis=-1).astype(jnp.float32)
    targets = same / same.sum(-1, keepdims=True)
    rows = optax.softmax_cross_entropy(logits, targets)
    columns = optax.softmax_cross_entropy(logits.T, targets)
    return jnp.mean(rows + columns) / 2


def _augment(key: jax.Array, images: jax.Array) -> jax.Array:
    shift_key, noise_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    y, x = jax.random.randint(shift_key, (2,), 0, 3)
    moved = jax.lax.dynamic_slice(padded, (0, y, x, 0), images.shape)
    return moved + 0.05 * jax.random.normal(noise_key, images.shape)


def open_extractor(given: Given) -> Extractor:
    """Encoders trained on the run's training split, some minutes on two cores."""
    return train_encoder(given.training(), given.seed)
