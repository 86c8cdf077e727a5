"""A classifier trained on real scans, whose features serve distances and whose labels alignment."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ladd_jax.errors import UserError
from ladd_jax.models.base import Model, Params
from ladd_jax.models.classifier import classifier


class Judge:
    """A trained classifier of 8x8 scans."""

    def __init__(self, model: Model, params: Params):
        self._params = params
        self._apply = jax.jit(model.__call__)

    def _predict(self, images: np.ndarray, part: int = 512) -> tuple[np.ndarray, np.ndarray]:
        outputs = []
        # With no images there is still one empty part, so that the outputs have the right shapes.
        for start in range(0, max(len(images), 1), part):
            batch = images[start : start + part]
            padded = np.pad(batch, ((0, part - len(batch)), (0, 0), (0, 0), (0, 0)))
            outputs.append([np.asarray(o)[: len(batch)] for o in self._apply(self._params, padded)])
        features, logits = zip(*outputs, strict=True)
        return np.concatenate(features), np.concatenate(logits)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Penultimate layer, float64 `[n, F]`, of float32 `[n, 8, 8, 1]` in [-1, 1]."""
        return self._predict(images)[0].astype(np.float64)

    def labels(self, images: np.ndarray) -> np.ndarray:
        """Most likely digit, int64 `[n]`, of float32 `[n, 8, 8, 1]` in [-1, 1]."""
        return np.argmax(self._predict(images)[1], axis=1)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of images `[n, 8, 8, 1]` that are classified as the given labels, int `[n]`."""
        return float(np.mean(self.labels(images) == labels))


_MODEL = classifier()


def _optimizer(steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(3e-3, steps)
    return optax.adamw(schedule, weight_decay=1e-2)


def _loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = _MODEL(params, x)[1]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def _augment(key: jax.Array, x: jax.Array) -> jax.Array:
    shift_key, noise_key = jax.random.split(key)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    shifts = jax.random.randint(shift_key, (len(x), 2), 0, 3)
    cut = functools.partial(jax.lax.dynamic_slice, slice_sizes=(8, 8, 1))
    moved = jax.vmap(lambda image, s: cut(image, (s[0], s[1], 0)))(padded, shifts)
    return moved + 0.1 * jax.random.normal(noise_key, x.shape)


# At module level, so that judges of several seeds share one compilation.
@functools.partial(jax.jit, static_argnames=("batch_size", "total"))
def _epoch(
    params: Params,
    state: Any,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    batch_size: int,
    total: int,
) -> tuple[Params, Any]:
    steps = len(images) // batch_size
    order_key, key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images))[: steps * batch_size]

    def update(carry: tuple[Params, Any], item: Any) -> tuple[tuple[Params, Any], None]:
        params, state = carry
        index, key = item
        gradient = jax.grad(_loss)(params, _augment(key, images[index]), labels[index])
        updates, state = _optimizer(total).update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    items = (order.reshape(steps, batch_size), jax.random.split(key, steps))
    return jax.lax.scan(update, (params, state), items)[0]


def train_judge(
    images: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    epochs: int = 40,
    batch_size: int = 64,
) -> Judge:
    """Trains a classifier with random shifts of up to one pixel and light noise.

    Args:
      images: float32 `[n, 8, 8, 1]` in [-1, 1].
      labels: int `[n]`, 0 to 9.
      seed: seed of the parameters and the augmentation.
      epochs: number of passes over the images.
      batch_size: images in an update.

    Returns:
      a judge, the same for the same arguments on the same machine.

    Raises:
      UserError: there is not one label for each image, or fewer images than in a batch.
    """
    if len(images) != len(labels) or len(images) < batch_size:
        raise UserError(
            f"{len(images)} images and {len(labels)} labels: give one label for each image, and at "
            f"least batch_size {batch_size} of both"
        )
    steps = len(images) // batch_size
    key, init_key = jax.random.split(jax.random.PRNGKey(seed))
    params = jax.jit(_MODEL.init)(init_key)
    state = _optimizer(epochs * steps).init(params)
    x, y = jnp.asarray(images), jnp.asarray(labels)
    for number in range(epochs):
        epoch_key = jax.random.fold_in(key, number)
        params, state = _epoch(params, state, epoch_key, x, y, batch_size, epochs * steps)
    return Judge(_MODEL, params)
