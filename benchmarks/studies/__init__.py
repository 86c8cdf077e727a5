"""Tables of recipes: which there are, and what each sets.

A table, `STUDY.json`, has `config`, the name of a config; `base`, settings that all recipes start
from; `recipes`, by name those that each changes; and `data`, where the study has a data generator
or samples of its own, the settings of these.
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ladd_jax.errors import UserError


def read_table(study: str) -> dict[str, Any]:
    """The table of a study."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / f"{study}.json").read_text())
    return found


def folder(workdir: str, study: str, seed: int) -> Path:
    """Where a seed's data generator and samples are, and the runs of studies that share them."""
    table = read_table(study)
    data = table["config"]
    if "data" in table:
        data += f"_{study}"
    return Path(workdir) / data / str(seed)


def base(table: dict[str, Any], seed: int) -> ConfigDict:
    """The config of a study's data generator."""
    config: ConfigDict = importlib.import_module(f"configs.{table['config']}").get_config()
    config.seed = seed
    change(config, table.get("data", {}))
    return config


def change(config: ConfigDict, changes: dict[str, Any]) -> None:
    """Sets fields by their paths."""
    with config.unlocked():
        config.update_from_flattened_dict(
            {path: tuple(v) if isinstance(v, list) else v for path, v in changes.items()}
        )


def recipes_of(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All that each recipe sets, by name."""
    return {name: table["base"] | changes for name, changes in table["recipes"].items()}


def next_run(
    table: dict[str, Any], done: Sequence[dict[str, Any]], only: Sequence[str], seeds: Sequence[int]
) -> tuple[str, int, dict[str, Any]] | None:
    """The first recipe and seed without a row.

    Args:
      table: of the study.
      done: rows with `recipe`, `seed` and `changes`.
      only: names of recipes; none for all of the table.
      seeds: seeds that each recipe is run with.

    Raises:
      UserError: there is no such recipe, or one has changed since its row was made.
    """
    recipes = recipes_of(table)
    found = {(row["recipe"], row["seed"]): row["changes"] for row in done}
    for name in only or recipes:
        if name not in recipes:
            raise UserError(f"the study has no recipe {name!r}: it has {', '.join(recipes)}")
        for seed in seeds:
            if (name, seed) not in found:
                return name, seed, recipes[name]
            if found[name, seed] != recipes[name]:
                raise UserError(
                    f"the study has other changes for {name!r} than its row of seed {seed}: give "
                    f"the changed recipe another name"
                )
    return None


def only_seeds_differ(done: list[dict[str, Any]]) -> bool:
    """Whether runs are one recipe with several seeds."""
    recipes = [
        {path: value for path, value in run["changes"].items() if path != "distil.seed"}
        for run in done
    ]
    return len(recipes) > 1 and all(recipe == recipes[0] for recipe in recipes)
