"""Tables of recipes, read by `benchmarks.recipes`, which runs them, and `benchmarks.curves`."""

import json
from pathlib import Path
from typing import Any


def read_table(study: str) -> dict[str, Any]:
    """A study: `config`, `base`, `recipes`, and `data` where it has data of its own."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / f"{study}.json").read_text())
    return found


def folder(workdir: str, study: str, seed: int) -> Path:
    """Where the runs of a study and a seed are, the data generator and its samples beside them.

    Studies of one config have the same, but for those with data of their own.
    """
    table = read_table(study)
    return Path(workdir) / (study if "data" in table else table["config"]) / str(seed)
