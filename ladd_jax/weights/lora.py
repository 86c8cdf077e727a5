"""LoRA files of other tools: their location, and their matrices by the layer that each adapts.

diffusers, PEFT, sd-scripts (Kohya) and ComfyUI each name the same two matrices in their own way.
They keep alpha beside the matrices, in the file's metadata, in a config, or nowhere. The names of
the layers are left to the network's family.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.errors import DamagedError, UserError
from ladd_jax.paths import expand
from ladd_jax.ranges import Range, is_number
from ladd_jax.weights.files import StoredTensor, read_headers
from ladd_jax.weights.source import LORA_SETTINGS, find_lora
from ladd_jax.whole_files import parse_json, read_json

_LOG = logging.getLogger(__name__)

_DOWN, _UP, _ALPHA = "down", "up", "alpha"

# Suffixes of a tensor's name, after the name of the layer.
_ENDS = {
    ".lora_A.weight": _DOWN,
    ".lora_B.weight": _UP,
    ".lora_A.default.weight": _DOWN,
    ".lora_B.default.weight": _UP,
    ".lora.down.weight": _DOWN,
    ".lora.up.weight": _UP,
    ".lora_down.weight": _DOWN,
    ".lora_up.weight": _UP,
    ".alpha": _ALPHA,
}
# Prefixes before the name of the layer, outermost first.
_PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.",
    "lora_transformer_", "lora_unet_", "lycoris_",
)  # fmt: skip
# How names of text encoders' layers begin, after the prefixes.
_OF_TEXT = (
    "text_encoder", "text_model", "lora_te", "te_", "te1_", "te2_", "te3_", "clip_l", "clip_g",
    "t5",
)  # fmt: skip
# Only scalars are stored as integers.
_WHOLE_NUMBERS: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "I64": np.dtype("<i8")}

_SCALE = Range(least=-1000, most=1000)
"""What a LoRA may be multiplied by: sliders go to some tens, and weights soon overflow."""

_METADATA = "lora_adapter_metadata"
"""Key of the file's metadata under which diffusers keeps PEFT's settings."""


@dataclasses.dataclass(frozen=True)
class AddedLoRA:
    """A LoRA file as a user names it: `PATH` or `PATH:SCALE`.

    Attributes:
      place: a file, its folder, or owner/name on the hub.
      scale: factor of the change that it makes to the weights.
    """

    place: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "AddedLoRA":
        """Reads `PATH` or `PATH:SCALE`.

        Raises:
          UserError: there is no path, or the scale is out of range.
        """
        match = re.fullmatch(r"(.+?)(?::([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?))?", text)
        if match is None:
            raise UserError(
                f"the LoRA {text!r} is not a PATH or PATH:SCALE: write it as style.safetensors:0.8"
            )
        scale = float(match[2] or 1)
        if scale not in _SCALE:
            raise UserError(f"the LoRA {text!r} has a scale of {scale:g}: use {_SCALE}")
        return cls(match[1], scale)


@dataclasses.dataclass(frozen=True)
class Matrices:
    """The adapter of one layer, whose kernel W `[O, I]` in torch's order becomes W + scale x B A.

    Attributes:
      down: A `[r, I]`.
      up: B `[O, r]`.
      scale: alpha / r, or alpha / sqrt(r) where the file's settings ask for rsLoRA.
    """

    down: StoredTensor
    up: StoredTensor
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]


def read_lora_headers(place: str) -> tuple[Path, dict[str, Matrices]]:
    """Headers of a LoRA's matrices, by the layer's name in the file without its prefix.

    Layers of text encoders are left out with a warning.

    Raises:
      NotFoundError: nothing is there.
      UserError: the file is damaged, of another kind, or holds another form of adapters.
    """
    file = find_lora(place)
    tensors, metadata = read_headers([file])
    found: dict[str, dict[str, StoredTensor]] = {}
    texts = 0
    for name, tensor in tensors.items():
        short = name
        for prefix in _PREFIXES:
            short = short.removeprefix(prefix)
        if short.startswith(_OF_TEXT):
            texts += 1
            continue
        end = next((end for end in _ENDS if name.endswith(end)), None)
        if end is None:
            raise UserError(
                f"tensor {name} in {file} is not a matrix of a LoRA: give one of diffusers, PEFT "
                f"or Kohya, without DoRA, LoHa, LoKr or biases"
            )
        parts = found.setdefault(short.removesuffix(end), {})
        if _ENDS[end] in parts:
            raise DamagedError(f"{file} has {name} under another name as well: get it again")
        parts[_ENDS[end]] = tensor
    if texts:
        _warn(
            f"{file}: its {texts} tensors for text encoders are left out, since text encoders are "
            f"used as released"
        )
    if not found:
        raise UserError(f"{file} has no matrices of a transformer: give a LoRA for a transformer")
    settings = _settings(file, metadata)
    of_peft = any(name.startswith(_PREFIXES[0]) for name in tensors)
    if of_peft and not settings["lora_alpha"] and not all(_ALPHA in p for p in found.values()):
        _warn(f"{file}: there is no {LORA_SETTINGS} beside it with its alpha, so its rank is used")
    return file, {layer: _matrices(file, layer, parts, settings) for layer, parts in found.items()}


@functools.cache
def _warn(sentence: str) -> None:
    """Warns once per message, since files are opened before a run and again for each network."""
    _LOG.warning(sentence)


def lora_files(place: str) -> list[Path]:
    """The local files that a LoRA is read from: its matrices, and its settings if there are any."""
    local = expand(place)
    if not local.exists():
        return []
    file = find_lora(place)
    return [file, *filter(Path.is_file, [file.with_name(LORA_SETTINGS)])]


def _matrices(
    file: Path, layer: str, parts: Mapping[str, StoredTensor], settings: Mapping[str, Any]
) -> Matrices:
    for part in (_DOWN, _UP):
        if part not in parts:
            raise DamagedError(f"{file} has one matrix of {layer} and not the other: get it again")
    down, up = parts[_DOWN], parts[_UP]
    down.check()
    up.check()
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise UserError(
            f"{file} has {list(down.shape)} and {list(up.shape)} for {layer}, which are not "
            f"[r, I] and [O, r]: give a LoRA of dense layers"
        )
    rank = down.shape[0]
    if not rank:
        raise DamagedError(f"{file} has a rank of 0 for {layer}: get it again")
    if _ALPHA in parts:
        alpha = _number(parts[_ALPHA])
        if not np.isfinite(alpha):
            raise DamagedError(f"{file} has {alpha} as alpha of {layer}: get it again")
        # In Kohya's scripts an alpha of 0 means r.
        return Matrices(down, up, (alpha or float(rank)) / rank)
    alpha = float(settings["lora_alpha"] or rank)
    for pattern, given in settings["alpha_pattern"].items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = float(given)
            break
    return Matrices(down, up, alpha / (rank**0.5 if settings.get("use_rslora") else rank))


def _number(tensor: StoredTensor) -> float:
    """The value of a tensor that holds a single number."""
    whole: np.dtype[Any] | None = _WHOLE_NUMBERS.get(tensor.dtype_name)
    if tensor.shape not in ((), (1,)) or (whole and tensor.size != whole.itemsize):
        raise DamagedError(f"{tensor.name} in {tensor.file} is not a single number: get it again")
    if whole:
        data = np.memmap(tensor.file, np.uint8, "r", offset=tensor.start, shape=(tensor.size,))
        return float(data.view(whole)[0])
    tensor.check()
    return float(tensor.map().astype(np.float32).reshape(()))


def _settings(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings in a file's metadata or beside it; lora_alpha is 0 where it is not set."""
    beside = file.with_name(LORA_SETTINGS)
    try:
        if _METADATA in metadata or not beside.is_file():
            found = parse_json(metadata.get(_METADATA, "{}"))
            found = {name.removeprefix("transformer."): value for name, value in found.items()}
        else:
            found = read_json(beside)
        if found.get("use_dora"):
            raise UserError(f"{file} is a LoRA with DoRA, which is not supported: give one without")
        patterns = found.get("alpha_pattern") or {}
        numbers = [found.get("lora_alpha", 1), *patterns.values()]
        if not all(map(is_number, numbers)):
            told = str(numbers)[:60]
            raise DamagedError(f"the settings of {file} have {told} as alpha: get it again")
        for pattern in patterns:
            re.compile(pattern)
    except (ValueError, AttributeError, RecursionError, re.error) as error:
        if isinstance(error, UserError):
            raise
        raise DamagedError(f"the settings of {file} are damaged ({error}): get it again") from error
    return {"lora_alpha": 0} | found | {"alpha_pattern": patterns}
