"""What a source does with buckets that hold fewer records than a batch."""

from collections.abc import Mapping
from logging import getLogger
from typing import Any

import jax

from ladd_jax.data.buckets import Bucket, settle_small
from ladd_jax.data.joined import pretrains
from ladd_jax.errors import UserError

_LOG = getLogger(__name__)


def fill_buckets(
    config: Any,
    sizes: Mapping[Bucket, int],
    held_out: Mapping[Bucket, int] | None = None,
    least_held_out: int = 0,
    *,
    tell: bool = True,
) -> dict[Bucket, Bucket | None]:
    """Where the records of each bucket go, as `data.small_buckets` says; logs how many there are.

    Each batch of a training comes from one bucket, so a bucket that cannot fill one would stop the
    training after hours.

    Args:
      config: the run's config.
      sizes: number of records for training in each bucket.
      held_out: number of records for judges in each bucket.
      least_held_out: number of records that judges need from each bucket; training may give some
        of its records up for that.
      tell: whether to log.

    Raises:
      UserError: no bucket fills a batch and has enough for judges.
    """
    least, field = smallest_bucket(config)
    small = config.data.small_buckets
    homes = settle_small(sizes, least, small, held_out, least_held_out)
    total = sum(sizes.values())
    if not any(homes.values()):
        largest = max(sizes.values(), default=0)
        message = f"the data hold {total} records for training, {largest} in the largest bucket"
        if any(settle_small(sizes, least, small).values()):
            raise UserError(
                f"{message}, and judges need {least_held_out} of each bucket beside one batch of "
                f"{field} {least}: add records, lower it, or set data.held_out to 0, which leaves "
                f"none for the stage 'evaluate'"
            )
        raise UserError(
            f"{message}, fewer than one batch of {field} {least}: lower it or add records"
        )
    needed = f"{field} {least}"
    if least_held_out:
        needed += f" and {least_held_out} held out"
    if tell and jax.process_index() == 0:
        for bucket in sorted(sizes):
            home, apart = homes[bucket], (held_out or {}).get(bucket, 0)
            where = "left out" if home is None else f"put into {home.name}"
            _LOG.info(
                "bucket %s: %d records%s%s",
                bucket.name,
                sizes[bucket],
                f", and {apart} held out" if apart else "",
                "" if home == bucket else f"; fewer than {needed}: {where}",
            )
    return homes


def smallest_bucket(config: Any) -> tuple[int, str]:
    """The largest batch that is filled with records of the source, and the field that sets it."""
    batches = {1: "one record"}
    for name in readers(config):
        batches[getattr(config, name).batch_size] = f"{name}.batch_size"
    least = max(batches)
    return least, batches[least]


def readers(config: Any) -> list[str]:
    """The trainings that read the source's records, in whatever command they run.

    Trainings of the student do not if `synthesize.samples` sets their number of samples.
    """
    found = ["pretrain"] * pretrains(config)
    found += ["prefer"] * bool(config.prefer.steps)
    if config.distil.data == "encoded" or not config.synthesize.samples:
        found += ["finetune"] * bool(config.finetune.steps) + ["distil"]
    return found
