"""Metrics as rows, as a table, and as one HTML page that opens offline."""

import base64
import collections
import dataclasses
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Row:
    """Quality of one model, sampled in one way, in one bucket.

    Attributes:
      model: `teacher` or `student`; `data` for the train split.
      steps: evaluations of the network in a sample.
      guidance: scale of classifier-free guidance; 1 for none.
      bucket: rows x columns, or `all`.
      fd: Fréchet distance to the test split.
      agreement: share of pictures that show what the prompt says.
      diversity: mean feature distance of two samples of a prompt.
      seeds: runs that the numbers are means over.
      fd_std: standard deviation over those runs, likewise the next two.
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


MEASURES = ("fd", "agreement", "diversity")


def aggregate(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Mean and standard deviation over runs of the same rows.

    Raises:
      ValueError: the runs have different rows.
    """
    groups: dict[tuple[Any, ...], list[Row]] = collections.defaultdict(list)
    for rows in runs:
        for row in rows:
            groups[row.model, row.steps, row.guidance, row.bucket].append(row)
    means = []
    for (model, steps, guidance, bucket), rows in groups.items():
        if len(rows) != len(runs):
            raise ValueError(
                f"{len(rows)} of {len(runs)} runs have a row for {model}, {steps} steps, {bucket}"
            )
        numbers: dict[str, float] = {}
        for name in MEASURES:
            values = [getattr(row, name) for row in rows]
            numbers[name] = float(np.mean(values))
            numbers[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        means.append(Row(model, steps, guidance, bucket, **numbers, seeds=len(rows)))
    return means


def write_metrics(path: Path, rows: Sequence[Row], judge_accuracy: float, **extra: Any) -> None:
    """Writes rows as JSON, whole or not at all."""
    data = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "judge_accuracy": judge_accuracy,
        **extra,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=2) + "\n")
    partial.rename(path)


def _reference(rows: Sequence[Row], bucket: str) -> Row | None:
    """The guided teacher with most steps in a bucket: what the student is held against."""
    teachers = [row for row in rows if row.model == "teacher" and row.bucket == bucket]
    return max(teachers, key=lambda row: row.steps, default=None)


def _cells(rows: Sequence[Row], row: Row) -> list[str]:
    reference = _reference(rows, row.bucket)
    cells = [row.bucket, row.model, str(row.steps) if row.steps else "", f"{row.guidance:g}"]
    for name in MEASURES:
        value = f"{getattr(row, name):.3f}"
        if row.seeds > 1:
            value += f" ± {getattr(row, f'{name}_std'):.3f}"
        cells.append(value)
        cells.append(f"{getattr(row, name) / getattr(reference, name):.2f}x" if reference else "")
    return cells


_HEADINGS = (
    "bucket", "model", "steps", "guidance", "FD", "", "agreement", "", "diversity", "",
)  # fmt: skip


def format_table(rows: Sequence[Row]) -> str:
    """Aligned text; each measure with its ratio to the teacher's longest sampling."""
    lines = [list(_HEADINGS), *(_cells(rows, row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS))]
    text = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _png(image: np.ndarray, scale: int) -> bytes:
    """PNG of `[h, w, 1 or 3]` in [-1, 1], each pixel `scale` wide."""
    pixels = np.clip((image + 1) * 127.5, 0, 255).round().astype(np.uint8)
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _tile(images: np.ndarray) -> np.ndarray:
    """`[prompts, samples, h, w, c]` to one picture, a column for each prompt, a pixel between."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    columns, rows, h, w, c = padded.shape
    return padded.transpose(1, 2, 0, 3, 4).reshape(rows * h, columns * w, c)


def _embed(data: bytes, text: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{encoded}">'


def _curves(history: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> bytes:
    figure = matplotlib.figure.Figure(figsize=(3.6 * len(groups), 2.6), layout="constrained")
    for axes, (title, names) in zip(
        np.atleast_1d(figure.subplots(1, len(groups))), groups.items(), strict=True
    ):
        for name in names:
            points = [(r["step"], np.mean(r[name])) for r in history if name in r]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


_CURVES = {
    "pretrain": {"loss": ["loss"], "gradient norm": ["gradient_norm"]},
    "distil": {
        "loss": ["loss/generator", "loss/discriminator"],
        "mean logit": ["logit/real", "logit/fake"],
        "gradient norm": ["gradient_norm/student", "gradient_norm/heads"],
        "discriminator accuracy": ["accuracy"],
    },
}

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
td.ratio { opacity: .65; } tr.student { font-weight: 600; }
tr.first td { border-top: 2px solid #888; }
figure { margin: 0 0 1rem; } figcaption { font-size: .85rem; opacity: .75; }
img { max-width: 100%; image-rendering: pixelated; }
img.plot { image-rendering: auto; background: #fff; }
.scroll { overflow-x: auto; }
"""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Samples of one model in one bucket.

    Attributes:
      title: of the model and its sampling.
      bucket: rows x columns.
      images: float32 `[prompts, samples, H, W, C]` in [-1, 1].
      prompts: one for each column.
    """

    title: str
    bucket: str
    images: np.ndarray
    prompts: Sequence[str]


def write_report(
    path: Path,
    rows: Sequence[Row],
    grids: Sequence[Grid],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    judge_accuracy: float,
    notes: Sequence[str] = (),
) -> None:
    """Writes one self-contained HTML file: metrics, samples of the same prompts, curves."""
    page = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>LADD report</title><style>{_STYLE}</style>",
        "<h1>Latent Adversarial Diffusion Distillation</h1>",
        "<p>FD is the Fréchet distance of a classifier's features to held-out real scans (lower is "
        "better), agreement the share of pictures in which the classifier reads what the prompt "
        "says, diversity the mean feature distance of two samples of one prompt. The grey number "
        "is the ratio to the teacher's longest sampling in the same bucket. The classifier is "
        f"right on {judge_accuracy:.1%} of held-out scans.</p>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        "<h2>Metrics</h2><div class=scroll><table><tr>",
        *(f"<th>{heading}</th>" for heading in _HEADINGS),
        "</tr>",
    ]
    last = None
    for row in rows:
        kind = row.model + (" first" if row.bucket != last else "")
        last = row.bucket
        cells = _cells(rows, row)
        ratios = {5, 7, 9}
        page.append(
            f'<tr class="{kind}">'
            + "".join(
                f"<td{' class=ratio' * (i in ratios)}>{cell}</td>" for i, cell in enumerate(cells)
            )
            + "</tr>"
        )
    page.append("</table></div><h2>Samples: the same prompts in the same columns</h2>")
    for bucket in dict.fromkeys(grid.bucket for grid in grids):
        inside = [grid for grid in grids if grid.bucket == bucket]
        page.append(f"<h3>{bucket}</h3><p>{html.escape(', '.join(inside[0].prompts))}</p>")
        for grid in inside:
            picture = _embed(_png(_tile(grid.images), 5), f"{grid.title}, {bucket}")
            page.append(f"<figure>{picture}<figcaption>{grid.title}</figcaption></figure>")
    page.append("<h2>Training</h2>")
    for stage, history in histories.items():
        if history:
            plot = _embed(_curves(history, _CURVES[stage]), f"curves of {stage}")
            plot = plot.replace("<img", "<img class=plot")
            page.append(f"<figure>{plot}<figcaption>{stage}</figcaption></figure>")
    path.write_text("\n".join(page) + "\n")


def save_picture(path: Path, grids: Sequence[Grid]) -> None:
    """One labelled PNG of the grids of one bucket, one above the other."""
    figure = matplotlib.figure.Figure(
        figsize=(8, 1.15 * sum(len(g.images[0]) for g in grids) * 0.75), layout="constrained"
    )
    axes = np.atleast_1d(figure.subplots(len(grids), 1))
    for place, grid in zip(axes, grids, strict=True):
        picture = _tile(grid.images)
        place.imshow(picture[..., 0], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        place.set_ylabel(grid.title, rotation=0, ha="right", va="center", fontsize=9)
        place.set_xticks([])
        place.set_yticks([])
        place.set_frame_on(False)
    width = grids[0].images.shape[3] + 1
    axes[0].set_xticks([width * (i + 0.5) for i in range(len(grids[0].prompts))])
    axes[0].set_xticklabels(grids[0].prompts, fontsize=8)
    axes[0].xaxis.tick_top()
    axes[0].tick_params(length=0)
    figure.savefig(path, dpi=110)
