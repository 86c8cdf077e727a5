"""Stable Diffusion 3 and 3.5 as a family, with everything that `models.families` needs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ladd_jax.errors import DamagedError
from ladd_jax.models.base import CHANNELS, GUIDANCE, Params
from ladd_jax.models.families import Family, Released
from ladd_jax.models.layers import Dtype
from ladd_jax.models.lora import Adapted
from ladd_jax.models.sd3.colors import preview
from ladd_jax.models.sd3.decoder import load_decoder, picture_decoder
from ladd_jax.models.sd3.encoder_flops import encoder_flops, text_blocks
from ladd_jax.models.sd3.encoder_weights import load_autoencoder, load_text_encoders
from ladd_jax.models.sd3.export import LAYOUTS, write_export
from ladd_jax.models.sd3.flops import forward_flops
from ladd_jax.models.sd3.lora_files import layout, open_lora, save_lora
from ladd_jax.models.sd3.parts import check_autoencoder, check_text
from ladd_jax.models.sd3.pipeline import CLASSES, SCHEDULERS
from ladd_jax.models.sd3.single_text import (
    is_single_text,
    load_single_text,
    single_text_widths,
)
from ladd_jax.models.sd3.text import CLIP_LENGTH, T5_LENGTH, SD3TextEncoder
from ladd_jax.models.sd3.transformer import (
    MMDiTConfig,
    cut_params,
    fixed_guidance,
    mmdit,
    widened,
)
from ladd_jax.models.sd3.weights import open_mmdit
from ladd_jax.paths import expand
from ladd_jax.ranges import Range, is_number
from ladd_jax.weights.source import fetch_pipeline, find
from ladd_jax.whole_files import read_json, whole

# Fields that files of weights do not determine: how to compute, and options of our students only.
_NOT_IN_FILES = (
    "remat", "unroll", "cut", "quantized", "guided", "image_guided", "dtype", "param_dtype",
)  # fmt: skip

_SHIFT = Range(above=0, most=1000)
_SIDE = Range(least=1, most=2**16)
"""Of latents, in latent pixels."""


def _flops(config: MMDiTConfig, height: int, width: int, cond: Mapping[str, Any]) -> int:
    return forward_flops(config, height, width, cond["context"].shape[-2])


def _cond_shapes(
    config: MMDiTConfig, height: int, width: int, text_length: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "context": (text_length, config.context_width),
        "pooled": (config.pooled_width,),
    }
    joined = config.in_channels - config.out_channels
    if joined:
        shapes[CHANNELS] = (height, width, joined)
    if config.guided:
        shapes[GUIDANCE] = (1 + config.image_guided,)
    return shapes


def _sides(config: MMDiTConfig) -> tuple[int, int]:
    return config.patch, config.patch * config.position_table


def _text_encoder(
    place: str | Path, dtype: Dtype, mesh: Mesh, length: int, batch: int, tokenizers: str = ""
) -> SD3TextEncoder:
    if not expand(place).is_file():
        folder = fetch_pipeline(place)
        if is_single_text(folder):
            return load_single_text(folder, dtype, mesh, length, batch)
    return load_text_encoders(
        place,
        dtype,
        mesh,
        tokenizers=tokenizers or None,
        t5_length=length - CLIP_LENGTH,
        batch=batch,
    )


# Fields of diffusers' scheduler that change its schedule beyond a shift, if they are set. With the
# first, the pipeline computes the shift from the number of image tokens, and `shift` is ignored.
_UNREAD = (
    "use_dynamic_shifting", "shift_terminal", "invert_sigmas", "use_karras_sigmas",
    "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling",
)  # fmt: skip


def _number(file: Path, fields: Mapping[str, Any], name: str, allowed: Range) -> float | None:
    """A field of a JSON file that has been read; None if it is missing or null."""
    value = fields.get(name)
    if value is not None and not is_number(value, allowed):
        raise DamagedError(
            f"{file} has {str(value)[:60]!r} as {name}, which must be {allowed}: get it again"
        )
    return value


def _released(place: str) -> Released:
    scheduler = fetch_pipeline(place) / "scheduler" / "scheduler_config.json"
    schedule: dict[str, Any] = {}
    shift, unread = None, ""
    if scheduler.is_file():
        schedule = read_json(scheduler)
        # A file that does not say it has the default of diffusers' schedulers.
        shift = _number(scheduler, schedule, "shift", _SHIFT) or 1.0
        unread = _unread(scheduler, schedule)
    file = find(place).config
    side = _number(file, read_json(file), "sample_size", _SIDE) if file else None
    return Released(
        shift=shift,
        side=128 if side is None else int(side),
        text_length=CLIP_LENGTH + T5_LENGTH,
        # Only this scheduler identifies a student, since the base models also use that of Euler.
        student=schedule.get("_class_name") == SCHEDULERS["consistency"],
        unread=unread,
    )


def _unread(file: Path, schedule: Mapping[str, Any]) -> str:
    """What of a scheduler's file would have to be read to follow its schedule, in a sentence."""
    found = [name for name in _UNREAD if schedule.get(name)]
    if not found:
        return ""
    return (
        f"{file} sets {' and '.join(found)}, and of a schedule only shift is read: choose a shift "
        f"by sample --shift, or set {'it' if len(found) == 1 else 'these'} to false in a copy of "
        f"the pipeline, with the shift there"
    )


def _save_lora(path: Path, config: MMDiTConfig, network: Adapted, params: Params) -> None:
    files = layout(config, network)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        save_lora(partial, network.scaled(params), files)


def _check_lora(config: MMDiTConfig, network: Adapted) -> None:
    layout(config, network)


FAMILY = Family(
    name="sd3",
    architecture=MMDiTConfig,
    weight_fields=tuple(
        field.name for field in dataclasses.fields(MMDiTConfig) if field.name not in _NOT_IN_FILES
    ),
    backbone=mmdit,
    cut_params=cut_params,
    widened=widened,
    fixed_guidance=fixed_guidance,
    forward_flops=_flops,
    encoder_flops=encoder_flops,
    text_blocks=text_blocks,
    cond_shapes=_cond_shapes,
    sides=_sides,
    open_weights=open_mmdit,
    open_lora=open_lora,
    check_lora=_check_lora,
    save_lora=_save_lora,
    load_autoencoder=load_autoencoder,
    check_autoencoder=check_autoencoder,
    picture_decoder=picture_decoder,
    load_decoder=load_decoder,
    preview=preview,
    load_text_encoder=_text_encoder,
    check_text=check_text,
    text_widths=single_text_widths,
    released=_released,
    joined={name: kind for kind, name in CLASSES.items()},
    layouts=LAYOUTS,
    samplers=tuple(SCHEDULERS),
    write_export=write_export,
)
