"""The sets of shards of a run: where they are, and whether they belong to its config."""

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
    """The folder of the shards of real data."""
    return folder(workdir, "encoded")


def held_out(workdir: Path) -> Path:
    """The folder of held-out real data, with the arrays of `encoded` but none of its records."""
    return folder(workdir, "held_out")


def synthesized(workdir: Path) -> Path:
    """The folder of the shards of the data generator's samples."""
    return folder(workdir, "synthesized")


def shards_of(config: Config, workdir: Path, name: str, *, pairs: bool = False) -> Shards:
    """A set of shards of a run: its own, or one in shared data that was made with the same fields.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      name: `encoded`, `held_out` or `synthesized`.
      pairs: whether records include the picture they were compared with, if data have pairs.

    Raises:
      NotFoundError: the set is not complete.
      UserError: the set is damaged, or was made with other fields.
    """
    skips = config.data.on_corrupt == "skip"
    directory = folder(workdir, name)
    shards = Shards(directory, config.data.max_unreadable if skips else (0.0, 0))
    check_set(config, directory, name)
    if shards.text is not None:
        check_set(config, shards.text.directory, shards.text.directory.name)
    return shards if pairs else shards.without((OTHER, PREFERENCE))


def check_set(config: Config, directory: Path, name: str) -> None:
    """Checks that an existing set of shards was made with the same fields.

    Raises:
      UserError: it was not; the message names the first field that differs.
    """
    old = read_identity(directory)
    if not old:
        _LOG.warning("%s does not say what it was made from: it is used as it is", directory)
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
    """Why a set of shards does not belong to this run, records aside; empty if it does.

    Args:
      config: the run's config.
      directory: folder of the set.
      name: name of the set.
      old: identity of the existing set.
      inputs: digests of the inputs of the whole set; None: they are not compared.

    Returns:
      a sentence with the first difference and what the user can do.
    """
    found = difference(old, identity(to_dict(config), name, inputs))
    if not found:
        return ""
    return (
        f"{directory} is another set than this run's ({found}): set it back, use another "
        f"--workdir or --data, or let --on_change=redo make it again"
    )


def student_data(config: Config, workdir: Path) -> Shards:
    """The shards that the student learns from.

    Raises:
      UserError: they hold only prompts, are damaged, or were made with other fields.
    """
    shards = shards_of(config, workdir, config.distil.data)
    if not shards.has_latents:
        raise UserError(
            f"{shards.directory} holds prompts without latents: use distil.data=synthesized, or "
            f"encode images"
        )
    return shards


def trained_buckets(config: Config, workdir: Path) -> tuple[Bucket, ...]:
    """The buckets that a run trains on: those of its config that have records, or all of the data.

    Raises:
      NotFoundError: the config names none, and the data that they are chosen for are not encoded
        yet.
    """
    named = tuple(Bucket.parse(name) for name in config.data.buckets)
    if named and not is_complete(encoded(workdir)):
        return named
    found = shards_of(config, workdir, "encoded").buckets
    return tuple(bucket for bucket in named if bucket in found) or found
