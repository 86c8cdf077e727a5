"""Makes a diffusers pipeline's folder from another one: all but the transformer is copied."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from ladd_jax.errors import DamagedError, NotFoundError, UserError
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
"""Pipeline classes of diffusers, by what is joined to x_t; all have the same components."""

EDITING = "examples/community/pipeline_stable_diffusion_3_instruct_pix2pix.py"
"""The community pipeline in diffusers' repository. It has the relative imports of a module in
`diffusers.pipelines.stable_diffusion_3`, so it cannot be loaded as a `custom_pipeline`."""

SCHEDULERS = {"consistency": "FlowMatchLCMScheduler", "euler": "FlowMatchEulerDiscreteScheduler"}
"""Scheduler classes of diffusers, by the equivalent sampler of `diffusion.samplers`."""

_REPLACED = ("transformer", "scheduler")
_WEIGHTS = re.compile(r"\.(safetensors|bin|msgpack|h5|pt|index(\.\w+)?\.json)$")
_MARKED = re.compile(r"(\w+)(?:\.\w+)?(-\d+-of-\d+)?(?:\.\w+)?\.safetensors")
"""Pattern of a weight file's name, with a variant before or after the shard number."""


def write_surroundings(source: Path, target: Path, sampler: str, joined: str = "") -> None:
    """Writes everything of a pipeline except its transformer.

    The scheduler goes from each of the sigmas in a call to the next, as the student's sampler does.
    Its own schedule of n evenly spaced steps goes down to 0.001 whatever the shift. A
    `shift_terminal` would make it end at the last of evenly spaced times, but would also stretch
    the sigmas that a call gives for fewer steps. So it is left to callers that cannot give sigmas,
    as the card explains.

    Args:
      source: folder of the pipeline that the transformer comes from.
      target: an existing folder, in which each component gets a folder.
      sampler: name of the student's sampler, one of `SCHEDULERS`.
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
      NotFoundError: there is no such file.
      UserError: it is damaged, or belongs to another pipeline.
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
    for name in index:
        # Names are those of folders beside the index, so others would lead out of the pipeline.
        if not re.fullmatch(r"\w+", name):
            raise DamagedError(f"{file} is damaged (it names the part {name[:60]!r}): get it again")
    # This is a path on the author's machine.
    index.pop("_name_or_path", None)
    return index


def class_of(entry: Any) -> str | None:
    """The class that an index's entry names after the library; None if the part is missing."""
    found = entry[-1] if isinstance(entry, list) and entry else None
    return found if isinstance(found, str) else None


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file formatted like those of diffusers."""
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _copy(source: Path, target: Path) -> None:
    """Copies a component: its weights in one precision, and all other files.

    The variant is removed from file names, so that a plain `from_pretrained` finds the weights.
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
