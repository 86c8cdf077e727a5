r"""`python -m ladd_jax.evaluate --config=FILE --workdir=DIR`: a table and a report of a run.

Or, for any pictures, `python -m ladd_jax.evaluate --samples=DIR --extractor=NAME:PATH`, with
`--reference=DIR` for distances to other pictures and `--prompts=FILE` for pictures that do not say
their prompts.

Or, for people to judge, `python -m ladd_jax.evaluate --compare=A,B --page=DIR`: a page with the
same prompts and seeds of runs, exports or folders of pictures side by side, on which people vote
without knowing which is which. Models that edit or fill holes are given the pictures of a run's
held-out records. `python -m ladd_jax.evaluate --votes=FILE,FILE` scores their votes.

Examples:

    python -m ladd_jax.evaluate --config=digits --workdir=runs/digits
    python -m ladd_jax.evaluate --samples=pictures --reference=photos \
        --extractor=inception:pt_inception-2015-12-05-6726825d.pth
    python -m ladd_jax.evaluate --samples=pictures --extractor=clip:openai/clip-vit-large-patch14
    python -m ladd_jax.evaluate --compare=runs/a,runs/b --prompts=prompts.txt --page=arena
    python -m ladd_jax.evaluate --compare=runs/a,runs/b --prompts=prompts.txt --page=arena \
        --condition=label=3
    python -m ladd_jax.evaluate --compare ladd=runs/a turbo=sd3-turbo photos --page=arena
    python -m ladd_jax.evaluate --votes votes_*.json --page=arena --out=elo.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from ladd_jax.cli.flags import COLUMN, PROMPTS, check_ranges
from ladd_jax.cli.network_flags import define_conditions
from ladd_jax.cli.run import run, run_without_config
from ladd_jax.errors import UserError
from ladd_jax.names import counted, listed
from ladd_jax.paths import COPY_LATER, expand, expand_file, expand_local
from ladd_jax.ranges import COUNT, SEED, STEPS, Range

if TYPE_CHECKING:
    from ladd_jax.config.fields import Config

FLAGS = flags.FlagValues()
_SAMPLES = flags.DEFINE_string("samples", "", "Folder of pictures.", flag_values=FLAGS)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "Folder of pictures to compare them with.", flag_values=FLAGS
)
_EXTRACTOR = flags.DEFINE_string(
    "extractor",
    "",
    "inception:FILE of weights, or clip:, pickscore: or hpsv2: with a folder or owner/name.",
    flag_values=FLAGS,
)
_METRICS = flags.DEFINE_list(
    "metrics", None, "Metrics to compute; default: all that there are.", flag_values=FLAGS
)
_RESAMPLES = flags.DEFINE_integer(
    "resamples",
    0,
    "Resamples for each interval, each as costly as the metric.",
    lower_bound=0,
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string("out", None, "JSON file for the rows or scores.", flag_values=FLAGS)
_COMPARE = flags.DEFINE_multi_string(
    "compare",
    [],
    "PATH or NAME=PATH of what to show side by side: a run's workdir, an exported or released "
    "pipeline, or a folder of pictures; several with commas or spaces between, or given again.",
    flag_values=FLAGS,
)
_PAGE = flags.DEFINE_string(
    "page", "", "Folder of the page to make; with --votes, of theirs.", flag_values=FLAGS
)
_VOTES = flags.DEFINE_multi_string(
    "votes",
    [],
    "Files of votes on one page; several with commas or spaces between, or given again.",
    flag_values=FLAGS,
)
_CONDITION = define_conditions(FLAGS)
_STEPS = flags.DEFINE_list(
    "steps",
    [],
    "Numbers of steps to show of each student; default: those of 1, 2 and 4 that it has.",
    flag_values=FLAGS,
)
_TEACHER_STEPS = flags.DEFINE_integer(
    "teacher_steps",
    50,
    "Steps of the data generators to show; 0 leaves the teachers of runs out.",
    flag_values=FLAGS,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the first picture to show of each prompt.", flag_values=FLAGS
)
_NUM = flags.DEFINE_integer("num", 1, "Pictures to show of each prompt.", flag_values=FLAGS)
_ASPECT = flags.DEFINE_string(
    "aspect",
    "1:1",
    "Shape to show: W:H takes the nearest bucket of the training; WxH is in pixels.",
    flag_values=FLAGS,
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 1, "Pictures to sample at once.", flag_values=FLAGS
)

_OF_COMMAND = {
    "compare": (
        "compare", "page", "condition", "steps", "teacher_steps", "seed", "num", "aspect",
        "batch_size",
    ),
    "votes": ("votes", "page", "resamples", "out"),
    "samples": ("samples", "reference", "extractor", "metrics", "resamples", "out"),
}  # fmt: skip
"""The commands that need no config, by the flag that names each, with their flags."""

_ELO_RESAMPLES = 1000


def folders() -> None:
    """The command on folders."""
    # Heavy imports come after the flags are read, so that a mistake in them is told at once.
    import jax

    from ladd_jax.data.picture_folder import PictureFolder
    from ladd_jax.data.prompt_sets import read_prompt_set
    from ladd_jax.evaluation.rows import format_table, write_metrics
    from ladd_jax.parallel.mesh import process_mesh
    from ladd_jax.stages.folders import default_metrics, judge_folders, open_named

    prompts = read_prompt_set(PROMPTS.value, COLUMN.value) if PROMPTS.value else None
    out = expand_file(_OUT.value, "out", COPY_LATER) if _OUT.value else None
    samples = PictureFolder(expand(_SAMPLES.value), prompts)
    reference = PictureFolder(expand(_REFERENCE.value)) if _REFERENCE.value else None
    extractor = open_named(_EXTRACTOR.value, 0, process_mesh({"fsdp": -1}))
    row = judge_folders(
        samples,
        reference,
        extractor,
        _METRICS.value or default_metrics(_EXTRACTOR.value, reference is not None),
        resamples=_RESAMPLES.value,
        seed=0,
    )
    if jax.process_index():
        return
    print(format_table([row]))
    if out is not None:
        write_metrics(out, [row], extractor=_EXTRACTOR.value, samples=len(samples))


def main(config: Config, workdir: Path) -> None:
    """The command on a run."""
    from ladd_jax.stages.evaluate import evaluate

    evaluate(config, workdir)


def side_by_side() -> None:
    """The command that shows models side by side."""
    from ladd_jax.data.prompt_sets import read_prompt_set
    from ladd_jax.evaluation.arena.entries import read_entries
    from ladd_jax.evaluation.arena.page import check_free

    entries = read_entries(_COMPARE.value)
    steps = _whole_numbers(_STEPS.value)
    ranges = {
        "teacher_steps": Range(least=0, most=STEPS.most),
        "seed": SEED,
        "num": COUNT,
        "batch_size": COUNT,
    }
    check_ranges(FLAGS, ranges)
    page = expand_local(_PAGE.value, "page", COPY_LATER)
    check_free(page)
    prompts = read_prompt_set(PROMPTS.value, COLUMN.value) if PROMPTS.value else None

    import jax

    from ladd_jax.parallel.mesh import make_mesh
    from ladd_jax.stages.arena import compare
    from ladd_jax.stages.compared import Asked
    from ladd_jax.stages.conditions import parse

    conditions = parse(_CONDITION.value)
    if jax.process_index():
        return
    asked = Asked(
        prompts,
        steps,
        _TEACHER_STEPS.value,
        _SEED.value,
        _NUM.value,
        _ASPECT.value,
        _BATCH_SIZE.value,
        conditions,
    )
    found = compare(entries, page, asked, make_mesh({"fsdp": -1}, jax.local_devices()))
    count = counted(len(found["samples"]), "picture")
    print(f"{count} of each model, page: {page / 'index.html'}")


def score_votes() -> None:
    """The command that scores votes."""
    from ladd_jax.evaluation.arena.scores import Scores
    from ladd_jax.evaluation.arena.votes import read_votes
    from ladd_jax.paths import matches

    out = expand_file(_OUT.value, "out", COPY_LATER) if _OUT.value else None
    files = list(dict.fromkeys(file for value in _VOTES.value for file in matches(value)))
    ballot = read_votes(files, expand(_PAGE.value) if _PAGE.value else None)
    scores = Scores(ballot, _RESAMPLES.value or _ELO_RESAMPLES)
    print(scores)
    if out is not None:
        scores.write(out)


def _whole_numbers(values: Sequence[str]) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(value) for value in values))
    except ValueError as error:
        raise UserError(
            f"--steps={','.join(values)} is not a list of whole numbers: write them as in 1,2,4"
        ) from error
    for number in numbers:
        if number not in COUNT:
            raise UserError(f"--steps is {number}: use {COUNT}")
    return numbers


def command_of(arguments: Sequence[str]) -> str:
    """Which of the commands without a config is meant; empty for the command on a run."""
    given = _given(arguments)
    for command in ("compare", "votes"):
        if command in given:
            return command
    return "samples" if any(name in FLAGS for name in given) else ""


def complete(arguments: Sequence[str]) -> list[str]:
    """The command line, with a flag before each of several values.

    Raises:
      UserError: a flag belongs to another of the commands.
    """
    given = _given(arguments[1:])
    command = command_of(arguments[1:])
    for name in given:
        if name in FLAGS and name not in _OF_COMMAND[command]:
            theirs = listed([f"--{other}" for other, own in _OF_COMMAND.items() if name in own])
            if command not in given:
                raise UserError(f"--{name} is a flag of {theirs}: give that, too, or leave it out")
            raise UserError(f"--{name} is a flag of {theirs} and not of --{command}: leave it out")
    return _spread(arguments)


def _given(arguments: Sequence[str]) -> list[str]:
    words = [argument for argument in arguments if argument.startswith("-")]
    return [word.lstrip("-").partition("=")[0] for word in words]


def _spread(arguments: Sequence[str]) -> list[str]:
    """The words with `--compare` or `--votes` before each of its values: shells expand patterns."""
    found: list[str] = []
    flag = ""
    for word in arguments:
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0]
            flag = name if name in ("compare", "votes") else ""
        elif flag:
            if found[-1] == f"--{flag}":
                found.pop()
            word = f"--{flag}={word}"
        found.append(word)
    return found


_BODIES = {
    "compare": (side_by_side, {"compare": "A,B", "page": "DIR"}),
    "votes": (score_votes, {"votes": "FILE"}),
    "samples": (folders, {"samples": "DIR", "extractor": "NAME:PATH"}),
}

if __name__ == "__main__":
    asked_for = command_of(sys.argv[1:])
    if asked_for:
        body, needed = _BODIES[asked_for]
        shared = () if asked_for == "votes" else ("prompts", "column")
        run_without_config(body, FLAGS, *shared, needed=needed, complete=complete)
    else:
        run(main, FLAGS, stage="evaluate")
