"""Runs of a study: each in a workdir of its own, on data that it shares where they are the same."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ladd_jax.cli.begin import begun
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import Config, to_dict, typed
from ladd_jax.config.identity import identity
from ladd_jax.errors import Problems, UserError
from ladd_jax.evaluation.rows import read_metrics
from ladd_jax.stages.run import run_stages
from ladd_jax.studies.table import Study, folder_name
from ladd_jax.training.metrics import DivergedError

_LOG = logging.getLogger(__name__)

SHARED = "shared"
"""The folder of data beside those of studies."""

_OF_DATA = ("encode", "pretrain", "synthesize")
"""Stages whose results runs share."""


def config_of(study: Study, config: ConfigDict, recipe: str, seed: int, workdir: Path) -> Config:
    """The config of a run.

    Args:
      study: the study.
      config: what it starts from.
      recipe: the run's recipe.
      seed: the run's seed.
      workdir: of the studies, whose runs share compiled programs.

    Raises:
      UserError: the recipe sets what a config does not take.
    """
    try:
        made = study.start(config, recipe, seed)
        read_architectures(made)
        made.compilation_cache = str(workdir.resolve() / "compilation_cache")
        found = typed(made)
        if "evaluate" not in found.stages:
            raise UserError(f"stages is {', '.join(found.stages)}: a study needs evaluate")
    # Of a field in the place of a section, or of a value of another type.
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{error}: name fields of a config, with values of their types") from error
    return found


def check_recipes(
    study: Study, config: ConfigDict, recipes: Iterable[str], seed: int, workdir: Path
) -> None:
    """Raises UserError with all that is wrong with what recipes set, before any of them is run."""
    problems, names = Problems(), list(recipes)
    folders: dict[str, str] = {}
    wrong: dict[str, list[str]] = {}
    for recipe in names:
        try:
            config_of(study, config, recipe, seed, workdir)
        except UserError as error:
            wrong.setdefault(str(error), []).append(recipe)
        other = folders.setdefault(folder_name(recipe), recipe)
        if other != recipe:
            problems.add(UserError(f"recipes {other!r} and {recipe!r} have one folder: rename one"))
    for sentence, found in wrong.items():
        whose = "" if found == names else f"recipe {', '.join(map(repr, found))}: "
        problems.add(UserError(whose + sentence))
    problems.tell()


def run_recipe(
    study: Study, config: ConfigDict, recipe: str, seed: int, workdir: Path
) -> dict[str, Any]:
    """Runs one recipe to its end, or goes on where it was stopped.

    Arguments are those of `config_of`.

    Returns:
      its row.

    Raises:
      ExistsError: another job has the run, or makes the data.
      UserError: it cannot be run on this machine, or in this workdir.
    """
    made = config_of(study, config, recipe, seed, workdir)
    fields = json.dumps(identity(to_dict(made), "synthesized"), sort_keys=True)
    data = workdir / SHARED / hashlib.sha256(fields.encode()).hexdigest()[:12]
    run = workdir / study.name / folder_name(recipe) / str(seed)
    first = dataclasses.replace(made, stages=tuple(n for n in made.stages if n in _OF_DATA))
    rest = dataclasses.replace(made, stages=tuple(n for n in made.stages if n not in _OF_DATA))
    row = {"recipe": recipe, "seed": seed, "changes": study.recipes[recipe]}
    _LOG.info("study: %s of seed %d, in %s", recipe, seed, run)
    try:
        if first.stages:
            with begun(first, data):
                run_stages(first, data)
        with begun(rest, run, data=str(data)):
            run_stages(rest, run)
    except DivergedError as error:
        _LOG.warning("study: %s of seed %d has failed: %s", recipe, seed, error)
        return row | {"failed": str(error)}
    rows, _ = read_metrics(run / "metrics.json")
    return row | {"rows": [dataclasses.asdict(found) for found in rows]}
