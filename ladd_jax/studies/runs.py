"""Runs of a study: each in a workdir of its own, on data that it shares where they are the same."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ladd_jax.cli.begin import begun
from ladd_jax.cli.preflight import look
from ladd_jax.config.architectures import check_like_model, read_architectures
from ladd_jax.config.fields import Config, Student, Teacher, base_config, to_dict, typed
from ladd_jax.config.identity import absent, identity
from ladd_jax.config.pretraining import further_trainings
from ladd_jax.errors import NotFiniteError, Problems, UserError
from ladd_jax.evaluation.rows import read_metrics
from ladd_jax.stages.run import run_stages
from ladd_jax.studies.encoded import share_encoded
from ladd_jax.studies.rows import Run
from ladd_jax.studies.table import Study, as_field, folder_name
from ladd_jax.training.collapse import CollapsedError
from ladd_jax.training.metrics import DivergedError

_LOG = logging.getLogger(__name__)

SHARED = "shared"
"""The folder of data beside those of studies."""

_PROGRAMS = "compilation_cache"

RESERVED = (SHARED, _PROGRAMS)
"""Names that no study can have."""

# Sections that the first rows did not know: with none of their fields set they do not count.
_LATER = ("prefer", "own")

_OF_DATA = ("encode", "pretrain", "prefer", "synthesize")
"""Stages whose results runs share, but for networks of other sizes."""


def config_of(study: Study, config: ConfigDict, recipe: str, seed: int, workdir: Path) -> Config:
    """The config of a run.

    Args:
      study: the study.
      config: what it starts from.
      recipe: the run's recipe.
      seed: the run's seed.
      workdir: of the studies, whose runs share compiled programs, unless the config has a place for
        them that is none of a workdir.

    Raises:
      UserError: the recipe sets what a config does not take, or what weights decide.
    """
    try:
        made = study.start(config, recipe, seed)
    # Of a field in the place of a section, or of a value of another type.
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{error}: name fields of a config, with values of their types") from error
    if made.compilation_cache in ("", base_config().compilation_cache):
        made.compilation_cache = str(workdir.resolve() / _PROGRAMS)
    read_architectures(made)
    for path, value in study.recipes[recipe].items():
        section, _, name = path.rpartition(".")
        if section in ("model", "student", "teacher", "dino") and path != "model.depth":
            found = made[section].get(name, as_field(value))
            if found != as_field(value):
                check_like_model(made, path, value)
                raise UserError(f"{path} is {value} and the weights have {found}: leave it out")
    found = typed(made)
    if "evaluate" not in found.stages:
        raise UserError(f"stages is {', '.join(found.stages)}: a study needs evaluate")
    return found


def check_recipes(
    study: Study, config: ConfigDict, recipes: Iterable[str], seed: int, workdir: Path
) -> None:
    """Raises UserError with all that is wrong with recipes, before any of them is run.

    Each is looked at as the command `main` would, all its stages together.
    """
    problems, names = Problems(), list(recipes)
    folders: dict[str, str] = {}
    wrong: dict[str, list[str]] = {}
    for recipe in names:
        own = Problems()
        with own.found():
            look(config_of(study, config, recipe, seed, workdir), own)
        for sentence in own.sentences:
            wrong.setdefault(sentence, []).append(recipe)
        other = folders.setdefault(folder_name(recipe), recipe)
        if other != recipe:
            problems.add(UserError(f"recipes {other!r} and {recipe!r} have one folder: rename one"))
    for sentence, found in wrong.items():
        whose = "" if found == names else f"recipe {', '.join(map(repr, found))}: "
        problems.add(UserError(whose + sentence))
    problems.tell()


def digest_of(config: Config) -> str:
    """What a run's numbers depend on, as a row keeps it."""
    found = _digest(config, "distil", "evaluate")
    if config.prefer.after:
        # No result of a stage depends on what is added to a student that is done.
        added = json.dumps([found, to_dict(config.prefer)], sort_keys=True)
        found = hashlib.sha256(added.encode()).hexdigest()
    return found[:16]


def _digest(config: Config, result: str, *sections: str) -> str:
    """Of the identity of a result, and of further sections.

    Fields with the value that stands for none do not count: so rows and data of an older version
    have the same one when there is a new field.
    """
    fields, default = to_dict(config), absent()
    found = identity(fields, result)
    kept = {
        name: _unlike(value, default.get(name))
        for name, value in (found["config"] | {name: fields[name] for name in sections}).items()
    }
    kept = {name: value for name, value in kept.items() if value or name not in _LATER}
    return hashlib.sha256(json.dumps([result, kept], sort_keys=True).encode()).hexdigest()


def _unlike(value: Any, default: Any) -> Any:
    """Of nested fields those that differ from their default."""
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    return {
        name: _unlike(inner, default.get(name))
        for name, inner in value.items()
        if name not in default or inner != default[name]
    }


def check_rows(study: Study, config: ConfigDict, done: Iterable[Run], workdir: Path) -> None:
    """Whether runs that have rows are of the config that runs are made with now.

    Args:
      study: the study.
      config: what it starts from.
      done: rows; those of an older version do not say, and those of recipes that the study has no
        more do not count.
      workdir: of the studies.

    Raises:
      UserError: one is of another config.
    """
    for run in done:
        if run["recipe"] not in study.recipes or "config" not in run:
            continue
        made = config_of(study, config, run["recipe"], run["seed"], workdir)
        if run["config"] != digest_of(made):
            raise UserError(
                f"the row of {run['recipe']!r} and seed {run['seed']} is of another config: set it "
                f"back, use another --workdir or --rows, or remove that row"
            )


def run_recipe(
    study: Study, config: ConfigDict, recipe: str, seed: int, workdir: Path
) -> Mapping[str, Any]:
    """Runs one recipe to its end, or goes on where it was stopped.

    Arguments are those of `config_of`.

    Returns:
      its row, on process 0; on others what is the same for all of its runs.

    Raises:
      ExistsError: another job has the run, or makes the data.
      UserError: it cannot be run on this machine, or in this workdir.
    """
    made = config_of(study, config, recipe, seed, workdir)
    data = workdir / SHARED / _digest(made, "synthesized")[:12]
    run = workdir / study.name / folder_name(recipe) / str(seed)
    # The data are those of all runs with this data generator, whatever students and teachers.
    first = dataclasses.replace(
        made,
        stages=tuple(n for n in made.stages if n in _OF_DATA),
        student=Student(),
        teacher=made.teacher if made.teacher.weights else Teacher(),
    )
    own = {"pretrain"} if further_trainings(made) else set()
    rest = dataclasses.replace(
        made, stages=tuple(n for n in made.stages if n not in _OF_DATA or n in own)
    )
    row = {
        "recipe": recipe,
        "seed": seed,
        "changes": study.recipes[recipe],
        "config": digest_of(made),
    }
    _LOG.info("study: %s of seed %d, in %s", recipe, seed, run)
    try:
        if first.stages:
            if jax.process_index() == 0:
                share_encoded(first, data)
            with begun(first, data):
                run_stages(first, data)
        with begun(rest, run, data=str(data)):
            run_stages(rest, run)
    except (DivergedError, CollapsedError, NotFiniteError) as error:
        _LOG.warning("study: %s of seed %d has failed: %s", recipe, seed, error)
        return row | {"failed": str(error)}
    if jax.process_index():
        return row
    rows, _ = read_metrics(run / "metrics.json")
    return row | {"rows": [dataclasses.asdict(found) for found in rows]}
