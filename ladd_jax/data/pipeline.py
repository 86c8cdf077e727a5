"""From shards to batches on the mesh.

The plan of batches is a function of (seed, step), the same on every host without communication. So
a run's position in its data is its step.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import Shards, Stored
from ladd_jax.errors import UserError
from ladd_jax.parallel.mesh import batch_divisor, batch_rows, batch_sharding

Plan = tuple[Bucket, np.ndarray]

NoiseKeys = Callable[[Bucket, np.ndarray], np.ndarray]
"""`(bucket, places [n]) -> uint32 [n, 2]`."""


def noise_keys_shape(batch_size: int) -> jax.ShapeDtypeStruct:
    """Shape and dtype of `noise_keys` in a batch."""
    return jax.ShapeDtypeStruct((batch_size, 2), np.uint32)


class BatchPlan:
    """Which records make the global batch of a step: `plan[step] -> (bucket, int64 [batch])`.

    In each epoch the records of a bucket are shuffled and cut into batches, the rest is left out,
    and the list of all batches is shuffled. All records of a batch come from one bucket.
    """

    def __init__(self, sizes: Mapping[Bucket, int], batch_size: int, seed: int):
        """Plans batches.

        Args:
          sizes: records in each bucket.
          batch_size: number of records in the global batch.
          seed: seed of all shuffles.

        Raises:
          UserError: a bucket holds less than one batch.
        """
        for bucket, size in sizes.items():
            if size < batch_size:
                raise UserError(
                    f"bucket {bucket.name} holds {size} records, fewer than one batch of "
                    f"{batch_size}: lower batch_size or write more records"
                )
        self._sizes = dict(sorted(sizes.items()))
        self._batch_size = batch_size
        self._seed = seed
        self.steps_per_epoch = sum(size // batch_size for size in self._sizes.values())
        # Hosts read steps in order, so one epoch back covers what prefetching reorders.
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> list[Plan]:
        batches: list[Plan] = []
        for bucket, size in self._sizes.items():
            rng = np.random.default_rng((self._seed, epoch, bucket.height, bucket.width))
            order = rng.permutation(size)[: size - size % self._batch_size]
            batches += [(bucket, part) for part in order.reshape(-1, self._batch_size)]
        order = np.random.default_rng((self._seed, epoch)).permutation(len(batches))
        return [batches[i] for i in order]

    def __getitem__(self, step: int) -> Plan:
        epoch, index = divmod(int(step), self.steps_per_epoch)
        return self._epoch(epoch)[index]


def loader(
    shards: Shards,
    plan: BatchPlan,
    start: int,
    stop: int,
    *,
    rows: np.ndarray | None = None,
    noise_keys: NoiseKeys | None = None,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[tuple[Bucket, dict[str, Any]]]:
    """This process's batches of steps `start` to `stop`, read ahead by threads.

    Args:
      shards: shards to read from.
      plan: plan of the global batches.
      start: the first step.
      stop: the step after the last.
      rows: rows of each global batch to read, see `batch_rows`; default: all.
      noise_keys: function that gives the keys of the noise that records were made from, for
        objectives that need them.
      threads: number of threads that read.
      prefetch: number of batches to hold ready.

    Yields:
      The bucket, and `latents [b, H, W, C]` and `cond`, arrays `[b, ...]` by name, where b is the
      number of rows. Arrays are float32, or in the form in which they are stored, which `widened`
      turns into float32 on the devices. With the argument `noise_keys`, the batch also has
      `noise_keys`, uint32 `[b, 2]`.
    """

    def load(step: int) -> tuple[Bucket, dict[str, Any]]:
        bucket, indices = plan[step]
        batch = shards.read_stored(bucket, indices if rows is None else indices[rows])
        places = batch.pop("places")
        keys = {} if noise_keys is None else {"noise_keys": noise_keys(bucket, places)}
        return bucket, batch | keys

    steps = grain.MapDataset.range(start, stop).map(load)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(steps.to_iter_dataset(options))


def put(batch: Any, mesh: Mesh) -> Any:
    """Global arrays from each process's rows, the batch axis over `data` and `fsdp`."""
    sharding, divisor = batch_sharding(mesh), batch_divisor(mesh)
    # For a batch with one row in each part, the number of this process's rows is that of its parts.
    held = len(batch_rows(mesh, divisor))

    def place(array: np.ndarray) -> jax.Array:
        size = len(array) * divisor // held
        rows, shape = batch_rows(mesh, size), (size, *array.shape[1:])
        parts = []
        places = sharding.devices_indices_map(shape)
        for device in mesh.local_devices:
            start, stop, _ = places[device][0].indices(size)
            first = np.searchsorted(rows, start)
            # An explicit transfer: the loop's guard makes implicit ones an error.
            parts.append(jax.device_put(array[first : first + stop - start], device))
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return jax.tree.map(place, batch)


def widened(batch: Any, mesh: Mesh) -> Any:
    """A batch on the mesh, with all arrays turned into float32 there: less goes to the devices.

    Arrays that are float32 already stay as they are.
    """
    leaves = jax.tree.leaves(batch, is_leaf=_is_stored)
    return _widen(mesh)(batch) if any(map(_is_stored, leaves)) else batch


@functools.lru_cache
def _widen(mesh: Mesh) -> Any:
    def widen(batch: Any) -> Any:
        return jax.tree.map(
            lambda array: array.widen(jnp) if _is_stored(array) else array, batch,
            is_leaf=_is_stored,
        )  # fmt: skip

    return jax.jit(widen, out_shardings=batch_sharding(mesh))


def _is_stored(array: Any) -> bool:
    return isinstance(array, Stored)
