"""Sources of data: what `encode` writes as shards, and the table of all sources.

A source is a module with `open_source(config, buckets, workdir) -> Source`, and a line in
`SOURCES`, which says what it needs from a config. Three more functions are optional:

- `look(config, buckets) -> Source`, for a source that opens fast and writes nothing: its data are
  then looked at before a run writes anything.
- `count(config) -> int`, for a source that knows its number of records without a look at each.
- `most(config) -> int`, for a source that knows how many records it would have if all could be
  read.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError
from ladd_jax.ranges import check_choice

if TYPE_CHECKING:
    # The config names the sources; what writes shards takes a second to import.
    from ladd_jax.data.array_specs import ArraySpec


@dataclasses.dataclass(frozen=True)
class Kind:
    """A source of the table, and what it needs from a config.

    Attributes:
      module: name of the source's module.
      path: whether its data are those that `data.path` names.
      drawn: whether it draws `data.examples` records of each bucket, whose pictures are latents.
      channels: number of channels of its latents, if it is fixed; 0: any.
      encoded: whether its latents are made from pictures, by the autoencoder if one is named.
      prompts_alone: whether a record is a prompt, without latents.
      chooses_buckets: whether it chooses buckets for its records, of `data.resolution` squared
        pixels, where the config names none; see `buckets_for`.
    """

    module: str
    path: bool = False
    drawn: bool = False
    channels: int = 0
    encoded: bool = False
    prompts_alone: bool = False
    chooses_buckets: bool = False


SOURCES = {
    "digits": Kind("ladd_jax.data.sources.digits", drawn=True, channels=1),
    "images": Kind("ladd_jax.data.sources.images", path=True, encoded=True, chooses_buckets=True),
    "prompts": Kind("ladd_jax.data.sources.prompts", path=True, prompts_alone=True),
    "scene_edits": Kind("ladd_jax.data.sources.scene_edits", drawn=True, channels=3),
    "scenes": Kind("ladd_jax.data.sources.scenes", drawn=True, channels=3),
}
"""The sources, by the value of `data.source`."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Raw data in a fixed order.

    Attributes:
      prompts: prompts of each bucket that has records.
      arrays: arrays of a record besides its text: `latents`, if there are any, and parts of its
        cond.
      read: `read(bucket, start, stop)` returns these arrays `[stop - start, ...]` of the records
        `start` to `stop`, by name.
      marks: a short text for each record of a bucket that stands for what went into it besides its
        prompt, such as the bytes of a picture; empty if the config and the prompt say it all.
      where: `where(bucket, index)` returns the place of a record in the data, and a name that says
        where it is; None if the data are not the user's.
      held_out: records for judges, which no training reads, with the same arrays. None of them is
        in this source. None: there are none.
      null: arrays, by name, that replace those of `arrays` under guidance, and in training where
        the text is dropped; float32 of the same shape. An array that is not named is kept there.

    Raises:
      UserError: an array of `null` is not one of `arrays`, or has another shape.
    """

    prompts: Mapping[Bucket, Sequence[str]]
    arrays: Mapping[str, "ArraySpec"] = dataclasses.field(default_factory=dict)
    read: Callable[[Bucket, int, int], dict[str, np.ndarray]] = lambda bucket, start, stop: {}
    marks: Mapping[Bucket, Sequence[str]] = dataclasses.field(default_factory=dict)
    where: Callable[[Bucket, int], tuple[int, str]] | None = None
    held_out: "Source | None" = None
    null: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in self.null.items():
            if name not in self.arrays:
                raise UserError(
                    f"null has {name!r} and the arrays of the data are {', '.join(self.arrays)}: "
                    f"name one of these"
                )
            if array.shape != self.arrays[name].shape:
                raise UserError(
                    f"null has {name!r} of shape {array.shape} and records have it of shape "
                    f"{self.arrays[name].shape}: give one array of that shape, without H and W"
                )

    def texts(self, bucket: Bucket) -> Iterator[str]:
        """A text for each record of a bucket, in order, that stands for what went into it."""
        marks = self.marks.get(bucket)
        if marks is None:
            return iter(self.prompts[bucket])
        return (f"{m} {prompt}" for m, prompt in zip(marks, self.prompts[bucket], strict=True))


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """The data of a config's `data.source`, the same and in the same order on every process.

    Args:
      config: the run's config.
      buckets: shapes of the latents; empty if the source is to choose them.
      workdir: the run's folder, for lists of what could not be read.

    Raises:
      NotFoundError: the data are not there.
      UserError: there is no such source, or the data are damaged.
    """
    return _module(config).open_source(config, buckets, workdir)


def look(config: Any, buckets: Sequence[Bucket]) -> Source | None:
    """As `open_source`, for a source that has `look`; None for others.

    Raises:
      NotFoundError: the data are not there.
      UserError: there is no such source, or the data are damaged.
    """
    return _module(config).look(config, buckets) if is_looked_at(config) else None


def count(config: Any) -> int:
    """How many records for training a config's data have; 0 if only a look at each would tell.

    Raises:
      NotFoundError: the data are not there.
      UserError: there is no such source, or the data are damaged.
    """
    module = _module(config)
    return int(module.count(config)) if hasattr(module, "count") else 0


def most(config: Any) -> int:
    """How many records for training a config's data have at most; 0 if only a look at each, or a
    download, would tell.

    Raises:
      NotFoundError: the data are not there.
      UserError: there is no such source, or the data are damaged.
    """
    module = _module(config)
    return int(module.most(config)) if hasattr(module, "most") else count(config)


def is_looked_at(config: Any) -> bool:
    """Whether a config's source has `look`."""
    return hasattr(_module(config), "look")


def _module(config: Any) -> Any:
    name = config.data.source
    check_choice(name, "data.source", *SOURCES)
    return importlib.import_module(SOURCES[name].module)
