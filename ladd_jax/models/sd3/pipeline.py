"""A diffusers pipeline's folder made of another: a new transformer, everything else copied."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.weights.files import read_headers
from ladd_jax.weights.source import PIPELINE_INDEX, weight_files
from ladd_jax.whole_files import read_json

PIPELINE_CLASS = "StableDiffusion3Pipeline"
CLASSES = {
    "": PIPELINE_CLASS,
    "inpaint": "StableDiffusion3InpaintPipeline",
    # Not in the library, but in the file `EDITING` of its repository.
    "edit": "StableDiffusion3InstructPix2PixPipeline",
}
"""Of diffusers, by what is joined to x_t: they have the same components."""

EDITING = "examples/community/pipeline_stable_diffusion_3_instruct_pix2pix.py"
"""The community's pipeline in diffusers' repository. Its imports are those of a module of
`diffusers.pipelines.stable_diffusion_3`, so that it does not load as a `custom_pipeline`."""

SCHEDULERS = {"consistency": "FlowMatchLCMScheduler", "euler": "FlowMatchEulerDiscreteScheduler"}
"""Of diffusers, by the sampler of `diffusion.samplers` that each one is."""

_REPLACED = ("transformer", "scheduler")
_WEIGHTS = re.compile(r"\.(safetensors|bin|msgpack|h5|pt|index(\.\w+)?\.json)$")
_MARKED = re.compile(r"(\w+)(?:\.\w+)?(-\d+-of-\d+)?(?:\.\w+)?\.safetensors")
"""Name of a file of weights, in which a variant stands before or behind its number."""


def write_surroundings(source: Path, target: Path, sampler: str, joined: str = "") -> None:
    """Writes all of a pipeline but its transformer.

    The scheduler goes from each of the sigmas that a call names to the next, as the student's
    sampler does. Its own schedule of n steps, evenly spaced, goes down to 0.001 whatever the shift.
    A `shift_terminal` would end it at the last of evenly spaced times, and would stretch the sigmas
    that a call names for fewer steps as well, so a caller that can give no sigmas sets it, as the
    card says.

    Args:
      source: the folder of the pipeline that the transformer comes from.
      target: an existing folder, where each component gets a folder of its own.
      sampler: the student's, one of `SCHEDULERS`.
      joined: what is joined to x_t, one of `CLASSES`.

    Raises:
      NotFoundError: a component that the source's index names is not there.
      UserError: the source is another pipeline.
    """
    index = read_index(source)
    for name, entry in index.items():
        if name.startswith("_") or name in _REPLACED or class_of(entry) is None:
            continue
        if not (source / name).is_dir():
            raise NotFoundError(
                f"{source / PIPELINE_INDEX} names {name}, which is not there: get the whole "
                f"pipeline"
            )
        _copy(source / name, target / name)
    for file in source.glob("LICENSE*"):
        shutil.copyfile(file, target / file.name)
    name = SCHEDULERS[sampler]
    scheduler = {"_class_name": name, "num_train_timesteps": 1000, "shift": 1.0}
    (target / "scheduler").mkdir()
    write_json(target / "scheduler" / "scheduler_config.json", scheduler)
    classes: dict[str, Any] = {
        "_class_name": CLASSES[joined],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "scheduler": ["diffusers", name],
    }
    write_json(target / PIPELINE_INDEX, index | classes)


def read_index(source: Path) -> dict[str, Any]:
    """The `model_index.json` of a pipeline of Stable Diffusion 3.

    Raises:
      NotFoundError: there is none.
      UserError: it is damaged, or another pipeline's.
    """
    file = source / PIPELINE_INDEX
    if not file.is_file():
        raise NotFoundError(
            f"no {file}: the pipeline must be a folder as {PIPELINE_CLASS}.save_pretrained writes "
            f"it"
        )
    index = read_json(file)
    if index.get("_class_name") not in CLASSES.values():
        raise UserError(f"{file} is of a {index.get('_class_name')}: use a {PIPELINE_CLASS}")
    # Where its author had it.
    index.pop("_name_or_path", None)
    return index


def class_of(entry: Any) -> str | None:
    """The class that an index's entry names, after its library; None where it declares a part to be
    missing."""
    found = entry[-1] if isinstance(entry, list) and entry else None
    return found if isinstance(found, str) else None


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Writes a file as diffusers does."""
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _copy(source: Path, target: Path) -> None:
    """A component: its weights in one precision, and all other files.

    Those of a variant lose their mark, so that a plain `from_pretrained` finds them.
    """
    target.mkdir()
    files = [file for file in sorted(source.rglob("*")) if file.is_file()]
    for file in files:
        if not _is_weights(file):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    if not any(map(_is_weights, files)):
        return
    weights = weight_files(source)
    names = {file: _MARKED.sub(r"\1\2.safetensors", file.name) for file in weights}
    for file, name in names.items():
        shutil.copyfile(file, target / name)
    if len(weights) > 1:
        tensors, _ = read_headers(weights)
        total = sum(tensor.size for tensor in tensors.values())
        weight_map = {name: names[tensor.file] for name, tensor in tensors.items()}
        stem = names[weights[0]].split("-")[0]
        write_json(
            target / f"{stem}.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )


def _is_weights(file: Path) -> bool:
    return bool(_WEIGHTS.search(file.name))
