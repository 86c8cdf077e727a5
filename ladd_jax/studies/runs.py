"""Runs of a study: each has its own workdir, and runs with the same data share it."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
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
from ladd_jax.studies.table import Study, as_field, folder_name, next_run
from ladd_jax.training.collapse import CollapsedError
from ladd_jax.training.metrics import DivergedError

_LOG = logging.getLogger(__name__)

SHARED = "shared"
"""The folder of shared data, beside the folders of the studies."""

_PROGRAMS = "compilation_cache"

RESERVED = (SHARED, _PROGRAMS)
"""Folder names that a study must not use as its own name."""

# Sections newer than the first rows of studies: they only count if one of their fields is set.
_LATER = ("prefer", "own")

_OF_DATA = ("encode", "pretrain", "prefer", "synthesize")
"""Stages whose results runs share, except for networks of other sizes."""


def config_of(study: Study, config: ConfigDict, recipe: str, seed: int, workdir: Path) -> Config:
    """The config of a run.

    Args:
      study: the study.
      config: the config that the study starts from.
      recipe: name of the run's recipe.
      seed: the run's seed.
      workdir: workdir of the studies, whose runs share a cache of compiled programs there unless
        the config names another place for it.

    Raises:
      UserError: the recipe sets a field that a config does not accept, or that the weights fix.
    """
    try:
        made = study.start(config, recipe, seed)
    # Raised where a recipe names a field as if it were a section, or gives a value of another type.
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
    study: Study,
    config: ConfigDict,
    recipes: Iterable[str],
    seeds: Sequence[int],
    workdir: Path,
    done: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Raises UserError with everything that is wrong with the recipes, before any of them is run.

    Each recipe is checked as the command `main` would check it, with all of its stages, and with
    the folders that its next run writes into, if one is left.

    Args:
      study: the study.
      config: what the study starts from.
      recipes: names of the recipes.
      seeds: seeds that each recipe is run with.
      workdir: directory of all studies.
      done: rows, see `next_run`.
    """
    problems, names = Problems(), list(recipes)
    folders: dict[str, str] = {}
    wrong: dict[str, list[str]] = {}
    for recipe in names:
        own = Problems()
        with own.found():
            left = next_run(study.recipes, done, [recipe], seeds)
            _, seed = left or (recipe, seeds[0])
            made = config_of(study, config, recipe, seed, workdir)
            data, run = _folders(study, made, recipe, seed, workdir) if left else (None, None)
            look(made, own, run, data=data)
        for sentence in own.sentences:
            wrong.setdefault(sentence, []).append(recipe)
        other = folders.setdefault(folder_name(recipe), recipe)
        if other != recipe:
            problems.add(UserError(f"recipes {other!r} and {recipe!r} have one folder: rename one"))
    for sentence, found in wrong.items():
        whose = "" if found == names else f"recipe {', '.join(map(repr, found))}: "
        problems.add(UserError(whose + sentence))
    problems.tell()


def _folders(
    study: Study, made: Config, recipe: str, seed: int, workdir: Path
) -> tuple[Path, Path]:
    """The folder of the data that a run shares, and its workdir."""
    data = workdir / SHARED / _digest(made, "synthesized")[:12]
    return data, workdir / study.name / folder_name(recipe) / str(seed)


def digest_of(config: Config) -> str:
    """A digest of what a run's numbers depend on, which is kept in its row."""
    found = _digest(config, "distil", "evaluate")
    if config.prefer.after:
        # `identity` leaves `prefer` out, since no stage's result depends on a LoRA that is added to
        # the finished student; the numbers do.
        added = json.dumps([found, to_dict(config.prefer)], sort_keys=True)
        found = hashlib.sha256(added.encode()).hexdigest()
    return found[:16]


def _digest(config: Config, result: str, *sections: str) -> str:
    """A digest of the identity of a result, and of further sections of the config.

    Fields whose value means that they are not set do not count. So rows and data of an older
    version keep their digest when a new field is added.
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
    """The nested fields that differ from their default."""
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    return {
        name: _unlike(inner, default.get(name))
        for name, inner in value.items()
        if name not in default or inner != default[name]
    }


def check_rows(study: Study, config: ConfigDict, done: Iterable[Run], workdir: Path) -> None:
    """Checks that existing rows were made with the config that runs would be made with now.

    Args:
      study: the study.
      config: the config that it starts from.
      done: the rows; those of an older version without a digest, and those of recipes that are no
        longer in the study, are not checked.
      workdir: workdir of the studies.

    Raises:
      UserError: a row was made with another config.
    """
    for run in done:
        if run["recipe"] not in study.recipes or "config" not in run:
            continue
        made = config_of(study, config, run["recipe"], run["seed"], workdir)
        if run["config"] != digest_of(made):
            raise UserError(
                f"the row of {run['recipe']!r} and seed {run['seed']} was made with another "
                f"config: set it back, use another --workdir or --rows, or remove that row"
            )


def run_recipe(
    study: Study, config: ConfigDict, recipe: str, seed: int, workdir: Path
) -> Mapping[str, Any]:
    """Runs one recipe to its end, from where it was stopped if it was.

    Takes the arguments of `config_of`.

    Returns:
      the run's row; processes other than 0 get it without `rows`.

    Raises:
      ExistsError: another job has the run, or is making the data.
      UserError: it cannot be run on this machine, or in this workdir.
    """
    made = config_of(study, config, recipe, seed, workdir)
    data, run = _folders(study, made, recipe, seed, workdir)
    # Data belong to all runs with this data generator, so their config must not depend on the
    # student and the teacher of one run.
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
