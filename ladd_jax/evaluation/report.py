"""One HTML page that opens offline: how good a distilled student is, and how its samples look."""

import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ladd_jax.errors import UserError
from ladd_jax.evaluation.guidance import guidance_plot
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.page import embedded, head, plotted
from ladd_jax.evaluation.pictures import Grid, curves, png
from ladd_jax.evaluation.rows import Bar, Row, acceptance, bars_of, cells, headings
from ladd_jax.evaluation.strip import Preview
from ladd_jax.methods import METHODS, Method
from ladd_jax.names import counted
from ladd_jax.whole_files import write_text_whole

_STRIP_WIDTH = 260  # pixels


def _metrics(rows: Sequence[Row]) -> str:
    parts = ["<div class=scroll><table><tr>"]
    name = " class=name"
    columns = headings(rows)
    parts += [f"<th{name * (i < 2)}>{heading}</th>" for i, heading in enumerate(columns)]
    parts.append("</tr>")
    bucket = None
    for row in rows:
        kinds = [row.model] + ["first"] * (row.bucket != bucket)
        parts.append(f'<tr class="{html.escape(" ".join(kinds))}">')
        for i, text in enumerate(cells(rows, row)):
            # The name of a bucket is only shown in its first row.
            shown = "" if i == 0 and row.bucket == bucket else html.escape(text)
            kind = name if i < 2 else " class=ratio" if columns[i].startswith("/") else ""
            parts.append(f"<td{kind}>{shown}</td>")
        parts.append("</tr>")
        bucket = row.bucket
    return "".join([*parts, "</table></div>"])


_TO = {
    "untrained": "over the untrained student's",
    "generator": "over the generator's own",
    "teacher": "over the teacher's",
    "student": "over the student's own",
}


def _to(bar: Bar) -> str:
    at = f" at {counted(bar.to_steps, 'step')}" if bar.to_steps else ""
    return _TO[bar.to] + at


def _bar(bar: Bar, value: float) -> str:
    """A value, marked if it is within its limits, with a track if it is a ratio with a maximum."""
    text = f"{'✓' if bar.met(value) else '✗'} " + (
        f"{value:+.3f}" if bar.difference else f"{value:.2f}x"
    )
    if bar.high is None or bar.low is not None:
        return text
    # The limit is at two thirds of every track, so that all ticks line up.
    share = min(value / bar.high / 1.5, 1)
    return (
        f'{text}<div class=track><div class="fill{"" if bar.met(value) else " missed"}" '
        f'style="width:{share:.1%}"></div><i></i></div>'
    )


def _bars(rows: Sequence[Row]) -> str:
    reached = {(bucket, bar): value for bucket, bar, value in acceptance(rows)}
    bars = [bar for bar in bars_of(rows) if any(bar == found for _, found in reached)]
    parts = ["<div class=scroll><table><tr><th class=name>bucket</th>"]
    for bar in bars:
        steps = counted(bar.steps, "step")
        limit = f"<span class=limit>{html.escape(_to(bar))}: {bar.limits}</span>"
        parts.append(f"<th>{METRICS[bar.metric].heading}, {steps}{limit}</th>")
    parts.append("</tr>")
    for bucket in dict.fromkeys(bucket for bucket, _ in reached):
        parts.append(f"<tr><td class=name>{html.escape(bucket)}</td>")
        for bar in bars:
            if (bucket, bar) not in reached:
                parts.append("<td></td>")
                continue
            parts.append(f"<td>{_bar(bar, reached[bucket, bar])}</td>")
        parts.append("</tr>")
    return "".join([*parts, "</table></div>"]) if reached else ""


def _samples(grids: Sequence[Grid]) -> str:
    parts = []
    for bucket in dict.fromkeys(grid.bucket for grid in grids):
        inside = [grid for grid in grids if grid.bucket == bucket]
        if any(list(grid.prompts) != list(inside[0].prompts) for grid in inside):
            raise UserError(
                f"grids of {bucket} show different prompts: give all of them the same, in one order"
            )
        parts.append(f"<h3>{html.escape(bucket)}</h3><div class=scroll><table class=samples><tr>")
        parts += ["<th></th>", *(f"<th>{html.escape(grid.title)}</th>" for grid in inside), "</tr>"]
        for i, prompt in enumerate(inside[0].prompts):
            parts.append(f"<tr><td class=name>{html.escape(prompt)}</td>")
            for grid in inside:
                h, w = grid.images.shape[2:4]
                scale = max(1, min(48 // w, 64 // h, 5))
                text = f"{grid.title}: {prompt}"
                row = "".join(embedded(png(x, scale), text, scale * w) for x in grid.images[i])
                parts.append(f"<td><div class=row>{row}</div></td>")
            parts.append("</tr>")
        parts.append("</table></div>")
    return "".join(parts)


def _strip(previews: Sequence[Preview]) -> str:
    """Tables, one per bucket, with a row per number of steps and a column per training step."""
    parts = []
    buckets = {preview.bucket for preview in previews}
    for bucket in sorted(buckets, key=lambda name: [int(side) for side in name.split("x")]):
        inside = {(p.steps, p.step): p.png for p in previews if p.bucket == bucket}
        columns = sorted({step for _, step in inside})
        parts.append(f"<h3>{html.escape(bucket)}</h3><div class=scroll><table class=samples><tr>")
        parts += ["<th></th>", *(f"<th>step {step}</th>" for step in columns), "</tr>"]
        for steps in sorted({steps for steps, _ in inside}):
            title = counted(steps, "step")
            parts.append(f"<tr><td class=name>{title}</td>")
            for step in columns:
                data = inside.get((steps, step))
                image = ""
                if data is not None:
                    width = min(Image.open(io.BytesIO(data)).width, _STRIP_WIDTH)
                    image = embedded(data, f"{title}, {bucket}, at step {step}", width)
                parts.append(f"<td>{image}</td>")
            parts.append("</tr>")
        parts.append("</table></div>")
    return "".join(parts)


def write_report(
    path: str | os.PathLike[str],
    rows: Sequence[Row],
    grids: Sequence[Grid],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    previews: Sequence[Preview] = (),
    method: Method = METHODS["ladd"],
) -> None:
    """Writes one self-contained HTML file: limits, metrics, samples of the same prompts, curves.

    Args:
      path: path of the file.
      rows: rows in the order of the table, with those of one bucket adjacent.
      grids: grids, shown side by side within a bucket, in this order.
      histories: records of each stage, each with `step` and metrics.
      settings: names and values of the settings to list.
      notes: paragraphs below the introduction.
      previews: pictures that the student made during training.
      method: method that it was distilled by.

    Raises:
      UserError: the grids of one bucket show different prompts.
    """
    page = [
        *head(f"{method.short} report"),
        f"<h1>{method.title}</h1>",
        "<p>A student that makes a picture in 1 to 4 steps without guidance, beside the "
        "guided data generator that it was distilled from.</p>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
    ]
    bars = _bars(rows)
    if bars:
        page += [
            "<h2>Student against its limits</h2>",
            "<p class=soft>Each limit is relative to the same metric of another model in the same "
            "bucket.</p>",
            bars,
        ]
    page += ["<h2>Metrics</h2>", _metrics(rows), "<p class=soft>"]
    page += [
        f"{metric.heading}: {html.escape(metric.meaning)}. "
        for name, metric in METRICS.items()
        if any(name in row.values for row in rows)
    ]
    page.append("The grey ratios are relative to other rows of the bucket. ")
    if any(row.intervals and row.seeds == 1 for row in rows):
        page.append(
            "Intervals of 95% tell how numbers would vary with other pictures of the same prompts, "
            "but not with other prompts."
        )
    page.append("</p>")
    told = guidance_plot(rows)
    if told:
        page += ["<h2>The student over guidance</h2>", plotted(told, "metrics over guidance")]
    if grids:
        page.append("<h2>Samples of the same prompts</h2>")
        page.append(_samples(grids))
    if previews:
        page += [
            "<h2>The student during training</h2>",
            "<p class=soft>Noise is the same at every step; each row of a picture is one prompt."
            "</p>",
            _strip(previews),
        ]
    if histories:
        page.append("<h2>Training</h2>")
    for stage, history in histories.items():
        plot = curves(stage, history)
        if plot:
            figure = plotted(plot, f"curves of {stage}")
            page.append(f"<h3>{html.escape(stage)}</h3>{figure}")
    if settings:
        page.append("<details><summary>Settings</summary><table class=settings>")
        for name, value in settings.items():
            page.append(f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>")
        page.append("</table></details>")
    write_text_whole(Path(path), "\n".join(page) + "\n")
