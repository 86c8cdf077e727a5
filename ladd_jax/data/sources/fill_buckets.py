"""What a source does with buckets that hold less than a batch."""

from collections.abc import Mapping
from logging import getLogger
from typing import Any

import jax

from ladd_jax.data.buckets import Bucket, settle_small
from ladd_jax.errors import UserError

_LOG = getLogger(__name__)


def fill_buckets(
    config: Any, sizes: Mapping[Bucket, int], held_out: Mapping[Bucket, int] | None = None
) -> dict[Bucket, Bucket | None]:
    """Where the records of each bucket go, as `data.small_buckets` says; tells how many there are.

    A training reads batches of one bucket, so a bucket that cannot fill one would stop it after
    hours.

    Args:
      config: the run's config.
      sizes: records of each bucket, for training.
      held_out: records of each bucket, for judges.

    Raises:
      UserError: no bucket fills a batch.
    """
    least, field = _least(config)
    homes = settle_small(sizes, least, config.data.small_buckets)
    total = sum(sizes.values())
    if not any(homes.values()):
        largest = max(sizes.values(), default=0)
        raise UserError(
            f"the data hold {total} records for training, {largest} in the largest bucket, fewer "
            f"than one batch of {field} {least}: lower it or add records"
        )
    if jax.process_index() == 0:
        for bucket in sorted(sizes):
            home, apart = homes[bucket], (held_out or {}).get(bucket, 0)
            where = "left out" if home is None else f"put into {home.name}"
            _LOG.info(
                "bucket %s: %d records%s%s",
                bucket.name,
                sizes[bucket],
                f", and {apart} held out" if apart else "",
                "" if home == bucket else f"; fewer than {field} {least}: {where}",
            )
    return homes


def _least(config: Any) -> tuple[int, str]:
    """The largest batch that is filled with records of the source, and the field that says so."""
    batches = {1: "one record"}
    if not config.weights:
        batches[config.pretrain.batch_size] = "pretrain.batch_size"
    # A number of samples of its own is checked before a run starts.
    if config.distil.data == "encoded" or not config.synthesize.samples:
        batches[config.distil.batch_size] = "distil.batch_size"
    least = max(batches)
    return least, batches[least]
