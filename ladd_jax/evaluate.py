"""`python -m ladd_jax.evaluate --config=FILE --workdir=DIR`: a table and a report of a run.

Or, of any pictures, `python -m ladd_jax.evaluate --samples=DIR --extractor=NAME:PATH`, with
`--reference=DIR` for distances to others and `--prompts=FILE` for pictures that do not tell theirs.

Examples:

    python -m ladd_jax.evaluate --config=digits --workdir=runs/digits
    python -m ladd_jax.evaluate --samples=pictures --reference=photos \
        --extractor=inception:pt_inception-2015-12-05-6726825d.pth
    python -m ladd_jax.evaluate --samples=pictures --extractor=clip:openai/clip-vit-large-patch14
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from ladd_jax.cli.flags import COLUMN, PROMPTS
from ladd_jax.cli.run import run, run_without_config
from ladd_jax.paths import COPY_LATER, expand, expand_local

if TYPE_CHECKING:
    from ladd_jax.config.fields import Config

FLAGS = flags.FlagValues()
_SAMPLES = flags.DEFINE_string("samples", "", "Folder of pictures.", flag_values=FLAGS)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "Folder of pictures that they are compared with.", flag_values=FLAGS
)
_EXTRACTOR = flags.DEFINE_string(
    "extractor",
    "",
    "inception:FILE of weights, or clip:, pickscore: or hpsv2: with a folder or owner/name.",
    flag_values=FLAGS,
)
_METRICS = flags.DEFINE_list(
    "metrics", None, "Which metrics; default: all that are there.", flag_values=FLAGS
)
_RESAMPLES = flags.DEFINE_integer(
    "resamples",
    0,
    "Resamples for each interval, each as costly as the metric.",
    lower_bound=0,
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string("out", None, "JSON file of the rows.", flag_values=FLAGS)


def folders() -> None:
    """The command on folders."""
    # What is heavy is imported once the flags are read: a mistake in them is told at once.
    import jax

    from ladd_jax.data.picture_folder import PictureFolder
    from ladd_jax.data.prompt_sets import read_prompt_set
    from ladd_jax.evaluation.rows import format_table, write_metrics
    from ladd_jax.parallel.mesh import process_mesh
    from ladd_jax.stages.folders import default_metrics, judge_folders, open_named

    prompts = read_prompt_set(PROMPTS.value, COLUMN.value) if PROMPTS.value else None
    out = expand_local(_OUT.value, "out", COPY_LATER) if _OUT.value else None
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


def on_folders(arguments: Sequence[str]) -> bool:
    """Whether flags of the command on folders are among the arguments."""
    given = [argument for argument in arguments if argument.startswith("-")]
    return any(argument.lstrip("-").partition("=")[0] in FLAGS for argument in given)


if __name__ == "__main__":
    if on_folders(sys.argv[1:]):
        needed = {"samples": "DIR", "extractor": "NAME:PATH"}
        run_without_config(folders, FLAGS, "prompts", "column", needed=needed)
    else:
        run(main, FLAGS, stage="evaluate")
