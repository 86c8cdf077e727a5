"""The conditions that a network reads besides the text, and their arrays from a user's values."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.conditions import CONDITIONS, Condition, Wanted
from ladd_jax.errors import UserError
from ladd_jax.models.base import CHANNELS, GUIDANCE
from ladd_jax.names import listed
from ladd_jax.paths import expand
from ladd_jax.stages.starts import name_of, told
from ladd_jax.stages.trained import TrainedModel

_MISSING = (
    "nothing that is installed says how a value becomes such: install the package that does, or "
    "give the table ladd_jax.data.conditions.CONDITIONS an entry"
)


class Asked(NamedTuple):
    """A condition that a network reads.

    Attributes:
      array: name of the condition's array in a cond.
      condition: how the array is made.
      wanted: what the array must be.
    """

    array: str
    condition: Condition
    wanted: Wanted

    def of(self, value: str | bytes) -> np.ndarray:
        """The array of a value, float32.

        Raises:
          UserError: the value cannot be used, or gives an array of another shape.
        """
        made = np.asarray(self.condition.read(value, self.wanted), np.float32)
        if made.shape != self.wanted.shape:
            raise UserError(
                f"the {self.condition.words} became an array of shape {made.shape} and the network "
                f"reads {self.wanted.shape}: correct `read` of its condition"
            )
        return made


def conditions_of(trained: TrainedModel, bucket: Bucket) -> dict[str, Asked]:
    """The conditions in the table that a network reads, by name.

    Args:
      trained: the network.
      bucket: shape of the latents.

    Raises:
      UserError: the table has no entry for what is joined to x_t.
    """
    pictures = trained.pictures
    found = {}
    for array, shape in _shapes(trained, bucket).items():
        name = array
        if array == CHANNELS:
            if trained.reads_picture:
                continue
            name = trained.joined or CHANNELS
            if name not in CONDITIONS:
                raise UserError(
                    f"{trained.place} is given {name!r}, {shape[-1]} channels beside those of x_t, "
                    f"and {_MISSING} {name!r}"
                )
        if name in CONDITIONS:
            wanted = Wanted(
                shape,
                encode=lambda picture: pictures.encode(picture, bucket),
                fit=lambda picture: pictures.fit(picture, bucket),
            )
            found[name] = Asked(array, CONDITIONS[name], wanted)
    return found


def check_text(trained: TrainedModel, text: Collection[str]) -> None:
    """Raises UserError if a network reads an array that neither the text nor a condition gives.

    Args:
      trained: the network.
      text: names of the arrays that the text encoder gives.
    """
    bucket = trained.buckets[0]
    conditions = {asked.array for asked in conditions_of(trained, bucket).values()}
    missing = _shapes(trained, bucket).keys() - {*text, *conditions, CHANNELS, GUIDANCE}
    if missing:
        names = listed(sorted(missing))
        raise UserError(f"{trained.place} is given {names} besides text, and {_MISSING} {names}")


def check_defaults(trained: TrainedModel, bucket: Bucket, flag: str) -> None:
    """Raises UserError if a network needs more than prompts, which is all that a flag gives."""
    for name, asked in conditions_of(trained, bucket).items():
        if asked.condition.default is None:
            raise UserError(
                f"{trained.place} reads the condition {name!r} ({asked.condition.words}), which "
                f"has no default, and {flag} gives none: leave the model out"
            )


def null_of(trained: TrainedModel) -> dict[str, np.ndarray]:
    """The arrays that stand for absent conditions when a data generator is guided, by name.

    Empty for a student, which is not guided.

    Raises:
      NotFoundError: the run's data, which hold these arrays, are missing.
      UserError: the data are damaged, or belong to another run.
    """
    if trained.times or not (asked := conditions_of(trained, trained.buckets[0])):
        return {}
    names = {each.array for each in asked.values()}
    return {name: array for name, array in trained.null().items() if name in names}


def parse(given: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    """Parses the values of the flag `--condition`.

    Args:
      given: a `NAME=VALUE` for each value. A name may be repeated, for one prompt after another;
        the value of a name that appears once goes with all of them.

    Returns:
      One tuple of names and values for each prompt; a single empty one if nothing is given.

    Raises:
      UserError: a text has no name or no `=`, or two names have different numbers of values, both
        above one.
    """
    values: dict[str, list[str]] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise UserError(f"--condition={each} is not a name with a value: use NAME=VALUE")
        values.setdefault(name, []).append(value)
    counts = {name: len(found) for name, found in values.items() if len(found) > 1}
    if len(set(counts.values())) > 1:
        several = listed([f"{count} values of {name}" for name, count in counts.items()])
        raise UserError(f"--condition gives {several}: give one of either, or equally many")
    count = max(counts.values(), default=1)
    return [
        tuple((name, found[i % len(found)]) for name, found in values.items()) for i in range(count)
    ]


class Conditions:
    """The arrays that a network reads besides each of several prompts.

    All values are read when it is made, so that a mistake in the last one is reported first.
    """

    def __init__(self, trained: TrainedModel, bucket: Bucket, given: Sequence[Mapping[str, str]]):
        """Reads the values.

        Args:
          trained: the network.
          bucket: shape of the latents.
          given: values for each prompt, by the names of conditions; missing ones have their
            defaults.

        Raises:
          NotFoundError: a file is missing.
          UserError: the network has no such condition, or a value is missing or cannot be used.
        """
        self._asked = conditions_of(trained, bucket)
        for name, value in (pair for values in given for pair in values.items()):
            if name not in self._asked:
                remedy = f"name {' or '.join(self._asked)}" if self._asked else "leave it out"
                raise UserError(
                    f"--condition={name}={value} names no condition that {trained.place} reads: "
                    f"{remedy}"
                )
        self._values = [
            {name: self._value(trained, name, values) for name in self._asked} for values in given
        ]
        pairs = dict.fromkeys(pair for values in self._values for pair in values.items())
        self._arrays = {(name, value): self._read(name, value) for name, value in pairs}

    def arrays(self, prompts: Sequence[int]) -> dict[str, np.ndarray]:
        """Arrays float32 `[n, ...]` for the prompts at these places, by their names in a cond."""
        return {
            asked.array: np.stack([self._arrays[name, self._values[p][name]] for p in prompts])
            for name, asked in self._asked.items()
        }

    def facts(self, prompt: int) -> dict[str, str]:
        """What the metadata of a prompt's pictures say of its conditions."""
        return {
            f"condition {name}": name_of(expand(value))
            if self._asked[name].condition.file
            else value
            for name, value in self._values[prompt].items()
        }

    def _value(self, trained: TrainedModel, name: str, values: Mapping[str, str]) -> str:
        condition = self._asked[name].condition
        value = values.get(name, condition.default)
        if value is None:
            raise UserError(
                f"{trained.place} reads the condition {name!r} ({condition.words}): give it by "
                f"--condition={name}={'FILE' if condition.file else 'VALUE'}"
            )
        return value

    def _read(self, name: str, value: str) -> np.ndarray:
        asked = self._asked[name]
        if asked.condition.file:
            return told(expand(value), asked.of)
        try:
            return asked.of(value)
        except UserError as error:
            raise UserError(f"--condition={name}={value}: {error}") from error


def _shapes(trained: TrainedModel, bucket: Bucket) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that a network reads, by name; text is counted as one token long."""
    return trained.family.cond_shapes(trained.architecture, bucket.height, bucket.width, 1)
