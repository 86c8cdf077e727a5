"""`python -m ladd_jax.evaluate --config=FILE --workdir=DIR`: a table and a report of a run.

Or, of any pictures, `python -m ladd_jax.evaluate --samples=DIR --extractor=NAME:PATH`, with
`--reference=DIR` for distances to others and `--prompts=FILE` for pictures that do not tell theirs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from ladd_jax.cli.flags import PROMPTS
from ladd_jax.cli.run import run, run_without_config
from ladd_jax.data.picture_folder import PictureFolder
from ladd_jax.data.prompt_sets import read_prompt_set
from ladd_jax.errors import UserError
from ladd_jax.evaluation.rows import format_table, write_metrics
from ladd_jax.parallel.mesh import process_mesh
from ladd_jax.stages.evaluate import evaluate
from ladd_jax.stages.folders import default_metrics, judge_folders, open_named

FLAGS = flags.FlagValues()
_SAMPLES = flags.DEFINE_string("samples", None, "Folder of pictures.", flag_values=FLAGS)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "Folder of pictures that they are compared with.", flag_values=FLAGS
)
_EXTRACTOR = flags.DEFINE_string(
    "extractor",
    None,
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
    if not _SAMPLES.value or not _EXTRACTOR.value:
        raise UserError("--samples=DIR and --extractor=NAME:PATH are needed")
    prompts = read_prompt_set(PROMPTS.value) if PROMPTS.value else None
    samples = PictureFolder(Path(_SAMPLES.value), prompts)
    reference = PictureFolder(Path(_REFERENCE.value)) if _REFERENCE.value else None
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
    if _OUT.value:
        write_metrics(_OUT.value, [row], extractor=_EXTRACTOR.value, samples=len(samples))


def on_folders(arguments: Sequence[str]) -> bool:
    """Whether flags of the command on folders are among the arguments."""
    given = [argument for argument in arguments if argument.startswith("-")]
    return any(argument.lstrip("-").partition("=")[0] in FLAGS for argument in given)


if __name__ == "__main__":
    if on_folders(sys.argv[1:]):
        run_without_config(folders, FLAGS, "prompts")
    else:
        run(evaluate, FLAGS)
