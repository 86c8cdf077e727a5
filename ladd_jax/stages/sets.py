"""The sets of shards of a run: where they are, and whether they are its own."""

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.identity import difference, identity
from ladd_jax.config.workdir import folder
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import is_complete, read_identity
from ladd_jax.data.shards import Shards
from ladd_jax.errors import UserError
from ladd_jax.models.base import OTHER, PREFERENCE

_LOG = getLogger(__name__)


def encoded(workdir: Path) -> Path:
    """Shards of real data."""
    return folder(workdir, "encoded")


def held_out(workdir: Path) -> Path:
    """Shards of real data for judges: the same arrays as in `encoded`, and none of its records."""
    return folder(workdir, "held_out")


def synthesized(workdir: Path) -> Path:
    """Shards of the data generator's samples."""
    return folder(workdir, "synthesized")


def shards_of(config: Config, workdir: Path, name: str, *, pairs: bool = False) -> Shards:
    """A set of shards of a run, which is the run's own or one made from the same fields.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      name: `encoded`, `held_out` or `synthesized`.
      pairs: whether records have what they were compared with, where the data have pairs.

    Raises:
      NotFoundError: it is not complete.
      UserError: it is damaged, or another set.
    """
    skips = config.data.on_corrupt == "skip"
    directory = folder(workdir, name)
    shards = Shards(directory, config.data.max_unreadable if skips else (0.0, 0))
    check_set(config, directory, name)
    if shards.text is not None:
        check_set(config, shards.text.directory, shards.text.directory.name)
    return shards if pairs else shards.without((OTHER, PREFERENCE))


def check_set(config: Config, directory: Path, name: str) -> None:
    """Whether a set of shards that is there was made from the same fields.

    Raises:
      UserError: it was not; the first field that differs is named.
    """
    old = read_identity(directory)
    if not old:
        _LOG.warning("%s does not say what it was made of: it is used as it is", directory)
        return
    reason = set_difference(config, directory, name, old)
    if reason:
        raise UserError(reason)


def set_difference(
    config: Config,
    directory: Path,
    name: str,
    old: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Why a set of shards is none of this run's, records aside; empty if it is.

    Args:
      config: the run's config.
      directory: folder of the set.
      name: the set.
      old: its identity.
      inputs: digests of what goes into all of it; default: they are not looked at.

    Returns:
      a sentence that names the first difference and what the user can do.
    """
    found = difference(old, identity(to_dict(config), name, inputs))
    if not found:
        return ""
    return (
        f"{directory} is another set than this run's ({found}): set it back, use another "
        f"--workdir or --data, or let --on_change=redo make it anew"
    )


def student_data(config: Config, workdir: Path) -> Shards:
    """The shards that the student learns from.

    Raises:
      UserError: they hold prompts alone, are damaged, or another set.
    """
    shards = shards_of(config, workdir, config.distil.data)
    if not shards.has_latents:
        raise UserError(
            f"{shards.directory} holds prompts without latents: use distil.data=synthesized, or "
            f"encode images"
        )
    return shards


def trained_buckets(config: Config, workdir: Path) -> tuple[Bucket, ...]:
    """The buckets that a run trains on: those of its config that have records, or all that it has.

    Raises:
      NotFoundError: the config names none, and the data, for which they are chosen, are not encoded
        yet.
    """
    named = tuple(Bucket.parse(name) for name in config.data.buckets)
    if named and not is_complete(encoded(workdir)):
        return named
    found = shards_of(config, workdir, "encoded").buckets
    return tuple(bucket for bucket in named if bucket in found) or found
