"""Metrics as rows: what they are held against, the limits, and their form on disk."""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.errors import DamagedError, NotFiniteError, UserError
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.ranges import is_number
from ladd_jax.whole_files import read_json, write_text_whole

MODELS = ("data", "generator", "teacher", "untrained", "student", "samples")
"""In the order of tables.

`data`: real pictures of the training split; `generator`: the data generator, sampled as for the
student's data; `teacher`: the same network over more steps; `untrained`: what the student starts
from, the same network or one of another size, sampled as the student is; `samples`: a folder of
pictures.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """Metrics of one model, sampled in one way, in one bucket.

    Attributes:
      model: one of `MODELS`.
      steps: evaluations of the network per sample; 0 for real pictures.
      guidance: scale of classifier-free guidance, or the one given to a student; 1 for none.
      bucket: rows x columns of the bucket, or `all`.
      values: values of the metrics, by the names in `METRICS`.
      intervals: ends of the values' 95% intervals, over the pictures of one run, or over the seeds
        of several.
      seeds: number of runs that the values are means over.
    """

    model: str
    steps: int
    guidance: float
    bucket: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    seeds: int = 1

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Row":
        """The inverse of `dataclasses.asdict`, whether or not the dict went through JSON.

        Raises:
          UserError: a field is missing, is unknown, or has another type.
        """
        other = sorted(data.keys() - _FIELDS.keys())
        if other:
            raise UserError(f"it has the field {other[0]!r}, which rows do not have")
        # A field with a default may be left out.
        default = {"intervals": {}, "seeds": 1}
        for name, is_right in _FIELDS.items():
            value = data.get(name, default.get(name))
            if not is_right(value):
                raise UserError(f"its {name} is {str(value)[:60]}")
        found = data.get("intervals", {})
        intervals = {name: (low, high) for name, (low, high) in found.items()}
        return cls(**(data | {"intervals": intervals}))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_values(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


def _are_intervals(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(ends, list | tuple) and len(ends) == 2 and all(map(is_number, ends))
        for ends in value.values()
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: value in MODELS,
    "steps": _is_count,
    "guidance": is_number,
    "bucket": lambda value: isinstance(value, str),
    "values": _are_values,
    "intervals": _are_intervals,
    "seeds": _is_count,
}
"""Checks of the fields of a row in JSON."""


def aggregate(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Means over runs of one seed each with the same rows, in order, with Student's t intervals.

    A row keeps the metrics that it has in every run. They can differ between seeds, since some
    metrics depend on which real pictures there are, for example two of one prompt.

    Raises:
      UserError: the runs have different rows, or one has a row twice.
    """
    groups: dict[tuple[Any, ...], list[Row]] = collections.defaultdict(list)
    for rows in runs:
        for row in rows:
            groups[row.model, row.steps, row.guidance, row.bucket].append(row)
    means = []
    for (model, steps, guidance, bucket), rows in groups.items():
        if len(rows) != len(runs):
            raise UserError(
                f"{len(runs)} runs have {len(rows)} rows for {model}, {steps} steps, guidance "
                f"{guidance:g}, {bucket}: give each run the same rows, once"
            )
        if len(rows) == 1:
            means += rows
            continue
        values, intervals = {}, {}
        for name in rows[0].values:
            if not all(name in row.values for row in rows):
                continue
            values[name], intervals[name] = mean_and_interval([row.values[name] for row in rows])
        means.append(Row(model, steps, guidance, bucket, values, intervals, len(rows)))
    return means


def mean_and_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean of two or more runs, and its 95% interval by Student's t distribution."""
    from scipy import stats  # It takes half a second to import.

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / np.sqrt(len(values))
    width = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, (mean - width, mean + width)


def check_finite(rows: Sequence[Row]) -> None:
    """Raises NotFiniteError if a number is not finite, since JSON cannot hold it."""
    broken = [
        f"{row.model} {row.steps} {row.bucket}"
        for row in rows
        if not np.all(np.isfinite([*row.values.values(), *chain(*row.intervals.values())]))
    ]
    if broken:
        raise NotFiniteError(f"metrics are not finite ({', '.join(broken)}): look at the samples")


def write_metrics(path: str | os.PathLike[str], rows: Sequence[Row], **extra: Any) -> None:
    """Writes `{"rows": [...], ...}` as JSON, complete or not at all.

    Args:
      path: path of the file.
      rows: rows, each written as a dict of its fields.
      **extra: further fields of the file.

    Raises:
      NotFiniteError: see `check_finite`.
    """
    check_finite(rows)
    data = {"rows": [dataclasses.asdict(row) for row in rows], **extra}
    write_text_whole(Path(path), json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_metrics(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows and the further fields that `write_metrics` wrote.

    Raises:
      DamagedError: the file is damaged, or does not hold rows.
    """
    remedy = "remove it to measure again"
    content = read_json(path, remedy)
    rows = content.pop("rows", None)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DamagedError(f"{path} is damaged (it has no rows): {remedy}")
    try:
        found = [Row.from_dict(row) for row in rows]
    except UserError as error:
        raise DamagedError(f"{path} is damaged (in a row, {error}): {remedy}") from error
    return found, content


def find(rows: Sequence[Row], model: str, bucket: str, steps: int | None = None) -> Row | None:
    """A model's row in a bucket with the given number of steps, by default the largest.

    If there are several with different guidance, it is the first, which has the run's own guidance.
    """
    found = [
        row
        for row in rows
        if (row.model, row.bucket) == (model, bucket) and steps in (None, row.steps)
    ]
    return max(found, key=lambda row: row.steps, default=None)


def beside(rows: Sequence[Row], row: Row, to: str, steps: int | None = None) -> Row | None:
    """The row of another model that a row is compared with, in its bucket.

    Args:
      rows: all rows.
      row: one of the rows.
      to: the other model.
      steps: number of steps of the other model; default: its largest, or for `untrained` the row's.
    """
    return find(rows, to, row.bucket, row.steps if to == "untrained" else steps)


def guidance_note(rows: Sequence[Row]) -> list[str]:
    """A sentence about the data generator's guidance that comes closest to real pictures.

    The list is empty if only one guidance was tried, or there are no real pictures.
    """
    tried = [
        row
        for row in rows
        if (row.model, row.bucket) == ("generator", "all") and "fd_real" in row.values
    ]
    if len(tried) < 2:
        return []
    best = min(tried, key=lambda row: row.values["fd_real"])
    scales = sorted(row.guidance for row in tried)
    return [
        f"Of guidance {', '.join(f'{scale:g}' for scale in scales)}, the data generator's samples "
        f"are closest to real pictures (FD real) at {best.guidance:g}; the run's own guidance is "
        f"{tried[0].guidance:g}."
    ]


def ratio(rows: Sequence[Row], row: Row, metric: str, to: str) -> float | None:
    """A metric of a row over another model's in its bucket.

    Args:
      rows: all rows.
      row: one of the rows.
      metric: one of `METRICS`.
      to: the other model, see `beside`.

    Returns:
      the ratio; None if a value is missing, or the other model's is 0.
    """
    other = beside(rows, row, to)
    if other is None or metric not in row.values or not other.values.get(metric):
        return None
    return row.values[metric] / other.values[metric]


@dataclasses.dataclass(frozen=True)
class Bar:
    """Limits for a metric of the student relative to another model's.

    Attributes:
      metric: one of `METRICS`.
      steps: number of the student's steps.
      to: the other model, see `beside`; with `to_steps` the student itself.
      low: lower limit of the ratio; None for none.
      high: upper limit of the ratio; None for none.
      difference: whether the limits are for the difference of the student's value and the other's
        instead of their ratio. This is meant for shares: values beyond 1 are scores, for which
        such a limit is not checked.
      to_steps: number of steps of the other model; default: see `beside`.
    """

    metric: str
    steps: int
    to: str
    low: float | None = None
    high: float | None = None
    difference: bool = False
    to_steps: int | None = None

    def met(self, value: float) -> bool:
        """Whether a value is within the limits."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def limits(self) -> str:
        """The limits in words."""
        unit = "" if self.difference else "x"
        if self.low is None:
            return f"at most {self.high:g}{unit}"
        if self.high is None:
            return f"at least {self.low:.3g}{unit}"
        return f"{self.low:g} to {self.high:g}{unit}"


BARS = (
    *(Bar("fd", steps, "untrained", high=0.12) for steps in (1, 2, 4)),
    Bar("fd", 1, "generator", high=5.0),
    Bar("fd", 4, "generator", high=3.0),
    # More steps must give better pictures.
    Bar("fd", 2, "student", high=1.0, to_steps=1),
    Bar("fd", 4, "student", high=1.0, to_steps=2),
    Bar("fd_real", 4, "teacher", high=1.1),
    Bar("alignment", 4, "teacher", low=-0.01, difference=True),
    Bar("diversity", 4, "generator", low=0.9, high=1.1),
    Bar("deviation", 4, "generator", low=0.97, high=1.03),
)
"""The limits for a student that makes pictures from text, in every bucket."""


def _beside_teacher(*errors: str) -> tuple[Bar, ...]:
    """Limits of errors and of alignment relative to the teacher's with the most steps."""
    return tuple(
        bar
        for steps, most in ((4, 1.1), (1, 1.3))
        for bar in (
            *(Bar(error, steps, "teacher", high=most) for error in errors),
            Bar("alignment", steps, "teacher", low=1 / most),
        )
    )


FILLING_BARS = _beside_teacher("masked_error", "masked_distance")
"""The limits for a student that fills holes. It is not compared with the untrained one, which can
fill many holes too."""

EDITING_BARS = _beside_teacher("edit_error")
"""The limits for a student that edits. Most of an edited picture stays as it was in any case, so
distances between distributions say little."""

OWN_METRICS = {"inpaint": ("masked_error", "masked_distance"), "edit": ("edit_error",)}
"""The metrics that only runs of a kind, by `data.joined`, have, and always measure. The first of
them in rows tells which limits apply."""


def bars_of(rows: Sequence[Row]) -> Sequence[Bar]:
    """The limits that apply to the kind of run that the rows are from."""
    found = {name for row in rows for name in row.values}
    bars = {"inpaint": FILLING_BARS, "edit": EDITING_BARS}
    return next((bars[kind] for kind, own in OWN_METRICS.items() if own[0] in found), BARS)


def acceptance(rows: Sequence[Row]) -> list[tuple[str, Bar, float]]:
    """The (bucket, bar, value reached) of every bar that the rows have numbers for."""
    reached, bars = [], bars_of(rows)
    for bucket in dict.fromkeys(row.bucket for row in rows):
        for bar in bars:
            row = find(rows, "student", bucket, bar.steps)
            other = None if row is None else beside(rows, row, bar.to, bar.to_steps)
            if row is None or other is None or bar.metric not in row.values.keys() & other.values:
                continue
            value, limiting = row.values[bar.metric], other.values[bar.metric]
            if bar.difference and max(value, limiting) <= 1:
                reached.append((bucket, bar, value - limiting))
            elif not bar.difference and limiting:
                reached.append((bucket, bar, value / limiting))
    return reached


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows sorted by bucket in order of appearance, then by model as in `MODELS`, then by steps."""
    buckets = list(dict.fromkeys(row.bucket for row in rows))
    return sorted(
        rows, key=lambda row: (buckets.index(row.bucket), MODELS.index(row.model), row.steps)
    )


def headings(rows: Sequence[Row]) -> list[str]:
    """The columns of the table of rows; a heading with / is a ratio of the value before it."""
    columns = ["bucket", "model", "steps", "guidance"]
    for name in _metrics(rows):
        columns += [METRICS[name].heading, *METRICS[name].ratios]
    return columns


def cells(rows: Sequence[Row], row: Row) -> list[str]:
    """The texts of a row of the table, one for each of `headings`."""
    # Real pictures and folders have neither steps nor guidance.
    texts = [row.bucket, row.model, *([str(row.steps), f"{row.guidance:g}"] * bool(row.steps))]
    texts += [""] * (4 - len(texts))
    for name in _metrics(rows):
        text = ""
        if name in row.values:
            decimals = _decimals(row.values[name])
            text = f"{row.values[name]:.{decimals}f}"
            if name in row.intervals:
                low, high = row.intervals[name]
                text += f" ± {(high - low) / 2:.{decimals}f}"
        texts.append(text)
        for to in METRICS[name].ratios.values():
            share = ratio(rows, row, name, to)
            texts.append("" if share is None else f"{share:.2f}x")
    return texts


def _decimals(value: float) -> int:
    """Number of decimals to show three significant digits, at most 9."""
    if not value or not math.isfinite(value):
        return 2
    return min(max(2 - math.floor(math.log10(abs(value))), 0), 9)


def _metrics(rows: Sequence[Row]) -> list[str]:
    return [name for name in METRICS if any(name in row.values for row in rows)]


def format_table(rows: Sequence[Row]) -> str:
    """Aligned text, with a line for each row."""
    return aligned([headings(rows), *(cells(rows, row) for row in rows)])


def aligned(lines: Sequence[Sequence[str]], names: int = 0) -> str:
    """A table as text, with columns aligned right, except for the first `names`, aligned left.

    Args:
      lines: the headings, then the rows.
      names: number of columns with names.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])
