"""Families of networks: the interface that the rest of the library uses, and the table of families.

A family is a folder beside this file, such as `sd3/`, whose `FAMILY` describes it. No code outside
`models/` imports such a folder: to add a second family, add a folder, a line in `FAMILIES`, and a
line in `PIPELINES` for the class of its released pipelines.

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
"""The layout, among those of a family, that consists of only a student's adapters."""

_DEFAULT = "sd3"
"""Family of weights whose files do not name a class of `PIPELINES`; it reports what is wrong."""


class Architecture(Protocol):
    """Sizes and dtypes of a network: a frozen dataclass that rejects values that do not fit.

    A config provides the fields with the same names as in its section `model`, the channels, the
    widths of the text and the dtypes; other fields keep their defaults.

    Attributes:
      depth: number of blocks of the whole network.
      width: features of an image token.
      num_heads: attention heads.
      in_channels: latent channels read.
      out_channels: latent channels of the velocity, C.
      context_width: features of a text token.
      pooled_width: length of the vector that summarises the text.
      patch: side of a patch in latent pixels.
      cut: number of blocks that are kept, leaving out all that follows; 0 for all.
      quantized: whether the kernels of the blocks are int8.
      guided: whether it is given the guidance scale, `cond["guidance"] [B, 1]`.
      image_guided: whether it is also given the scale on the image, `[B, 2]`.
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
    """A network's files, fully checked but not read yet.

    Attributes:
      config: the network's architecture, with the dtype that the files were opened in.
    """

    @property
    def config(self) -> Any: ...

    def cut(self, blocks: int) -> "OpenWeights":
        """The network cut after its first blocks (0: whole), so that nothing else is read."""
        ...

    def load(self, mesh: Mesh) -> Params:
        """All parameters; each process reads only what its devices hold."""
        ...


class OpenAdapters(Protocol):
    """Files with adapters of a network, checked but not read yet."""

    def load(self) -> Params:
        """The adapters in the form that `models.lora.add_adapters` takes, as numpy arrays."""
        ...


class TextEncoder(Protocol):
    """Encodes prompts into the arrays that a network is given."""

    @property
    def truncated(self) -> Mapping[str, int]:
        """How many prompts were cut so far because they were too long, by the tokenizer's name."""
        ...

    @property
    def blocks(self) -> Mapping[str, tuple[tuple[int, int], ...]]:
        """For arrays that are zero outside of blocks, by name, (rows, columns) of each block."""
        ...

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Float32 arrays `[n, ...]` by name: the condition of each prompt.

        Raises:
          UserError: a prompt does not fit, and is not cut.
        """
        ...


class Autoencoder(Protocol):
    """Converts pictures to latents and back; both are jit-compatible functions of parameters."""

    @property
    def reduction(self) -> int:
        """Side of a latent pixel in pixels."""
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
    """How a released pipeline is sampled unless something else is configured.

    Attributes:
      shift: shift of the schedule that comes with it; None if it comes without.
      side: side of the square latents that it makes by default, in latent pixels.
      text_length: T.
      student: whether its scheduler is the one for few-step students.
      unread: what of the schedule that comes with it is not read, in a sentence that says what to
        do; empty if the shift is all there is to it.
    """

    shift: float | None
    side: int
    text_length: int
    student: bool = False
    unread: str = ""


@dataclasses.dataclass(frozen=True)
class Export:
    """A student to be written to files of other programs.

    Attributes:
      name: name of the export.
      place: where others find it: the name, or owner/name on the hub.
      base: released weights that it was distilled from: a folder, or owner/name on the hub.
      load: loads its parameters.
      adapters: the adapted network and a function that loads the adapters, if adapters are written;
        else None.
      architecture: architecture of the student.
      dtype: name of the dtype of the files.
      layouts: which of the family's layouts to write.
      sizes: shapes of the latents in training, rows x columns.
      square: the one of `sizes` that is nearest to a square.
      text_length: T.
      sigmas: noise levels, the last being 0, by the number of steps, with the most steps first.
      objective: method that it was distilled by, `distil.objective`.
      made: how it was made, as names and values for the model card.
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
    """A stand-in for a part that a family does not have, which raises UserError when called."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise UserError(
            f"networks of this model.family have no {what}: use another family, or leave out the "
            f"setting that needs it"
        )

    return refuse


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of network, with everything that is specific to it.

    Functions that read and write other programs' files are optional: without one, a user who asks
    for it gets an error.

    Attributes:
      name: `model.family` of a config.
      architecture: the class of its architectures, see `Architecture`.
      weight_fields: fields of `architecture` that are determined by weights; the others say how to
        compute.
      backbone: `backbone(architecture)` gives the network as a function of its parameters.
      cut_params: `cut_params(params, shapes)` selects from the parameters of a whole network those
        of the cut network with the given shapes.
      forward_flops: `forward_flops(architecture, height, width, cond)` gives the multiplications
        and additions of one forward pass over one sample, for latents of this size and the arrays
        of a condition, or their shapes and dtypes, with or without a batch.
      cond_shapes: `cond_shapes(architecture, height, width, text_length)` gives the shapes of the
        arrays of a condition by name, without the batch, for latents of this size.
      sides: `sides(architecture)` gives the number that sides of latents are multiples of, and the
        largest side; None for no limit.
      preview: `preview(latents)` turns latents `[..., H, W, C]` into approximate pictures
        `[..., H, W, 1 or 3]` in [-1, 1], quickly and without the autoencoder.
      widened: `widened(params, architecture)` turns a network's parameters into those of a network
        that reads the additional channels of this architecture, without any effect of these.
      fixed_guidance: `fixed_guidance(params, *scales)` turns a guided network's parameters into
        those of an unguided network that does the same as the former at one scale.
      encoder_flops: `encoder_flops(height, width, text_length)` gives the multiplications and
        additions for which the encoders of released pipelines encode one prompt, and one picture
        with latents of this size.
      text_blocks: `text_blocks(text_length)` gives `TextEncoder.blocks` of released pipelines.
      open_weights: `open_weights(place, dtype)` finds and checks the weights of a network: a
        pipeline's folder, a file, or owner/name on the hub.
      open_lora: `open_lora(place, architecture)` finds and checks adapters in a file, a folder, or
        owner/name on the hub; it raises UserError if they are not for this network.
      check_lora: `check_lora(architecture, network)` raises UserError if `save_lora` would, for
        adapters of a layer that is not dense in other libraries' files.
      save_lora: `save_lora(path, architecture, network, params)` writes adapters of a network of
        this architecture to a float32 file that `open_lora` and `diffusers` read, complete or not
        at all.
      load_autoencoder: `load_autoencoder(place, dtype)` gives an `Autoencoder` and its parameters,
        on the first device.
      check_autoencoder: `check_autoencoder(place, channels)` raises UserError if the autoencoder
        cannot be loaded, or makes latents of other channels; it reads no weights.
      picture_decoder: `picture_decoder(place, dtype, param_dtype)` gives the decoder alone, for
        gradients, and reads no weights; an empty place means the one of released pipelines.
      load_decoder: `load_decoder(place, decoder, mesh)` gives the decoder's parameters on a mesh.
      load_text_encoder: `load_text_encoder(place, dtype, mesh, length, batch, tokenizers)` gives a
        text encoder for `length` tokens that encodes `batch` prompts at once. The place is a
        pipeline, a file with encoders, or a folder with one encoder and its tokenizer; `tokenizers`
        is another pipeline whose tokenizers are read, or empty.
      check_text: `check_text(place, architecture, length, tokenizers)` raises UserError if the text
        encoder cannot be loaded, or does not give what the network reads; it reads no weights.
      text_widths: `text_widths(place)` gives, for a folder with one encoder, the features of a text
        token and the length of the pooled vector.
      released: `released(place)` says how a pipeline is meant to be sampled.
      joined: `joined(place)` says what a pipeline joins to x_t, as a value of `data.joined`, if the
        class of the pipeline tells.
      layouts: the kinds of files that `write_export` writes, by the layout's name in flags.
      samplers: names of the students' samplers that these files can express.
      write_export: `write_export(folder, export)` fills an existing empty folder, including a model
        card that says how to call the model. It checks the base pipeline before loading parameters.
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
        raise UserError(
            f"model.family {name!r} is not one of {', '.join(FAMILIES)}: use one of them, or "
            f"install the package that has it"
        )
    return importlib.import_module(FAMILIES[name]).FAMILY


def family_of_pipeline(place: str) -> Family:
    """The family of a released or exported pipeline.

    Args:
      place: a folder, a file, or owner/name on the hub.

    Raises:
      NotFoundError: it cannot be fetched from the hub.
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
      UserError: there is no family of the configured name.
    """
    return family(config.model.family)
