"""`python -m ladd_jax.export --workdir=DIR --out=DIR`: a student for diffusers and ComfyUI.

The config is the workdir's. `--layout=diffusers` writes a folder that
`StableDiffusion3Pipeline.from_pretrained` loads, `single` the transformer in the form of Stability
AI's single files, and `both` one folder with both. For a student with adapters
(`distil.lora.rank`), `lora` writes these alone, and `kohya` the same with the names of Kohya's
scripts. A model card says how to call them.

Examples:

    python -m ladd_jax.export --workdir=runs/sd3_turbo --out=sd3-turbo --layout=both
    python -m ladd_jax.export --workdir=runs/sd3_turbo --out=gs://BUCKET/sd3-turbo
    python -m ladd_jax.export --workdir=runs/sd3_turbo --out=sd3-turbo --push=OWNER/sd3-turbo
"""

import contextlib

from absl import flags

from ladd_jax.cli.flags import WORKDIR
from ladd_jax.cli.network_flags import define_loras, define_step
from ladd_jax.cli.run import run_without_config
from ladd_jax.paths import expand
from ladd_jax.stages.names import STUDENTS

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "", "The folder to make, here or in a bucket (gs://...).", flag_values=FLAGS
)
_MODEL = flags.DEFINE_enum(
    "model", "ema", tuple(STUDENTS), "The average (ema), or the student itself.", flag_values=FLAGS
)
_STEP = define_step(FLAGS)
_LAYOUT = flags.DEFINE_string(
    "layout",
    "diffusers",
    "Kind of files; for SD3 diffusers, single, both, lora or kohya.",
    flag_values=FLAGS,
)
_LORA = define_loras(FLAGS)
_GUIDANCE = flags.DEFINE_float(
    "guidance",
    None,
    "Guidance that the files have built in, for a student that was trained to be told it; default: "
    "its config's.",
    flag_values=FLAGS,
)
_IMAGE_GUIDANCE = flags.DEFINE_float(
    "image_guidance",
    None,
    "The same for the guidance on the picture that is edited, for a student that was trained to be "
    "told both.",
    flag_values=FLAGS,
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "bfloat16",
    ("float32", "float16", "bfloat16"),
    "Dtype of the transformer's files.",
    flag_values=FLAGS,
)
_PUSH = flags.DEFINE_string(
    "push",
    "",
    "OWNER/NAME on the Hugging Face hub, where the folder is uploaded as well.",
    flag_values=FLAGS,
)


def main() -> None:
    """The command."""
    # Heavy imports come after the flags are read, so that a mistake in them is told at once.
    from ladd_jax.object_store import is_address, uploading
    from ladd_jax.stages.export import export
    from ladd_jax.weights.source import PIPELINE_INDEX

    with contextlib.ExitStack() as stack:
        if is_address(_OUT.value):
            out = stack.enter_context(uploading(_OUT.value, PIPELINE_INDEX))
            place = _OUT.value.rstrip("/")
        else:
            out = expand(_OUT.value)
            place = str(out)
        export(
            expand(WORKDIR.value),
            out,
            model=_MODEL.value,
            step=_STEP.value,
            layout=_LAYOUT.value,
            dtype=_DTYPE.value,
            loras=_LORA.value,
            guidance=_GUIDANCE.value,
            image_guidance=_IMAGE_GUIDANCE.value,
            push_to=_PUSH.value,
        )
    print(f"{place}/README.md says how to call it")


if __name__ == "__main__":
    run_without_config(main, FLAGS, "workdir", needed={"workdir": "DIR", "out": "DIR"})
