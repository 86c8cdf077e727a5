"""Sources of data: what `encode` writes as shards, and the table of those there are.

A source is a module here with `open_source(config, buckets, workdir) -> Source`, and a line in
`SOURCES`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError

if TYPE_CHECKING:
    # The config names the sources; what writes shards takes a second to import.
    from ladd_jax.data.shards import ArraySpec

SOURCES = {
    "digits": "ladd_jax.data.sources.digits",
    "images": "ladd_jax.data.sources.images",
    "prompts": "ladd_jax.data.sources.prompts",
    "scenes": "ladd_jax.data.sources.scenes",
}
"""Modules of the sources, by the names that `data.source` has."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Raw data in a fixed order.

    Attributes:
      prompts: prompts of each bucket that has records.
      arrays: arrays of a record besides its text: `latents`, if there are any, and parts of its
        cond.
      read: `read(bucket, start, stop)`: those arrays `[stop - start, ...]` of these records, by
        name.
      held_out: records for judges, with the same arrays, none of which is in this source; None
        where there are none. No training reads them.
    """

    prompts: Mapping[Bucket, Sequence[str]]
    arrays: Mapping[str, "ArraySpec"] = dataclasses.field(default_factory=dict)
    read: Callable[[Bucket, int, int], dict[str, np.ndarray]] = lambda bucket, start, stop: {}
    held_out: "Source | None" = None


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """The data of a config's `data.source`, the same and in the same order on every process.

    Args:
      config: the run's config.
      buckets: shapes that the latents come in.
      workdir: the run's folder, for lists of what could not be read.

    Raises:
      NotFoundError: the data are not there.
      UserError: there is no such source, or the data are damaged.
    """
    name = config.data.source
    if name not in SOURCES:
        raise UserError(f"data.source {name!r} is none of {', '.join(SOURCES)}: use one of them")
    return importlib.import_module(SOURCES[name]).open_source(config, buckets, workdir)
