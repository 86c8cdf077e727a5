r"""`python -m ladd_jax.sample --checkpoint=DIR --prompt="..." --out=DIR`: pictures.

`--checkpoint` is the workdir of a run, whose student's average is sampled if `--model` names no
other, or an exported or released pipeline. A picture depends on its prompt and its seed alone:
number i of `--seed=S` is number 0 of `--seed=S+i` whatever `--num` is, and but for rounding
whatever `--batch_size` is.

Examples:

    python -m ladd_jax.sample --checkpoint=runs/digits --prompt="three and seven" --aspect=2:1 \
        --out=pictures
    python -m ladd_jax.sample --checkpoint=runs/sd3_turbo --prompts=prompts.txt --steps=1 --num=1 \
        --out=pictures
    python -m ladd_jax.sample --checkpoint=sd3-turbo --prompt="a red cat" --seed=7 --out=pictures
    python -m ladd_jax.sample --checkpoint=sd3-turbo --lora=style.safetensors:0.8 \
        --prompt="a red cat" --out=pictures
    python -m ladd_jax.sample --checkpoint=runs/sd3_turbo --image=sketch.png --strength=0.75 \
        --prompt="a red cat" --out=pictures
    python -m ladd_jax.sample --checkpoint=runs/sd3_edit --image=room.png \
        --prompt="make the sofa blue" --out=pictures
    python -m ladd_jax.sample --checkpoint=runs/sd3_inpaint --image=room.png --mask=sofa.png \
        --prompt="a red cat on a chair" --out=pictures
"""

import logging
from collections.abc import Callable
from pathlib import Path

from absl import flags

from ladd_jax.cli.flags import COLUMN, PROMPTS, check_ranges
from ladd_jax.cli.network_flags import define_conditions, define_dtype, define_loras, define_step
from ladd_jax.cli.run import run_without_config
from ladd_jax.errors import UserError
from ladd_jax.paths import COPY_LATER, expand, expand_local
from ladd_jax.ranges import COUNT, NOT_NEGATIVE, POSITIVE, STEPS, STRENGTH, Range
from ladd_jax.stages.names import MODELS

# Not `__name__`, which is `__main__` when this runs as a command.
_LOG = logging.getLogger("ladd_jax.sample")

_USUAL_STRENGTH = 0.5

FLAGS = flags.FlagValues()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "",
    "A run's workdir, a pipeline's folder, or owner/name of the hub.",
    flag_values=FLAGS,
)


class _Models(flags.EnumParser):
    """Parses a network of a run; the data generator has a second name, teacher."""

    def parse(self, argument: str) -> str:
        return super().parse({"teacher": "generator"}.get(argument, argument))


_MODEL = flags.DEFINE(
    _Models(MODELS),
    "model",
    None,
    f"<{'|'.join(MODELS)}>: which network of a run; default: ema.",
    flag_values=FLAGS,
)
_STEP = define_step(FLAGS)
_LORA = define_loras(FLAGS)
_PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "What to show; may be given several times.", flag_values=FLAGS
)
_GENEVAL = flags.DEFINE_string(
    "geneval",
    None,
    "GenEval's evaluation_metadata.jsonl: its prompts, in the folders that its scorer reads.",
    flag_values=FLAGS,
)
_PIEBENCH = flags.DEFINE_string(
    "piebench",
    None,
    "PIE-Bench's mapping_file.json: its pictures and instructions, for a network that edits, in "
    "the folder that its scorer reads.",
    flag_values=FLAGS,
)
_IMAGE = flags.DEFINE_string(
    "image",
    None,
    "Pictures to start from instead of pure noise, or, for a network that edits or fills holes, "
    "the pictures that it is given: one, a folder, a pattern or a list of them; one for each "
    "prompt, or one for all, or one prompt for all.",
    flag_values=FLAGS,
)
_MASK = flags.DEFINE_string(
    "mask",
    None,
    "For a network that fills holes: a picture of the size of --image, white where that is to be "
    "filled; all else stays as it is. One for all pictures, or one for each.",
    flag_values=FLAGS,
)
_CONDITION = define_conditions(FLAGS)
_STRENGTH = flags.DEFINE_float(
    "strength",
    None,
    "Share of noise that a picture of --image starts with, up to 1, which leaves nothing of it; a "
    f"student starts at its next time below. Default: {_USUAL_STRENGTH}.",
    flag_values=FLAGS,
)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Passes of the network; default: all its times.", flag_values=FLAGS
)
_ASPECT = flags.DEFINE_string(
    "aspect",
    "1:1",
    "W:H takes the nearest bucket of the training; WxH is in pixels.",
    flag_values=FLAGS,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the first picture of each prompt.", flag_values=FLAGS
)
_NUM = flags.DEFINE_integer("num", 4, "Pictures of each prompt.", flag_values=FLAGS)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Pictures sampled at once.", flag_values=FLAGS)
_GUIDANCE = flags.DEFINE_float(
    "guidance",
    None,
    "Guidance of the data generator, or of a student that was trained to be told it; default: its "
    "config's.",
    flag_values=FLAGS,
)
_IMAGE_GUIDANCE = flags.DEFINE_float(
    "image_guidance",
    None,
    "Guidance on the picture that is edited, for the data generator or a student that was trained "
    "to be told it; default: its config's.",
    flag_values=FLAGS,
)
_SHIFT = flags.DEFINE_float(
    "shift",
    None,
    "Shift of the data generator's schedule; default: its config's.",
    flag_values=FLAGS,
)
_DTYPE = define_dtype(FLAGS)
_OUT = flags.DEFINE_string("out", "", "Folder of the pictures.", flag_values=FLAGS)


def main() -> None:
    """The command."""
    # Heavy imports come after the flags are read, so that a mistake in them is told at once.
    import jax
    import jax.numpy as jnp

    from ladd_jax.cli.compilation_cache import keep_programs
    from ladd_jax.cli.disk_space import check_writable
    from ladd_jax.config.workdir import read
    from ladd_jax.data.prompt_sets import read_prompt_set
    from ladd_jax.data.prompts import check_prompt
    from ladd_jax.evaluation.geneval import picture_file, read_geneval, write_records
    from ladd_jax.evaluation.piebench import make_places, read_piebench
    from ladd_jax.parallel.mesh import make_mesh
    from ladd_jax.stages.conditions import parse
    from ladd_jax.stages.given import GivenFiles, check_edits, check_given
    from ladd_jax.stages.sample import choose_bucket, sample
    from ladd_jax.stages.starts import find_starts, look_at_start, pair
    from ladd_jax.stages.trained import check_text_alone, is_run, open_trained

    prompts = [check_prompt(prompt, "--prompt") for prompt in _PROMPT.value]
    if PROMPTS.value:
        prompts += read_prompt_set(PROMPTS.value, COLUMN.value)
    records = []
    if _GENEVAL.value:
        if prompts:
            raise UserError("--geneval has its own prompts: leave --prompt and --prompts out")
        if _IMAGE.value:
            raise UserError("--geneval judges pictures of prompts alone: leave --image out")
        records = read_geneval(expand(_GENEVAL.value))
        prompts = [record["prompt"] for record in records]
    tasks = []
    if _PIEBENCH.value:
        if prompts or _IMAGE.value:
            raise UserError(
                "--piebench has its own instructions and pictures: leave --prompt, --prompts, "
                "--geneval and --image out"
            )
        tasks = read_piebench(expand(_PIEBENCH.value))
        prompts = [task.instruction for task in tasks]
    if not prompts:
        raise UserError('there is no prompt: give --prompt="..." or --prompts=FILE')
    check_ranges(
        FLAGS,
        {
            "num": COUNT,
            "batch_size": COUNT,
            # The name of a file contains it, and has limited room.
            "seed": Range(least=0, most=2**64 - 1),
            "steps": STEPS,
            "guidance": NOT_NEGATIVE,
            "image_guidance": NOT_NEGATIVE,
            "shift": POSITIVE,
            "strength": STRENGTH,
        },
    )
    if _STRENGTH.value is not None and not _IMAGE.value:
        raise UserError(f"--strength={_STRENGTH.value:g} needs a picture: give --image=FILE, too")
    if _MASK.value and not _IMAGE.value:
        raise UserError(f"--mask={_MASK.value} needs a picture: give --image=FILE, too")
    if tasks and _NUM.present and _NUM.value != 1:
        raise UserError(f"--num={_NUM.value} and --piebench has one edit of each picture: use 1")
    values = parse(_CONDITION.value)
    if len(values) > 1 and (records or tasks):
        raise UserError(
            f"--condition gives {len(values)} values of a name, and --geneval and --piebench have "
            f"their own prompts: give one of each"
        )
    images = find_starts(_IMAGE.value) if _IMAGE.value else [task.image for task in tasks]
    for task in tasks:
        look_at_start(task.image)
    masks = find_starts(_MASK.value) if _MASK.value else []
    out = expand_local(_OUT.value, "out", COPY_LATER)
    check_writable(out, "out")
    workdir = expand(_CHECKPOINT.value)
    if is_run(workdir):
        keep_programs(read(workdir).compilation_cache, workdir)
    mesh = make_mesh({"fsdp": -1}, jax.local_devices())
    dtype = None if _DTYPE.value is None else jnp.dtype(_DTYPE.value)
    trained = open_trained(_CHECKPOINT.value, _MODEL.value, _STEP.value, dtype, mesh, _LORA.value)
    if records:
        check_text_alone(trained, "--geneval")
    if tasks:
        check_edits(trained, "--piebench")
    check_given(trained, len(images), len(masks), _STRENGTH.value)
    files_given = [
        GivenFiles(image, masks[i % len(masks)] if masks else None)
        for i, image in enumerate(images)
    ]
    starts = bool(images) and not trained.reads_picture
    strength = (_STRENGTH.value or _USUAL_STRENGTH) if starts else None
    at = "" if trained.step is None else f" of step {trained.step}"
    _LOG.info("sample: %s of %s%s, into %s", trained.model, _CHECKPOINT.value, at, out)
    place: Callable[[int, int], Path] | None = None
    if records:
        write_records(out, records)
        place = picture_file
    elif tasks:
        place = make_places(out, tasks)
    elif images:
        prompts, files_given = pair(prompts, files_given)
    if place is None:
        # The same prompt twice would give the same pictures.
        files: list[GivenFiles | None] = [*files_given] or [None] * len(prompts)
        rows, values = pair(list(zip(prompts, files, strict=True)), values, "values of --condition")
        prompts, files_given = [row[0] for row in rows], [row[1] for row in rows if row[1]]
    else:
        values = values * len(prompts)
    sampling = trained.sampling(
        _STEPS.value, _GUIDANCE.value, _SHIFT.value, strength, _IMAGE_GUIDANCE.value
    )
    if starts and trained.times:
        _LOG.info(
            "sample: strength %g, starting at the student's time %g", strength, sampling.sigmas[0]
        )
    written = sample(
        trained,
        prompts,
        sampling,
        choose_bucket(_ASPECT.value, trained),
        out,
        seed=_SEED.value,
        count=1 if tasks else _NUM.value,
        batch_size=_BATCH_SIZE.value,
        mesh=mesh,
        place=place,
        images=files_given,
        values=[dict(pairs) for pairs in values],
    )
    print(f"{len(written)} files in {out}, the last is {written[-1]}")


if __name__ == "__main__":
    run_without_config(main, FLAGS, "prompts", "column", needed={"checkpoint": "DIR", "out": "DIR"})
