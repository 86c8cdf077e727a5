"""`python -m ladd_jax.study --study=NAME --workdir=DIR`: a table of runs, compared in one report.

Runs with the same data generator and samples share these. A run that is done is not run again, and
one that was stopped goes on. The same command, started once more beside the first, takes the runs
that are left.

Examples:

    python -m ladd_jax.study --study=noise --workdir=runs/studies
    python -m ladd_jax.study --study=heads --seeds=0,1,2 --only=all,last --workdir=runs/studies
    python -m ladd_jax.study --study=mine.json --config=small:data=pictures --workdir=runs/studies
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ladd_jax.cli.flags import WORKDIR, config
from ladd_jax.cli.run import run_without_config
from ladd_jax.errors import ExistsError, UserError
from ladd_jax.paths import COPY_LATER, expand_file, expand_local
from ladd_jax.ranges import SEED

if TYPE_CHECKING:
    from pathlib import Path

# Not `__name__`, which is `__main__` when this runs as a command.
_LOG = logging.getLogger("ladd_jax.study")

_WAIT_SECONDS = 60.0
"""Time between looks at runs that other jobs are doing."""

FLAGS = flags.FlagValues()
_STUDY = flags.DEFINE_string(
    "study", "", "Name of a study that comes with ladd_jax, or FILE.json.", flag_values=FLAGS
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds that each recipe is run with.", flag_values=FLAGS)
_ONLY = flags.DEFINE_list(
    "only", [], "Names of recipes to run; default: all of the study.", flag_values=FLAGS
)
_ROWS = flags.DEFINE_string(
    "rows",
    "",
    "JSON file that rows are added to; default: rows.json in the study's folder of the workdir.",
    flag_values=FLAGS,
)


def main() -> None:
    """The command."""
    # Heavy imports come after the flags are read, so that a mistake in them is told at once.
    import jax

    from ladd_jax.studies.report import format_study, write_study_report
    from ladd_jax.studies.rows import add_row
    from ladd_jax.studies.runs import RESERVED, check_recipes, check_rows, run_recipe
    from ladd_jax.studies.table import next_run, read_study

    study, seeds, only = read_study(_STUDY.value), _seeds(), list(_ONLY.value)
    if study.name in RESERVED:
        raise UserError(f"--study={_STUDY.value}: a folder here has that name, use another")
    workdir = expand_local(WORKDIR.value, "workdir", COPY_LATER)
    target = workdir / study.name / "rows.json"
    if _ROWS.value:
        target = expand_file(_ROWS.value, "rows", COPY_LATER)
    done = _done(target)
    next_run(study.recipes, done, only, seeds)
    start = _start()
    _LOG.info("study: checking the recipes")
    check_recipes(study, start, only or study.recipes, seeds, workdir, done)
    check_rows(study, start, done, workdir)
    elsewhere: set[tuple[str, int]] = set()
    while True:
        found = next_run(study.recipes, _done(target), only, seeds, elsewhere)
        if found is None:
            if not elsewhere:
                break
            time.sleep(_WAIT_SECONDS)
            elsewhere.clear()
            continue
        try:
            row = run_recipe(study, start, *found, workdir)
        except ExistsError as error:
            if jax.process_count() > 1:
                raise
            _LOG.info("study: leaving %s of seed %d to another job: %s", *found, error)
            elsewhere.add(found)
            continue
        if jax.process_index() == 0:
            add_row(target, row)
    done = _done(target)
    if jax.process_index() == 0:
        report = workdir / study.name / "report.html"
        write_study_report(report, study, _in_words(), done)
        print("\n\n".join([format_study(study, done), f"report: {report}"]))


def _start() -> ConfigDict:
    """The config of the command line.

    Raises:
      UserError: there is none, or it sets what other flags decide.
    """
    from ladd_jax.cli.flags import check_overrides
    from ladd_jax.config.architectures import read_architectures

    found = config()
    if found is None:
        raise UserError("there is no config: give --study and --config on the command line itself")
    if found.seed:
        raise UserError(f"seed is {found.seed}: give it with --seeds={found.seed}")
    read = ConfigDict(found.to_dict())
    read_architectures(read)
    check_overrides(read)
    return found


def _in_words() -> str:
    """The name of the command line's config, and the fields that the command line changes."""
    from pathlib import Path

    given = flags.FLAGS["config"]
    name = Path(config_flags.get_config_filename(given)).name.replace(".py", "", 1)
    changes = config_flags.get_override_values(given)
    return f"Config {name}" + "".join(f", {path} {value}" for path, value in changes.items())


def _with_config(arguments: Sequence[str]) -> list[str]:
    """The command line with the study's config, where it names none."""
    from ladd_jax.studies.table import read_study

    given = dict.fromkeys(("study", "config"), "")
    for word, following in itertools.pairwise([*arguments, ""]):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in given:
            given[name] = value if equals else following
    if not given["study"] or given["config"]:
        return list(arguments)
    command, *rest = arguments
    # Before the flags that change its fields.
    return [command, f"--config={read_study(given['study']).config}", *rest]


def _done(path: Path) -> list[dict[str, Any]]:
    """The rows of the runs that have ended, as process 0 reads them."""
    import jax

    from ladd_jax.parallel.processes import gather
    from ladd_jax.studies.rows import read_rows

    here = json.dumps(read_rows(path)) if jax.process_index() == 0 else ""
    return list(json.loads(gather(here)[0]))


def _seeds() -> list[int]:
    for text in _SEEDS.value:
        # Python reads no numbers of thousands of digits.
        if not text.isdecimal() or len(text) > 10 or int(text) not in SEED:
            raise UserError(f"--seeds has {text!r}: use {SEED}, with commas between them")
    if not _SEEDS.value:
        raise UserError("--seeds is empty: give one or more, with commas between them")
    return list(dict.fromkeys(map(int, _SEEDS.value)))


if __name__ == "__main__":
    run_without_config(
        main,
        FLAGS,
        "config",
        "workdir",
        needed={"study": "NAME", "workdir": "DIR"},
        complete=_with_config,
    )
