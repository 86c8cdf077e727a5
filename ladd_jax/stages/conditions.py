"""The conditions that a network reads besides the text, and their arrays from a user's values."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.conditions import CONDITIONS, Condition, Wanted
from ladd_jax.data.joined import PICTURED
from ladd_jax.errors import UserError
from ladd_jax.models.base import CHANNELS, GUIDANCE
from ladd_jax.models.families import Family
from ladd_jax.names import listed
from ladd_jax.paths import expand
from ladd_jax.stages.latents import Pictures
from ladd_jax.stages.starts import name_of, told
from ladd_jax.stages.trained import TrainedModel

_MISSING = (
    "nothing that is installed says how a value becomes such: install the package that does, or "
    "give the table ladd_jax.data.conditions.CONDITIONS an entry"
)


FLAG = "--condition"
"""The flag by which a user gives values, as `NAME=VALUE`."""

Values = tuple[tuple[str, str], ...]
"""The names and values that are given for a prompt."""


class Reader(Protocol):
    """A network as far as its conditions depend on it, such as a `TrainedModel`."""

    @property
    def place(self) -> str:
        """What messages call it."""

    @property
    def family(self) -> Family:
        """Its family."""

    @property
    def architecture(self) -> Any:
        """Its architecture."""

    @property
    def joined(self) -> str:
        """What is joined to x_t, as `data.joined` names it; empty for none."""

    @property
    def pictures(self) -> Pictures:
        """Converts between its latents and pictures."""


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


def conditions_of(reader: Reader, bucket: Bucket) -> dict[str, Asked]:
    """The conditions in the table that a network reads, by name.

    Args:
      reader: the network.
      bucket: shape of the latents.

    Raises:
      UserError: the table has no entry for what is joined to x_t.
    """
    found = {}
    for array, shape in _shapes(reader, bucket).items():
        name = array
        if array == CHANNELS:
            if reader.joined in PICTURED:
                continue
            name = reader.joined or CHANNELS
            if name not in CONDITIONS:
                raise UserError(
                    f"{reader.place} is given {name!r}, {shape[-1]} channels beside those of x_t, "
                    f"and {_MISSING} {name!r}"
                )
        if name in CONDITIONS:
            wanted = Wanted(
                shape,
                encode=lambda picture: reader.pictures.encode(picture, bucket),
                fit=lambda picture: reader.pictures.fit(picture, bucket),
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


def parse(given: Sequence[str], by: str = FLAG) -> list[Values]:
    """Parses values that a user gives.

    Args:
      given: a `NAME=VALUE` for each value. A name may be repeated, for one prompt after another;
        the value of a name that appears once goes with all of them.
      by: the flag or field that they are given by.

    Returns:
      The names and values for each prompt; a single empty tuple if nothing is given.

    Raises:
      UserError: a text has no name or no `=`, or two names have different numbers of values, both
        above one.
    """
    values: dict[str, list[str]] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise UserError(f"{by}={each} is not a name with a value: use NAME=VALUE")
        values.setdefault(name, []).append(value)
    counts = {name: len(found) for name, found in values.items() if len(found) > 1}
    if len(set(counts.values())) > 1:
        several = listed([f"{count} values of {name}" for name, count in counts.items()])
        raise UserError(f"{by} gives {several}: give one of either, or equally many")
    count = max(counts.values(), default=1)
    return [
        tuple((name, found[i % len(found)]) for name, found in values.items()) for i in range(count)
    ]


def check_known(
    given: Sequence[Mapping[str, str]], known: Collection[str], whose: str, by: str = FLAG
) -> None:
    """Raises UserError if a value is given for a condition that is not known.

    Args:
      given: values for each prompt, by the names of conditions.
      known: the conditions that are read.
      whose: what reads them, for the message.
      by: the flag or field that they are given by.
    """
    for name, value in (pair for values in given for pair in values.items()):
        if name not in known:
            remedy = f"name {' or '.join(known)}" if known else "leave it out"
            raise UserError(f"{by}={name}={value} names no condition that {whose} reads: {remedy}")


def in_words(given: Sequence[Values]) -> list[str]:
    """What people who see the pictures of several prompts are told of their conditions.

    Files are called by their names, or by their paths where two have the same name.
    """

    def short(name: str, value: str) -> str:
        return expand(value).name if CONDITIONS[name].file else value

    pairs = {pair for values in given for pair in values}
    counts = Counter((name, short(name, value)) for name, value in pairs)

    def of(name: str, value: str) -> str:
        shown = short(name, value)
        return f"{CONDITIONS[name].words}: {value if counts[name, shown] > 1 else shown}"

    return [", ".join(of(*pair) for pair in values) for values in given]


class Conditions:
    """The arrays that a network reads besides each of several prompts.

    All values are read when it is made, so that a mistake in the last one is reported first.
    """

    def __init__(
        self, reader: Reader, bucket: Bucket, given: Sequence[Mapping[str, str]], by: str = FLAG
    ):
        """Reads the values.

        Args:
          reader: the network.
          bucket: shape of the latents.
          given: values for each prompt, by the names of conditions; missing ones have their
            defaults.
          by: the flag or field that they are given by.

        Raises:
          NotFoundError: a file is missing.
          UserError: the network has no such condition, or a value is missing or cannot be used.
        """
        self._asked = conditions_of(reader, bucket)
        self._values = _completed(reader, self._asked, given, by)
        self._arrays = {
            (name, value): _read(self._asked[name], name, value, by)
            for name, value in _different(self._values)
        }

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


def check_values(
    reader: Reader, bucket: Bucket, given: Sequence[Mapping[str, str]], by: str = FLAG
) -> None:
    """Raises what `Conditions` raises of these arguments, but only looks whether files are there.

    No autoencoder is needed.
    """
    asked = conditions_of(reader, bucket)
    for name, value in _different(_completed(reader, asked, given, by)):
        if asked[name].condition.file:
            told(expand(value), len)
        else:
            _read(asked[name], name, value, by)


def _completed(
    reader: Reader, asked: Mapping[str, Asked], given: Sequence[Mapping[str, str]], by: str
) -> list[dict[str, str]]:
    """The value of each condition for each prompt, with defaults for those that are not given."""
    check_known(given, asked, reader.place, by)

    def value_of(name: str, values: Mapping[str, str]) -> str:
        condition = asked[name].condition
        value = values.get(name, condition.default)
        if value is None:
            raise UserError(
                f"{reader.place} reads the condition {name!r} ({condition.words}): give it by "
                f"{by}={name}={'FILE' if condition.file else 'VALUE'}"
            )
        return value

    return [{name: value_of(name, values) for name in asked} for values in given]


def _different(values: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], None]:
    """The names and values of all prompts, each pair once."""
    return dict.fromkeys(pair for own in values for pair in own.items())


def _read(asked: Asked, name: str, value: str, by: str) -> np.ndarray:
    if asked.condition.file:
        return told(expand(value), asked.of)
    try:
        return asked.of(value)
    except UserError as error:
        raise UserError(f"{by}={name}={value}: {error}") from error


def _shapes(reader: Reader, bucket: Bucket) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that a network reads, by name; text is counted as one token long."""
    return reader.family.cond_shapes(reader.architecture, bucket.height, bucket.width, 1)
