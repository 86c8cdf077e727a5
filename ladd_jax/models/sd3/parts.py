"""Checks that the parts of a Stable Diffusion 3 pipeline fit together, before they are used."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ladd_jax.errors import NotFoundError, Problems, UserError
from ladd_jax.models.sd3.encoder_weights import (
    OpenedText,
    open_autoencoder,
    open_text_encoders,
)
from ladd_jax.models.sd3.pipeline import CLASSES, PIPELINE_CLASS, class_of
from ladd_jax.models.sd3.single_text import is_single_text, open_single_text
from ladd_jax.models.sd3.text import CLIP_LENGTH
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.paths import expand
from ladd_jax.weights.source import PIPELINE_INDEX, fetch_pipeline
from ladd_jax.whole_files import read_json

# In older indices fast tokenizers have class names of their own.
_CLASSES = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModelWithProjection",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "text_encoder_3": ("T5EncoderModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_3": ("T5Tokenizer", "T5TokenizerFast"),
}
_OF_T5 = ("text_encoder_3", "tokenizer_3")
_SCHEDULERS = "FlowMatch"
"""How the classes of schedulers of rectified flow begin."""


def check_text(place: str | Path, architecture: MMDiTConfig, length: int, tokenizers: str) -> None:
    """Checks text encoders against their tokenizers and the network; reads no weights.

    Args:
      place: a pipeline, a file with encoders, or the folder of one encoder and its tokenizer.
      architecture: architecture of the network that reads the text.
      length: T, tokens of the text.
      tokenizers: place of the tokenizers; empty for `place`.

    Raises:
      UserError: something does not fit; UserErrors if there are several problems.
    """
    single = expand(place).is_file()
    folder = expand(place) if single else fetch_pipeline(place)
    if not single and is_single_text(folder):
        open_single_text(folder, jnp.bfloat16, length)
        return
    problems = Problems()
    if not single:
        with problems.found():
            check_index(folder)
    if length < CLIP_LENGTH:
        problems.add(
            UserError(
                f"data.text_length is {length} and the CLIP encoders of {place} give "
                f"{CLIP_LENGTH} tokens: use more, such as {CLIP_LENGTH + 256}, with T5's"
            )
        )
    with problems.found():
        text = open_text_encoders(place, jnp.bfloat16, tokenizers or None)
        with problems.found():
            _check_widths(place, text, architecture)
    problems.tell()


def check_autoencoder(place: str | Path, channels: int) -> None:
    """Checks an autoencoder against the network; reads no weights.

    Args:
      place: a pipeline, the autoencoder's folder, or a file with one.
      channels: channels of the network's latents.

    Raises:
      UserError: it is damaged, of another kind, or makes latents of other channels.
    """
    found = open_autoencoder(place).config.latent_channels
    if found != channels:
        raise UserError(
            f"the autoencoder of {place} makes latents of {found} channels and model.channels is "
            f"{channels}: use the autoencoder and the transformer of one pipeline"
        )


def _check_widths(place: str | Path, text: OpenedText, architecture: MMDiTConfig) -> None:
    clips = [text.encoders[name].config for name in ("clip_l", "clip_g")]
    pooled = sum(clip.projection_dim for clip in clips)
    tokens = sum(clip.hidden_size for clip in clips)
    for what, have, want in (
        ("a text vector", pooled, architecture.pooled_width),
        ("text tokens", text.context_width, architecture.context_width),
    ):
        if have != want:
            raise UserError(
                f"the text encoders of {place} make {what} of {have} features and the transformer "
                f"reads {want}: use the parts of one pipeline"
            )
    if tokens > text.context_width:
        raise UserError(
            f"the CLIP encoders of {place} are {tokens} wide together and the context is "
            f"{text.context_width} wide: use encoders of one pipeline"
        )


def check_index(folder: Path) -> None:
    """Checks that the index of a folder, if it has one, names parts of SD3, and that they exist."""
    file = folder / PIPELINE_INDEX
    if not file.is_file():
        return
    index = read_json(file)
    problems = Problems()
    with problems.found():
        kind = index.get("_class_name", PIPELINE_CLASS)
        if kind not in CLASSES.values():
            raise UserError(f"{file} is of a {kind}: use a {PIPELINE_CLASS}")
    for name, classes in _CLASSES.items():
        with problems.found():
            _check_entry(folder, name, index.get(name), classes)
    with problems.found():
        _check_scheduler(folder, index.get("scheduler"))
    absent = [name for name in _OF_T5 if class_of(index.get(name)) is None]
    if len(absent) == 1:
        problems.add(
            UserError(
                f"{file} has no {absent[0]} and has {_other(absent[0])}: give both, or "
                f"declare both missing by [null, null]"
            )
        )
    problems.tell()


def _other(name: str) -> str:
    return _OF_T5[1 - _OF_T5.index(name)]


def _check_entry(folder: Path, name: str, entry: Any, classes: tuple[str, ...]) -> None:
    file, found = folder / PIPELINE_INDEX, class_of(entry)
    if found is None:
        if name not in _OF_T5:
            raise UserError(f"{file} has no {name}: get the whole pipeline")
        return
    if found not in classes:
        raise UserError(f"{file} names {found} as {name}, not {classes[0]}: use its own")
    # The transformer has been found already, and on the hub it is fetched to another place.
    if name != "transformer" and not (folder / name).is_dir():
        raise NotFoundError(
            f"{file} names {name}, which is not there: get the whole pipeline, or declare it "
            f"missing by [null, null] if it is T5's"
            if name in _OF_T5
            else f"{file} names {name}, which is not there: get the whole pipeline"
        )


def _check_scheduler(folder: Path, entry: Any) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    found = class_of(entry)
    if found is None or not found.startswith(_SCHEDULERS):
        raise UserError(
            f"{folder / PIPELINE_INDEX} names {found or 'no class'} as scheduler and SD3's is a "
            f"{_SCHEDULERS}EulerDiscreteScheduler: use the model's own"
        )
    if not file.is_file():
        raise NotFoundError(f"no {file}: get the whole pipeline")
    kind = read_json(file).get("_class_name", found)
    if kind != found:
        raise UserError(
            f"{file} is of {kind} and {folder / PIPELINE_INDEX} names {found}: get both from "
            f"one pipeline"
        )
