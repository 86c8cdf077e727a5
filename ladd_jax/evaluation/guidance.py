"""Plots metrics over guidance, of the data generator and of a student that is given the scale."""

import itertools
from collections.abc import Sequence
from typing import Any

from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.pictures import COLORS, INK, as_png, dress, figure, legend_below
from ladd_jax.evaluation.rows import Row
from ladd_jax.names import counted

_SHOWN = ("alignment", "diversity", "deviation", "fd_real")


def guidance_plot(rows: Sequence[Row]) -> bytes | None:
    """A plot with a panel for each metric over the guidance scale, and a line per way of sampling.

    Args:
      rows: all rows, of which those for all buckets together are shown.

    Returns:
      the PNG; None if no student was sampled at several scales.
    """
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.bucket == "all" and row.model in ("generator", "student"):
            one = f"{row.model}, {counted(row.steps, 'step')}"
            lines.setdefault(one, []).append(row)
    lines = {
        name: sorted(line, key=lambda row: row.guidance)
        for name, line in lines.items()
        if len(line) > 1
    }
    students = [line for line in lines.values() if line[0].model == "student"]
    metrics = [m for m in _SHOWN if any(m in row.values for line in students for row in line)]
    if not students or not metrics:
        return None
    drawn = figure(figsize=(2.7 * len(metrics), 2.6), layout="constrained", facecolor="none")
    panels = drawn.subplots(1, len(metrics), squeeze=False)[0]
    labels: dict[str, Any] = {}
    for axes, metric in zip(panels, metrics, strict=True):
        colors = itertools.cycle(COLORS)
        for name, line in lines.items():
            of_student = line[0].model == "student"
            color, style = (next(colors), "o-") if of_student else (INK, "o:")
            shown = [row for row in line if metric in row.values]
            x, y = [row.guidance for row in shown], [row.values[metric] for row in shown]
            (labels[name],) = axes.plot(x, y, style, color=color, ms=3, lw=1.2)
        dress(axes, METRICS[metric].heading)
        axes.set_xlabel("guidance", fontsize=8, color=INK)
    legend_below(drawn, labels)
    return as_png(drawn)
