"""Tables of studies: the recipes, the fields that each sets, and which is run next."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ladd_jax.errors import DamagedError, NotFoundError, UserError
from ladd_jax.names import nearest
from ladd_jax.paths import expand, near
from ladd_jax.whole_files import read_json

_HERE = Path(__file__).parent

_PARTS = ("config", "recipes", "base", "data", "question")
"""The parts of a table, of which the first two are required."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A table of recipes.

    Attributes:
      name: name of the study and of its folder.
      config: name of the config that it starts from, unless the user names another.
      recipes: for each recipe, by name, the fields that it sets: those of the table's `base`, and
        its own.
      data: fields that are set for all recipes and not repeated in their rows.
      question: the question that the study answers, in a sentence.
    """

    name: str
    config: str
    recipes: dict[str, dict[str, Any]]
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    question: str = ""

    def start(self, config: ConfigDict, recipe: str, seed: int) -> ConfigDict:
        """The config of a run: a copy of the given one with the fields that its recipe sets."""
        made = ConfigDict(config.to_dict())
        made.seed = seed
        changes = self.data | self.recipes[recipe]
        made.update_from_flattened_dict({path: as_field(value) for path, value in changes.items()})
        return made.lock()


def as_field(value: Any) -> Any:
    """A JSON value in the type that fields have."""
    return tuple(value) if isinstance(value, list) else value


def known_studies() -> dict[str, Path]:
    """The tables that come with this package, by name."""
    return {path.stem: path for path in sorted(_HERE.glob("*.json"))}


def read_study(given: str) -> Study:
    """A study by its name, or by the path of its table.

    A table is JSON: `config`, the name of a config; `recipes`, which maps each recipe's name to the
    fields it sets, by their paths; and optionally `base`, fields that all recipes set, `data`, the
    same but not repeated in rows, and `question`.

    Raises:
      DamagedError: the file is not such a table, has unknown parts, or has a name twice.
      NotFoundError: there is no such study.
    """
    known = known_studies()
    if given not in known and not given.endswith(".json"):
        raise NotFoundError(
            f"there is no study {given!r}{nearest(given, known)}; the path of another table must "
            f"end with .json"
        )
    path = known.get(given) or expand(given)
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist{near(path)}: name a table of recipes")
    table = read_json(path, "write it as a table of recipes")
    for name in table:
        if name not in _PARTS:
            raise DamagedError(
                f"{path} has {name!r}, which is not a part of a table{nearest(name, _PARTS)}"
            )
    for name, kind in (("config", str), ("recipes", dict)):
        if not isinstance(table.get(name), kind):
            raise DamagedError(f"{path} has no {name}: write it as a table of recipes")
    for name in ("base", "data"):
        _check_fields(path, name, table.get(name, {}))
    for name, changes in table["recipes"].items():
        _check_fields(path, f"recipe {name!r}", changes)
    if not table["recipes"]:
        raise DamagedError(f"{path} has no recipe: write it as a table of recipes")
    if path != known.get(path.stem, path):
        raise UserError(f"{path} has the name of a study of this package: use another")
    base = table.get("base", {})
    for name, changes in table["recipes"].items():
        if "seed" in table.get("data", {}) | base | changes:
            raise UserError(
                f"recipe {name!r} of {path} sets seed, which --seeds does: leave it out, or set "
                f"distil.seed"
            )
    return Study(
        name=path.stem,
        config=table["config"],
        recipes={name: base | changes for name, changes in table["recipes"].items()},
        data=table.get("data", {}),
        question=str(table.get("question", "")),
    )


def _check_fields(path: Path, what: str, found: Any) -> None:
    if not isinstance(found, dict):
        raise DamagedError(f"{path} has {found!r} as {what}: write fields and their values")


def folder_name(recipe: str) -> str:
    """A recipe's name as a folder name, without characters special to paths or shells."""
    return re.sub(r"[^\w.+=-]+", "_", recipe).strip("._") or "_"


def next_run(
    recipes: Mapping[str, dict[str, Any]],
    done: Sequence[Mapping[str, Any]],
    only: Sequence[str],
    seeds: Sequence[int],
    passed: Collection[tuple[str, int]] = (),
) -> tuple[str, int] | None:
    """The first recipe and seed without a row; all recipes of one seed go before the next seed.

    Args:
      recipes: the study's recipes.
      done: rows with `recipe`, `seed` and `changes`.
      only: names of the recipes to run; empty for all of the table.
      seeds: seeds that each recipe is run with.
      passed: pairs of recipe and seed to pass over.

    Raises:
      UserError: there is no such recipe, or one has changed since its row was made.
    """
    for name in only:
        if name not in recipes:
            raise UserError(f"the study has no recipe {name!r}{nearest(name, recipes)}")
    for row in done:
        name, seed = row["recipe"], row["seed"]
        if name in recipes and row["changes"] != recipes[name]:
            raise UserError(
                f"the study has other changes for {name!r} than its row of seed {seed}: give the "
                f"changed recipe another name, or remove that row"
            )
    found = {(row["recipe"], row["seed"]) for row in done}
    left = ((name, seed) for seed in seeds for name in only or recipes)
    return next((run for run in left if run not in found and run not in passed), None)
