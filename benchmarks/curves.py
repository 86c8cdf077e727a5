"""`python -m benchmarks.curves --study=sick`: curves of a study's runs, side by side.

The figure has a row for each recipe that `ladd_jax.study` has run and a column for each metric that
shows how a distillation is doing; the first recipe's curves are grey behind the others'. Writes it
to `docs/curves_STUDY.png`, and its numbers to `benchmarks/results/curves_STUDY.json`, from which it
is drawn if the runs are not there.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from absl import app, flags

from ladd_jax.errors import NotFoundError
from ladd_jax.studies.table import folder_name, read_study
from ladd_jax.training.metrics import read_history

_STUDY = flags.DEFINE_string("study", "sick", "Name of the study's table.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the runs.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/studies", "The --workdir of ladd_jax.study.")

COLUMNS = {
    "accuracy of the heads": ("accuracy",),
    "FD of previews": ("preview/fd/1", "preview/fd/4"),
    "contrast of previews": ("preview/deviation/1", "preview/deviation/4"),
    "seed spread of previews": ("preview/seed_spread/1", "preview/seed_spread/4"),
}
_FD_TICKS = (0.25, 0.5, 1, 2, 4, 8)
_INK, _GREY, _COLORS = "#3a414a", "#b4bac2", ("#2b6cb0", "#c2532d")

Curves = dict[str, dict[str, list[tuple[int, float]]]]
"""Points (step, value) of each metric, by recipe."""


def read(root: Path, recipes: Iterable[str], seed: int) -> Curves:
    """The curves of recipes that have been run.

    Args:
      root: folder of the study.
      recipes: names of the recipes.
      seed: seed of the runs.

    Raises:
      NotFoundError: a run has no history.
    """
    found: Curves = {}
    for name in recipes:
        run = root / folder_name(name) / str(seed)
        history: list[dict[str, Any]] = read_history(run / "distil")
        if not history:
            raise NotFoundError(f"{run} has no history: run ladd_jax.study first")
        found[name] = {
            metric: [
                (row["step"], round(float(row[metric]), 5)) for row in history if metric in row
            ]
            for metrics in COLUMNS.values()
            for metric in metrics
        }
    return found


def draw(curves: Curves, path: Path) -> None:
    """Writes the figure: a row for each recipe, with the first one's curves behind the others'."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (2.7 * len(COLUMNS), 1.55 * len(curves))
    figure, plots = pyplot.subplots(
        len(curves), len(COLUMNS), sharex=True, sharey="col", squeeze=False, figsize=size,
        layout="constrained",
    )  # fmt: skip
    first = next(iter(curves.values()))
    for line, (name, found) in zip(plots, curves.items(), strict=True):
        for axes, (title, metrics) in zip(line, COLUMNS.items(), strict=True):
            for metric, color in zip(metrics, _COLORS, strict=False):
                steps = metric.rpartition("/")[2]
                label = f"{steps} step{'s' * (steps != '1')}" if steps.isdigit() else None
                if found is not first:
                    axes.plot(*zip(*first[metric], strict=True), color=_GREY, lw=1)
                axes.plot(*zip(*found[metric], strict=True), color=color, lw=1.5, label=label)
            if title.startswith("FD"):
                axes.set_yscale("log")
                axes.set_yticks(_FD_TICKS, [f"{tick:g}" for tick in _FD_TICKS])
                axes.minorticks_off()
            if axes in plots[0]:
                axes.set_title(title, fontsize=9, color=_INK, loc="left")
                if title.startswith("FD"):
                    axes.legend(fontsize=7, frameon=False, labelcolor=_INK)
            axes.tick_params(labelsize=7, colors=_INK, length=2)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(_INK)
        line[0].set_ylabel(name, fontsize=9, color=_INK)
    for axes in plots[-1]:
        axes.set_xlabel("step", fontsize=8, color=_INK)
    figure.savefig(path, dpi=100)


def main(_: list[str]) -> None:
    """Reads the runs, or what is kept of them, and draws."""
    study = _STUDY.value
    table = read_study(f"benchmarks/studies/{study}.json")
    root = Path(_WORKDIR.value) / study
    kept = Path(f"benchmarks/results/curves_{study}.json")
    if root.exists() or not kept.exists():
        kept.write_text(json.dumps(read(root, table.recipes, _SEED.value)) + "\n")
    draw(json.loads(kept.read_text()), Path(f"docs/curves_{study}.png"))


if __name__ == "__main__":
    app.run(main)
