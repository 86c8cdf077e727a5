"""Sources of data: what `encode` writes as shards, and the table of those there are.

A source is a module with `open_source(config, buckets, workdir) -> Source`, and a line in
`SOURCES`, which says what it asks of a config. One that is opened at once and writes nothing has
`look(config, buckets) -> Source` too, by which its data are looked at before a run writes anything.
One that knows the number of its records without a look at each has `count(config) -> int`, and one
that knows only how many it would have if all could be read `most(config) -> int`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError

if TYPE_CHECKING:
    # The config names the sources; what writes shards takes a second to import.
    from ladd_jax.data.array_specs import ArraySpec


@dataclasses.dataclass(frozen=True)
class Kind:
    """A source of the table, and what it asks of a config.

    Attributes:
      module: its module.
      path: whether its data are those that `data.path` names.
      drawn: whether it draws `data.examples` records of each bucket, whose pictures are latents.
      channels: of its latents, where they are always as many; 0: any.
      encoded: whether its latents are those of pictures, by the autoencoder where one is named.
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
"""By the name that `data.source` has."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Raw data in a fixed order.

    Attributes:
      prompts: prompts of each bucket that has records.
      arrays: arrays of a record besides its text: `latents`, if there are any, and parts of its
        cond.
      read: `read(bucket, start, stop)`: those arrays `[stop - start, ...]` of these records, by
        name.
      marks: what went into each record of a bucket besides its prompt, such as the bytes of a
        picture, as a short text; none where the config and the prompt say it all.
      where: `where(bucket, index)`: place of a record in the data, and a name that says where it
        is; None where the data are not the user's.
      held_out: records for judges, with the same arrays, none of which is in this source; None
        where there are none. No training reads them.
      null: what stands for none of an array of `arrays` under guidance, and in training where the
        text is dropped, float32 of its shape, by name; one that is not named is kept there.

    Raises:
      UserError: an array of `null` is none of `arrays`, or has another shape.
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
        """What went into each record of a bucket, in order."""
        marks = self.marks.get(bucket)
        if marks is None:
            return iter(self.prompts[bucket])
        return (f"{m} {prompt}" for m, prompt in zip(marks, self.prompts[bucket], strict=True))


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """The data of a config's `data.source`, the same and in the same order on every process.

    Args:
      config: the run's config.
      buckets: shapes that the latents come in; none where the source is to choose them.
      workdir: the run's folder, for lists of what could not be read.

    Raises:
      NotFoundError: the data are not there.
      UserError: there is no such source, or the data are damaged.
    """
    return _module(config).open_source(config, buckets, workdir)


def look(config: Any, buckets: Sequence[Bucket]) -> Source | None:
    """As `open_source`, for a source that is opened at once; None for others.

    Raises:
      NotFoundError: the data are not there.
      UserError: there is no such source, or the data are damaged.
    """
    return _module(config).look(config, buckets) if is_looked_at(config) else None


def count(config: Any) -> int:
    """How many records the data of a config have, for training; 0 where that takes a look at each.

    Raises:
      NotFoundError: the data are not there.
      UserError: there is no such source, or the data are damaged.
    """
    module = _module(config)
    return int(module.count(config)) if hasattr(module, "count") else 0


def most(config: Any) -> int:
    """How many records the data of a config have at most, for training; 0 where that takes a look
    at each, or a download.

    Raises:
      NotFoundError: the data are not there.
      UserError: there is no such source, or the data are damaged.
    """
    module = _module(config)
    return int(module.most(config)) if hasattr(module, "most") else count(config)


def is_looked_at(config: Any) -> bool:
    """Whether `look` opens a config's source."""
    return hasattr(_module(config), "look")


def _module(config: Any) -> Any:
    name = config.data.source
    if name not in SOURCES:
        raise UserError(f"data.source {name!r} is none of {', '.join(SOURCES)}: use one of them")
    return importlib.import_module(SOURCES[name].module)
