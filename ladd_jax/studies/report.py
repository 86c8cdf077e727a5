"""A study's report, as an HTML page and as text: all recipes side by side, with intervals."""

import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ladd_jax.evaluation.guidance import guidance_plot
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.page import head, plotted
from ladd_jax.evaluation.pictures import COLORS, INK, as_png, dress, figure, legend_below
from ladd_jax.evaluation.rows import Row, acceptance, aggregate, aligned, find, ratio
from ladd_jax.names import counted
from ladd_jax.studies.rows import rows_of
from ladd_jax.studies.table import Study
from ladd_jax.whole_files import write_text_whole

_SHOWN = ("fd", "fd_real", "alignment", "diversity", "deviation")
"""Metrics in the table and the plot, where runs have measured them."""

_OVER_GENERATOR = ("diversity", "deviation")
"""The ones that say nothing on their own, shown divided by the data generator's value."""

Means = dict[str, list[Row]]
"""For each recipe, its rows averaged over the seeds."""


def _means(study: Study, done: Sequence[Mapping[str, Any]]) -> Means:
    found: Means = {}
    for recipe in study.recipes:
        runs = [rows_of(run) for run in done if run["recipe"] == recipe and "rows" in run]
        if runs:
            # Only rows that all seeds have can be averaged.
            common = set.intersection(*({_what(row) for row in rows} for rows in runs))
            found[recipe] = aggregate([[r for r in rows if _what(r) in common] for rows in runs])
    return found


def _what(row: Row) -> tuple[Any, ...]:
    return row.model, row.steps, row.guidance, row.bucket


def _limits(rows: Sequence[Row]) -> str:
    met = [bar.met(value) for bucket, bar, value in acceptance(rows) if bucket == "all"]
    return f"{sum(met)} of {len(met)}"


def _columns(means: Means) -> list[tuple[str, int]]:
    """The (metric, steps) pairs that some student was measured for."""
    students = [row for rows in means.values() for row in rows if _is_student(row)]
    steps = sorted({row.steps for row in students})
    metrics = [name for name in _SHOWN if any(name in row.values for row in students)]
    return [(name, count) for name in metrics for count in steps]


def _is_student(row: Row) -> bool:
    return (row.model, row.bucket) == ("student", "all")


def _measured(
    rows: Sequence[Row], model: str, metric: str, steps: int | None = None
) -> tuple[float, tuple[float, float] | None] | None:
    """A value as shown, and its interval; both over the generator's value for some metrics."""
    row, made = find(rows, model, "all", steps), find(rows, "generator", "all")
    if row is None or metric not in row.values:
        return None
    over = 1.0
    if metric in _OVER_GENERATOR:
        over = made.values.get(metric, 0.0) if made is not None else 0.0
    if not over:
        return None
    ends = row.intervals.get(metric)
    return row.values[metric] / over, ends and (ends[0] / over, ends[1] / over)


def _cell(rows: Sequence[Row], metric: str, steps: int) -> str:
    found = _measured(rows, "student", metric, steps)
    if found is None:
        return ""
    value, ends = found
    text = f"{value:.3f}" + (f" ± {(ends[1] - ends[0]) / 2:.3f}" if ends else "")
    row = find(rows, "student", "all", steps)
    if metric == "fd" and row is not None:
        share = ratio(rows, row, metric, "untrained")
        text += "" if share is None else f" ({share:.2f}x)"
    return text


def _heading(metric: str) -> str:
    return METRICS[metric].heading + ", of the generator's" * (metric in _OVER_GENERATOR)


def _with_steps(metric: str, steps: int) -> str:
    return f"{_heading(metric)}, {counted(steps, 'step')}"


def _lines(means: Means, metrics: Sequence[str]) -> list[list[str]]:
    """The lines of a table of metrics: the headings, then a line for each recipe that has run."""
    columns = [column for column in _columns(means) if column[0] in metrics]
    lines = [["recipe", "seeds", *(_with_steps(*column) for column in columns), "limits"]]
    for recipe, rows in means.items():
        cells = [_cell(rows, *column) for column in columns]
        lines.append([recipe, str(rows[0].seeds), *cells, _limits(rows)])
    return lines


def _spread(means: Means, study: Study) -> list[str]:
    """How far apart trainings are that differ only in their seed; empty if recipes differ."""
    fields = [
        {path: value for path, value in study.recipes[name].items() if path != "distil.seed"}
        for name in means
    ]
    if len(fields) < 2 or any(other != fields[0] for other in fields):
        return []
    found = (find(rows, "student", "all", 1) for rows in means.values())
    values = [row.values["fd"] for row in found if row is not None and "fd" in row.values]
    if not values:
        return []
    middle = statistics.median(values)
    return [
        f"{len(values)} trainings, FD in one step: median {middle:.3f}, ranging from "
        f"{min(values) / middle:.2f} to {max(values) / middle:.2f} times the median"
    ]


def _failures(study: Study, done: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{run['recipe']} of seed {run['seed']} has failed: {run['failed']}"
        for run in done
        if "failed" in run and run["recipe"] in study.recipes
    ]


def format_study(study: Study, done: Sequence[Mapping[str, Any]]) -> str:
    """Aligned text: FD of each recipe, how many limits it meets, and which runs have failed.

    Args:
      study: the study.
      done: runs that have ended; those whose recipe is no longer in the study are left out.
    """
    means = _means(study, done)
    notes = [*_spread(means, study), *_failures(study, done)]
    return "\n".join([aligned(_lines(means, ("fd",)), names=1), *notes])


def _plot(means: Means) -> bytes | None:
    """A plot with a panel per metric, a line per recipe, and a mark per number of steps."""
    columns = _columns(means)
    metrics = list(dict.fromkeys(name for name, _ in columns))
    if not metrics:
        return None
    names = list(means)
    steps = sorted({count for _, count in columns})
    size = (0.09 * max(map(len, names)) + 2.4 * len(metrics), 0.32 * len(names) + 1.4)
    drawn = figure(figsize=size, layout="constrained", facecolor="none")
    panels = drawn.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    labels: dict[str, Any] = {}
    for axes, metric in zip(panels, metrics, strict=True):
        for y, rows in enumerate(means.values()):
            made = _measured(rows, "generator", metric)
            if made is not None:
                axes.plot([made[0]] * 2, [y - 0.45, y + 0.45], color=INK, lw=1, ls=":")
        for i, count in enumerate(steps):
            for y, rows in enumerate(means.values()):
                found = _measured(rows, "student", metric, count)
                if found is None:
                    continue
                (x, ends), place = found, y + 0.18 * (i - (len(steps) - 1) / 2)
                color, label = COLORS[i % len(COLORS)], counted(count, "step")
                if ends:
                    axes.plot(ends, [place, place], color=color, lw=1.2)
                (labels[label],) = axes.plot([x], [place], "o", color=color, ms=4)
        axes.set_yticks(range(len(names)), names)
        axes.locator_params(axis="x", nbins=4)
        dress(axes, _heading(metric))
    panels[0].invert_yaxis()
    legend_below(drawn, labels)
    return as_png(drawn)


def _table(lines: Sequence[Sequence[str]]) -> str:
    parts = ["<div class=scroll><table class=numbers>"]
    for i, line in enumerate(lines):
        tag = "td" if i else "th"
        cells = (
            f"<{tag}{' class=name' * (j == 0)}>{html.escape(text)}</{tag}>"
            for j, text in enumerate(line)
        )
        parts.append(f"<tr>{''.join(cells)}</tr>")
    return "".join([*parts, "</table></div>"])


def _settings(study: Study) -> str:
    """A table of the fields that all recipes set, and of those in which they differ."""
    fields = {path for changes in study.recipes.values() for path in changes}
    missing = object()
    common = {
        path
        for path in fields
        if len({repr(changes.get(path, missing)) for changes in study.recipes.values()}) == 1
    }
    parts = ["<table class=settings>"]
    for name, changes in study.recipes.items():
        own = ", ".join(f"{path} {v}" for path, v in changes.items() if path not in common)
        parts.append(f"<tr><td>{html.escape(name)}</td><td>{html.escape(own)}</td></tr>")
    first = next(iter(study.recipes.values()))
    shared = study.data | {path: first[path] for path in first if path in common}
    if shared:
        words = html.escape(", ".join(f"{path} {value}" for path, value in shared.items()))
        parts.append(f"<tr><td class=soft>all of them</td><td>{words}</td></tr>")
    return "".join([*parts, "</table>"])


def write_study_report(
    path: Path, study: Study, config: str, done: Sequence[Mapping[str, Any]]
) -> None:
    """Writes one self-contained HTML file.

    Args:
      path: path of the file to write.
      study: the study.
      config: description of the config that it starts from.
      done: see `format_study`.
    """
    means = _means(study, done)
    notes = [*_spread(means, study), *_failures(study, done)]
    page = [
        *head(f"Study {study.name}"),
        f"<h1>Study: {html.escape(study.name)}</h1>",
        f"<p>{html.escape(study.question)}</p>",
        f"<p class=soft>{html.escape(config)}; students in all buckets together. FD is to held-out "
        "samples of a recipe's own data generator, which is the dotted line. Intervals of 95% are "
        "over the pictures for one seed, and over the seeds for several. Factors in brackets are "
        "relative to the untrained student at the same steps.</p>",
        _table(_lines(means, ("fd",))),
        *(f"<p>{html.escape(note)}</p>" for note in notes),
    ]
    plot = _plot(means)
    if plot:
        page.append(plotted(plot, "metrics of each recipe"))
    for recipe, rows in means.items():
        told = guidance_plot(rows)
        if told:
            page.append(f"<h2>Over the guidance scale: {html.escape(recipe)}</h2>")
            page.append(plotted(told, f"metrics over guidance of {recipe}"))
    page += ["<h2>What each recipe sets</h2>", _settings(study), "<h2>Numbers</h2>"]
    metrics = dict.fromkeys(name for name, _ in _columns(means) if name != "fd")
    page += [_table([line[:-1] for line in _lines(means, (name,))]) for name in metrics]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(path, "\n".join(page) + "\n")
