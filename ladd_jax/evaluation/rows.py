"""Metrics as rows: mean over seeds, ratio to the data generator, form on disk."""

import collections
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.errors import UserError

MEASURES = {"fd": "FD", "agreement": "agreement", "diversity": "diversity"}
"""Measures of a row, each a field of `Row` beside its `_std`, and their headings."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Quality of one model, sampled in one way, in one bucket.

    Attributes:
      model: `teacher` for the data generator, or `student`; `data` for the train split,
        `untrained` for the data generator's parameters sampled as the student is.
      steps: evaluations of the network in a sample; 0 for data.
      guidance: scale of classifier-free guidance; 1 for none.
      bucket: rows x columns, or `all`.
      fd: Fréchet distance to the test split.
      agreement: share of pictures that show what the prompt says.
      diversity: mean feature distance of two samples of a prompt.
      seeds: number of runs that the numbers are means of.
      fd_std: standard deviation (n - 1) over those runs.
      agreement_std: see fd_std.
      diversity_std: see fd_std.
    """

    model: str
    steps: int
    guidance: float
    bucket: str
    fd: float
    agreement: float
    diversity: float
    seeds: int = 1
    fd_std: float = 0.0
    agreement_std: float = 0.0
    diversity_std: float = 0.0


def aggregate(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Mean and standard deviation over single-seed runs of the same rows, in their order.

    Raises:
      UserError: the runs have different rows, or a row twice.
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
        numbers: dict[str, float] = {}
        for name in MEASURES:
            values = [getattr(row, name) for row in rows]
            numbers[name] = float(np.mean(values))
            numbers[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        means.append(Row(model, steps, guidance, bucket, **numbers, seeds=len(rows)))
    return means


def write_metrics(
    path: str | os.PathLike[str], rows: Sequence[Row], judge_accuracy: float, **extra: Any
) -> None:
    """Writes `{"rows": [...], "judge_accuracy": ...}` as JSON, whole or not at all.

    Args:
      path: path of the file.
      rows: rows, each written as a dict of its fields.
      judge_accuracy: share of test scans that the judge reads correctly.
      **extra: further fields of the file.

    Raises:
      UserError: a number is not finite, which JSON cannot hold.
    """
    data = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "judge_accuracy": judge_accuracy,
        **extra,
    }
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    partial = Path(f"{os.fspath(path)}.partial")
    partial.write_text(text)
    partial.rename(path)


def reference(rows: Sequence[Row], bucket: str) -> Row | None:
    """The data generator's longest sampling in a bucket: what the student is compared with."""
    generators = [row for row in rows if row.model == "teacher" and row.bucket == bucket]
    return max(generators, key=lambda row: row.steps, default=None)


def ratio(rows: Sequence[Row], row: Row, measure: str) -> float | None:
    """A measure of a row over the reference's in its bucket; None where that is 0 or missing."""
    longest = reference(rows, row.bucket)
    if longest is None or not getattr(longest, measure):
        return None
    return getattr(row, measure) / getattr(longest, measure)


@dataclasses.dataclass(frozen=True)
class Bar:
    """A limit for the ratio of the student to the data generator.

    Attributes:
      measure: one of `MEASURES`.
      steps: number of the student's steps.
      limit: limit of the ratio.
      upper: whether the limit is an upper one.
    """

    measure: str
    steps: int
    limit: float
    upper: bool

    def met(self, value: float) -> bool:
        """Whether a ratio is within the limit."""
        return value <= self.limit if self.upper else value >= self.limit


BARS = (
    Bar("fd", 4, 1.1, upper=True),
    Bar("fd", 1, 1.5, upper=True),
    Bar("agreement", 4, 0.97, upper=False),
    Bar("diversity", 4, 0.8, upper=False),
    Bar("diversity", 1, 0.8, upper=False),
)
"""The limits for a distilled student, in every bucket."""


def acceptance(rows: Sequence[Row], bars: Sequence[Bar] = BARS) -> list[tuple[str, Bar, float]]:
    """Bucket, bar and the ratio reached, for every bar that the rows have numbers for."""
    reached = []
    for bucket in dict.fromkeys(row.bucket for row in rows):
        for bar in bars:
            for row in rows:
                if (row.model, row.steps, row.bucket) == ("student", bar.steps, bucket):
                    value = ratio(rows, row, bar.measure)
                    if value is not None:
                        reached.append((bucket, bar, value))
    return reached


_MODELS = ("data", "teacher", "student", "untrained")


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows by bucket, as they appear; in each: data, data generator, student, untrained."""
    buckets = list(dict.fromkeys(row.bucket for row in rows))
    return sorted(rows, key=lambda row: (buckets.index(row.bucket), _MODELS.index(row.model)))


HEADINGS = (
    *("bucket", "model", "steps", "guidance"),
    *(heading for name in MEASURES.values() for heading in (name, "")),
)
"""Columns of the table; those without a heading are the ratios of the measures before them."""


def cells(rows: Sequence[Row], row: Row) -> list[str]:
    """The text of a row of the table, one for each of `HEADINGS`."""
    # Real pictures have neither steps nor guidance.
    sampling = [str(row.steps), f"{row.guidance:g}"] if row.steps else ["", ""]
    texts = [row.bucket, row.model, *sampling]
    for name in MEASURES:
        value = f"{getattr(row, name):.3f}"
        if row.seeds > 1:
            value += f" ± {getattr(row, f'{name}_std'):.3f}"
        share = ratio(rows, row, name)
        texts += [value, "" if share is None else f"{share:.2f}x"]
    return texts


def format_table(rows: Sequence[Row]) -> str:
    """Aligned text; each measure with its ratio to the data generator's longest sampling."""
    lines = [list(HEADINGS), *(cells(rows, row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    text = [
        "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])
