"""Grids of samples and curves of training, as PNG."""

import dataclasses
import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ladd_jax.data.images import enlarged, to_bytes
from ladd_jax.errors import UserError
from ladd_jax.evaluation.metrics import METRICS

INK = "#7d838c"
"""Legible on white and on black alike."""

COLORS = ("#3f83c8", "#e07f2c", "#43a06b", "#b0599c")
"""Of lines, in this order."""

_COLUMNS = 4  # of panels in a figure


@dataclasses.dataclass(frozen=True)
class Grid:
    """Samples of one model in one bucket.

    Attributes:
      title: name of the model and of its sampling.
      bucket: rows x columns.
      images: float32 `[prompts, samples, H, W, 1 or 3]` in [-1, 1].
      prompts: the prompt of each row of images.
    """

    title: str
    bucket: str
    images: np.ndarray
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        if self.images.ndim != 5 or len(self.images) != len(self.prompts):
            raise UserError(
                f"images of shape {self.images.shape} for {len(self.prompts)} prompts: give "
                "[prompts, samples, H, W, C]"
            )


def _tile(images: np.ndarray) -> np.ndarray:
    """Joins `[rows, columns, H, W, C]` into one picture, with white lines between the images."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    rows, columns, h, w, c = padded.shape
    picture = padded.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)
    return picture[:-1, :-1]


def sheet(images: Sequence[np.ndarray], columns: int, side: int = 512) -> np.ndarray:
    """Arranges many pictures of one shape into one `[H, W, C]`, row by row, on white.

    Args:
      images: `[H, W, 1 or 3]` in [-1, 1].
      columns: columns of the sheet.
      side: largest side of an image, in pixels; larger ones are averaged down.
    """
    small = averaged_down(np.clip(np.stack(images), -1, 1), side)
    rows = -(-len(images) // columns)
    cells = np.ones((rows * columns, *small.shape[1:]), np.float32)
    cells[: len(small)] = small
    return _tile(cells.reshape(rows, columns, *small.shape[1:]))


def averaged_down(images: np.ndarray, side: int) -> np.ndarray:
    """Scales pictures `[n, H, W, C]` down to sides of at most `side`, averaging whole blocks."""
    n, height, width, channels = images.shape
    factor = -(-max(height, width) // side)
    height, width = height // factor, width // factor
    blocks = images[:, : height * factor, : width * factor]
    return blocks.reshape(n, height, factor, width, factor, channels).mean((2, 4))


def png(image: np.ndarray, scale: int, text: Mapping[str, str] | None = None) -> bytes:
    """A PNG of `[H, W, 1 or 3]` in [-1, 1], enlarged by `scale`; values outside are clipped.

    `text` becomes the file's metadata.
    """
    pixels = enlarged(to_bytes(image), scale)
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    information = PngInfo()
    for name, value in (text or {}).items():
        information.add_text(name, value)
    picture.save(buffer, "PNG", optimize=True, pnginfo=information)
    return buffer.getvalue()


_REGRESSION: dict[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "gradient norm": ("gradient_norm",),
}
_PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "pretrain": _REGRESSION,
    "pretrain_teacher": _REGRESSION,
    "pretrain_student": _REGRESSION,
    "prefer": _REGRESSION | {"agreement with preferences": ("accuracy",)},
    "finetune": _REGRESSION,
    "distil": {
        "loss": (
            "loss/generator",
            "loss/discriminator",
            "loss/dmd",
            "loss/fake",
            "loss/progressive",
        ),
        "mean logit": ("logit/real", "logit/fake"),
        "gradient norm": ("gradient_norm/student", "gradient_norm/heads"),
        "discriminator accuracy": ("accuracy",),
        "phase": ("phase",),
    },
}


def curves(stage: str, history: Sequence[Mapping[str, Any]]) -> bytes | None:
    """A transparent PNG with the curves of a stage, or None if there is nothing to draw.

    Args:
      stage: a training of a run; for any other name, every metric with `loss` in its name is drawn.
        Any further `loss/TERM` gets a panel of its own, since terms differ in size, and so does
        each metric `preview/METRIC/STEPS`, with a line for each number of steps.
      history: records with `step` and metrics: a float, or a list with one float for each head.
    """
    names = list(dict.fromkeys(name for record in history for name in record))
    panels = _PANELS.get(stage, {"loss": tuple(name for name in names if "loss" in name)})
    drawn = {title: [name for name in wanted if name in names] for title, wanted in panels.items()}
    drawn = {title: found for title, found in drawn.items() if found}
    drawn |= _of_terms(names, sum(drawn.values(), [])) | _of_previews(names)
    if not drawn:
        return None
    columns = min(len(drawn), _COLUMNS)
    rows = -(-len(drawn) // columns)
    drawing = figure(figsize=(2.75 * columns, 2.3 * rows), layout="constrained", facecolor="none")
    plots = drawing.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in plots[len(drawn) :]:
        axes.set_axis_off()
    for axes, (title, found) in zip(plots, drawn.items(), strict=False):
        for name, color in zip(found, COLORS, strict=False):
            points = [(r["step"], np.mean(r[name])) for r in history if name in r]
            # A single record is a dot: a line of one point would be invisible.
            marker = "o" if len(points) == 1 else None
            label = name.rpartition("/")[2] if len(found) > 1 else None
            if label and label.isdigit():
                label = f"{label} step{'s' * (label != '1')}"
            axes.plot(*zip(*points, strict=True), color=color, lw=1.4, marker=marker, label=label)
        values = [np.min(record[name]) for record in history for name in found if name in record]
        if all(name.startswith("preview/fd") for name in found) and min(values) > 0:
            # The metric falls by orders of magnitude, and the lines only differ at the end.
            axes.set_yscale("log")
        dress(axes, title)
        axes.set_xlabel("step", fontsize=8, color=INK)
        if len(found) > 1:
            axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return as_png(drawing)


def _of_terms(names: Sequence[str], drawn: Sequence[str]) -> dict[str, list[str]]:
    """A panel for the loss of each term that has none yet."""
    rest = [name for name in names if name.startswith("loss/") and name not in drawn]
    return {name.removeprefix("loss/").replace("_", " "): [name] for name in rest}


def _of_previews(names: Sequence[str]) -> dict[str, list[str]]:
    """A panel for each metric of previews, with a line for each number of steps."""
    panels: dict[str, list[str]] = {}
    for name in names:
        group, _, rest = name.partition("/")
        if group == "preview":
            metric = rest.partition("/")[0]
            heading = METRICS[metric].heading if metric in METRICS else metric.replace("_", " ")
            panels.setdefault(f"{heading} of previews", []).append(name)
    return panels


def save_grid_png(path: str | os.PathLike[str], grids: Sequence[Grid]) -> None:
    """Writes a labelled PNG with a band for each grid, and the same columns of prompts in all.

    Args:
      path: path of the PNG.
      grids: grids of one bucket and the same prompts, from top to bottom.

    Raises:
      UserError: there is no grid, or grids have different prompts or shapes.
    """
    kinds = {(grid.images.shape[2:], tuple(grid.prompts)) for grid in grids}
    if len(kinds) != 1:
        raise UserError(f"grids of {len(kinds)} sets of prompts and shapes: give grids of one set")
    bands = [_tile(grid.images.swapaxes(0, 1)) for grid in grids]
    gap = 0.35 * grids[0].images.shape[2]
    height, width = sum(map(len, bands)) + gap * (len(bands) - 1), bands[0].shape[1]
    inch = min(6.4 / width, 0.06)
    column = grids[0].images.shape[3] + 1
    # A letter is about a fifteenth of an inch wide, and a line a seventh high.
    texts = [
        textwrap.fill(prompt, max(int(15 * column * inch), 1), break_long_words=False)
        for prompt in grids[0].prompts
    ]
    top = max(text.count("\n") + 1 for text in texts) / 7 + 0.25
    left, edge = 0.075 * max(len(grid.title) for grid in grids) + 0.2, 0.1
    size = (left + width * inch + edge, top + height * inch + edge)
    drawing = figure(figsize=size, facecolor="white")
    axes = drawing.add_axes((left / size[0], edge / size[1], width * inch / size[0],
                            height * inch / size[1]))  # fmt: skip
    axes.set_axis_off()
    start = 0.0
    for grid, band in zip(grids, bands, strict=True):
        picture = np.clip(np.nan_to_num(band) * 0.5 + 0.5, 0, 1).repeat(3 // band.shape[-1], -1)
        end = start + len(band)
        axes.imshow(picture, interpolation="nearest", extent=(0, width, end, start), aspect="auto")
        place = (-0.1 / inch, (start + end) / 2)
        axes.annotate(grid.title, place, ha="right", va="center", fontsize=9, annotation_clip=False)
        start = end + gap
    # Set last, since drawing an image changes the limits to its own extent.
    axes.set(xlim=(0, width), ylim=(height, 0))
    for i, text in enumerate(texts):
        place = (column * (i + 0.5) - 0.5, -0.08 / inch)
        axes.annotate(text, place, ha="center", va="bottom", fontsize=8, annotation_clip=False)
    drawing.savefig(path, dpi=120)


def dress(axes: Any, title: str) -> None:
    """Styles a panel of a plot for light and dark pages."""
    axes.set_facecolor("none")
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.tick_params(labelsize=7.5, colors=INK, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(alpha=0.18, color=INK)


def legend_below(drawing: Any, lines: Mapping[str, Any]) -> None:
    """Adds one legend for all panels of a plot in a row below them, with the line of each name."""
    drawing.legend(
        lines.values(),
        lines.keys(),
        loc="outside lower center",
        ncols=len(lines),
        fontsize=8,
        frameon=False,
        labelcolor=INK,
    )


def as_png(drawing: Any) -> bytes:
    """A plot as a PNG, at twice the resolution that it is shown at."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=180)
    return buffer.getvalue()


def figure(**options: Any) -> Any:
    """A matplotlib figure that needs no screen."""
    # Imported here because it takes seconds, and every command imports this module.
    from matplotlib.figure import Figure

    return Figure(**options)
