"""Families of networks: what the rest of the library asks of one, and the table of those there are.

A family is a folder beside this file, such as `sd3/`, whose `FAMILY` describes it. No import
statement outside `models/` names such a folder: a second family is a second folder, a line in
`FAMILIES`, and one in `PIPELINES` for the class of its released pipelines.

H W latent grid, C channels, T text tokens.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from ladd_jax.errors import UserError
from ladd_jax.models.base import Backbone, Params, PictureDecoder
from ladd_jax.models.layers import Dtype
from ladd_jax.models.lora import Adapted
from ladd_jax.weights.source import pipeline_class

FAMILIES = {"sd3": "ladd_jax.models.sd3.family"}
"""By the name that `model.family` has: modules with a `FAMILY`, imported when asked for."""

PIPELINES = {
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusion3InpaintPipeline": "sd3",
    "StableDiffusion3InstructPix2PixPipeline": "sd3",
}
"""Classes of released pipelines in diffusers."""

ADAPTERS = "lora"
"""Kind of files that are a student's adapters alone, in the layouts of a family."""

_DEFAULT = "sd3"
"""Family of weights whose files do not name a class of `PIPELINES`; it says what is wrong."""


class Architecture(Protocol):
    """Sizes and dtypes of a network: a frozen dataclass, which refuses what does not fit.

    A config gives the fields that its section `model` has under the same name, the channels, the
    widths of the text and the dtypes; the others keep their defaults.

    Attributes:
      depth: number of blocks of the whole network.
      width: features of an image token.
      num_heads: attention heads.
      in_channels: latent channels read.
      out_channels: latent channels of the velocity, C.
      context_width: features of a text token.
      pooled_width: length of the vector that sums up the text.
      patch: side of a patch in latent pixels.
      cut: 0, or the number of blocks that there are: what follows is left out.
      quantized: whether the kernels of the blocks are int8.
      guided: whether it is given the guidance scale, `cond["guidance"] [B, 1]`.
      image_guided: whether it is given that on the image beside it, `[B, 2]`.
      dtype: dtype of computation.
      param_dtype: dtype of parameters.
    """

    @property
    def depth(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def context_width(self) -> int: ...
    @property
    def pooled_width(self) -> int: ...
    @property
    def patch(self) -> int: ...
    @property
    def cut(self) -> int: ...
    @property
    def quantized(self) -> bool: ...
    @property
    def guided(self) -> bool: ...

    @property
    def image_guided(self) -> bool: ...
    @property
    def dtype(self) -> Dtype: ...
    @property
    def param_dtype(self) -> Dtype: ...
    @property
    def blocks(self) -> int:
        """Number of blocks that there are."""
        ...


class OpenWeights(Protocol):
    """Files of a network, checked whole and not read yet.

    Attributes:
      config: their architecture, with the dtype that they were opened in.
    """

    @property
    def config(self) -> Any: ...

    def cut(self, blocks: int) -> "OpenWeights":
        """The network cut after its first blocks (0: whole); nothing else of it is then read."""
        ...

    def load(self, mesh: Mesh) -> Params:
        """All parameters, each process reading what its devices keep."""
        ...


class OpenAdapters(Protocol):
    """Files with adapters of a network, checked and not read yet."""

    def load(self) -> Params:
        """Adapters as `models.lora.add_adapters` takes them, arrays of numpy."""
        ...


class TextEncoder(Protocol):
    """Prompts to what a network is given."""

    @property
    def truncated(self) -> Mapping[str, int]:
        """How many prompts so far were too long and were cut, by the name of what cut them."""
        ...

    @property
    def blocks(self) -> Mapping[str, tuple[tuple[int, int], ...]]:
        """Of arrays that are zero beside blocks of rows, by name, (rows, columns) of each block."""
        ...

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Float32 arrays `[n, ...]` by name: the condition of each prompt.

        Raises:
          UserError: a prompt does not fit, and is not cut.
        """
        ...


class Autoencoder(Protocol):
    """Pictures to latents and back, as functions of parameters; both are jit-compatible."""

    @property
    def reduction(self) -> int:
        """Pixels on a side of a latent pixel."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of a latent, C."""
        ...

    def encode(self, params: Params, images: jax.Array) -> jax.Array:
        """`[B, H x reduction, W x reduction, 3]` in [-1, 1] to `[B, H, W, C]`."""
        ...

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to `[B, H x reduction, W x reduction, 3]` in [-1, 1]."""
        ...


@dataclasses.dataclass(frozen=True)
class Released:
    """How a released pipeline is meant to be sampled, where nothing else says it.

    Attributes:
      shift: shift of the schedule that comes with it; None where none does.
      side: side of the square latents that it makes by default, in latent pixels.
      text_length: T.
      student: whether its scheduler is that of a student of few steps.
    """

    shift: float | None
    side: int
    text_length: int
    student: bool = False


@dataclasses.dataclass(frozen=True)
class Export:
    """A student to be written as files of other programs.

    Attributes:
      name: the export's name.
      place: where others find it: the name, or owner/name of the hub.
      base: the released weights that it was distilled from: a folder, or owner/name of the hub.
      load: gives its parameters.
      adapters: where its adapters are written: the adapted network, and a function that gives their
        parameters; else None.
      architecture: its architecture.
      dtype: name of the dtype of the files.
      layouts: which of the family's layouts to write.
      sizes: shapes of the latents in training, rows x columns.
      square: the one of `sizes` that is nearest to a square.
      text_length: T.
      sigmas: noise levels, the last being 0, by the number of steps, the most steps first.
      objective: what it was distilled with, `distil.objective`.
      made: how it was made, name to value, for the model card.
      joined: what is joined to x_t, `data.joined`.
    """

    name: str
    place: str
    base: str
    load: Callable[[], Params]
    adapters: tuple[Adapted, Callable[[], Params]] | None
    architecture: Any
    dtype: str
    layouts: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    square: tuple[int, int]
    text_length: int
    sigmas: Mapping[int, Sequence[float]]
    objective: str
    made: Mapping[str, object]
    joined: str = ""


def _lacking(what: str) -> Callable[..., Any]:
    """What stands for a part that a family does not have: it says so to the user."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise UserError(
            f"networks of this model.family have no {what}: use another family, or leave out what "
            f"asks for it"
        )

    return refuse


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of networks, with all that is special about it.

    What reads and writes files of others may be left out: the user who asks for it is refused.

    Attributes:
      name: `model.family` of a config.
      architecture: the class of its architectures, see `Architecture`.
      weight_fields: the fields of `architecture` that weights decide; the others say how to
        compute.
      backbone: `backbone(architecture)`: the network as a function of its parameters.
      cut_params: `cut_params(params, shapes)` gives, of the parameters of a whole network, those
        of one that is cut, whose shapes are given.
      forward_flops: `forward_flops(architecture, height, width, cond)`: multiplications and
        additions of one forward pass over one sample, for latents of these sides and the arrays of
        a condition, or their shapes and dtypes, with or without a batch.
      cond_shapes: `cond_shapes(architecture, height, width, text_length)`: shapes of the arrays of
        a condition by name, without the batch, for latents of these sides.
      sides: `sides(architecture)`: what sides of latents are multiples of, and the largest; None
        for no limit.
      preview: `preview(latents)`: latents `[..., H, W, C]` as pictures `[..., H, W, 1 or 3]` in
        [-1, 1], at once, without the autoencoder and about right.
      widened: `widened(params, architecture)`: parameters of a network as those of one that reads
        the channels of this architecture, which are more, and does the same whatever they are.
      fixed_guidance: `fixed_guidance(params, *scales)`: parameters of a guided network as those of
        one that is not, which does the same at one scale.
      encoder_flops: `encoder_flops(height, width, text_length)`: multiplications and additions with
        which the encoders of released pipelines encode one prompt, and one picture with latents of
        these sides.
      text_blocks: `text_blocks(text_length)`: `TextEncoder.blocks` of released pipelines.
      open_weights: `open_weights(place, dtype)` finds and checks the weights of a network: a
        pipeline's folder, a file, or owner/name of the hub.
      open_lora: `open_lora(place, architecture)` finds and checks adapters in a file, a folder, or
        owner/name of the hub: raises UserError where they are not of this network.
      check_lora: `check_lora(architecture, network)` raises UserError where `save_lora` would: for
        adapters of a layer that files of others do not have as a dense one.
      save_lora: `save_lora(path, architecture, network, params)` writes adapters of a network of
        this architecture as a file in float32 that `open_lora` and `diffusers` read, whole or not
        at all.
      load_autoencoder: `load_autoencoder(place, dtype)` gives an `Autoencoder` and its parameters,
        on the first device.
      check_autoencoder: `check_autoencoder(place, channels)` raises UserError where that would not
        load, or makes latents of other channels; it reads no weights.
      picture_decoder: `picture_decoder(place, dtype, param_dtype)` gives the decoder alone, for
        gradients, and reads no weights; an empty place is that of released pipelines.
      load_decoder: `load_decoder(place, decoder, mesh)` gives its parameters on a mesh.
      load_text_encoder: `load_text_encoder(place, dtype, mesh, length, batch, tokenizers)`, of
        `length` tokens, encoding `batch` prompts at once. The place is a pipeline, a file with
        encoders, or a folder with one encoder and its tokenizer; `tokenizers` is another pipeline
        whose tokenizers are read, or empty.
      check_text: `check_text(place, architecture, length, tokenizers)` raises UserError where that
        would not load, or is not what the network reads; it reads no weights.
      text_widths: `text_widths(place)`, of a folder with one encoder: features of a text token, and
        length of the pooled vector.
      released: `released(place)`: how a pipeline is meant to be sampled.
      joined: what pipelines join to x_t, a value of `data.joined` by their class, as far as it
        says so.
      layouts: what `write_export` can write, by the name that a user gives: kinds of files.
      samplers: names of the students' samplers that these files can say.
      write_export: `write_export(folder, export)` fills an existing empty folder, with a model card
        that says how to call it. It looks at the base pipeline before it loads parameters.
    """

    name: str
    architecture: Callable[..., Architecture]
    weight_fields: tuple[str, ...]
    backbone: Callable[[Any], Backbone]
    cut_params: Callable[[Params, Params], Params]
    forward_flops: Callable[[Any, int, int, Mapping[str, Any]], int]
    cond_shapes: Callable[[Any, int, int, int], dict[str, tuple[int, ...]]]
    sides: Callable[[Any], tuple[int, int | None]]
    preview: Callable[[np.ndarray], np.ndarray]
    widened: Callable[[Params, Any], Params] = _lacking("way to read joined channels")
    fixed_guidance: Callable[..., Params] = _lacking("form of one scale of guidance")
    encoder_flops: Callable[[int, int, int], tuple[int, int]] = _lacking("released encoders")
    text_blocks: Callable[[int], Mapping[str, tuple[tuple[int, int], ...]]] = lambda length: {}
    open_weights: Callable[[str | Path, Dtype], OpenWeights] = _lacking("files of weights")
    open_lora: Callable[[str, Any], OpenAdapters] = _lacking("files of adapters")
    check_lora: Callable[[Any, Adapted], None] = _lacking("files of adapters")
    save_lora: Callable[[Path, Any, Adapted, Params], None] = _lacking("files of adapters")
    load_autoencoder: Callable[[str | Path, Dtype], tuple[Autoencoder, Params]] = _lacking(
        "autoencoder"
    )
    check_autoencoder: Callable[[str | Path, int], None] = _lacking("autoencoder")
    picture_decoder: Callable[[str | Path, Dtype, Dtype], PictureDecoder] = _lacking("decoder")
    load_decoder: Callable[[str | Path, PictureDecoder, Mesh], Params] = _lacking("decoder")
    load_text_encoder: Callable[[str | Path, Dtype, Mesh, int, int, str], TextEncoder] = _lacking(
        "text encoder in files"
    )
    check_text: Callable[[str | Path, Any, int, str], None] = _lacking("text encoder in files")
    text_widths: Callable[[str | Path], tuple[int, int]] = _lacking("text encoder in files")
    released: Callable[[str], Released] = _lacking("released pipelines")
    joined: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layouts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    samplers: tuple[str, ...] = ()
    write_export: Callable[[Path, Export], None] = _lacking("layout of files to export")


def family(name: str) -> Family:
    """The family of this name.

    Raises:
      UserError: there is none.
    """
    if name not in FAMILIES:
        raise UserError(f"model.family {name!r} is none of {', '.join(FAMILIES)}: use one")
    return importlib.import_module(FAMILIES[name]).FAMILY


def family_of_pipeline(place: str) -> Family:
    """The family of a released or exported pipeline.

    Args:
      place: a folder, a file, or owner/name of the hub.

    Raises:
      NotFoundError: the hub does not give it.
      UserError: its index is damaged.
    """
    return family(PIPELINES.get(pipeline_class(place), _DEFAULT))


def joined_of_pipeline(place: str) -> str:
    """What a released or exported pipeline joins to x_t by its class; empty where that says none.

    Args:
      place: as of `family_of_pipeline`, whose errors there are.
    """
    return family_of_pipeline(place).joined.get(pipeline_class(place), "")


def family_of(config: Any) -> Family:
    """The family of a run's networks.

    Args:
      config: the run's config.

    Raises:
      UserError: there is none of its name.
    """
    return family(config.model.family)
