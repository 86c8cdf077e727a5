"""The autoencoder and the text encoders of Stable Diffusion 3.

They are read from a diffusers pipeline's folder, or from a single file. Errors in their files are
found when they are opened, before any weights are read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from ladd_jax.errors import DamagedError, NotFoundError, Problems, UserError
from ladd_jax.models.base import Model, Params
from ladd_jax.models.clip import ACTIVATIONS, CLIPTextConfig, clip_text
from ladd_jax.models.layers import Dtype
from ladd_jax.models.sd3 import stability_encoders
from ladd_jax.models.sd3.autoencoder import Autoencoder, AutoencoderConfig
from ladd_jax.models.sd3.pipeline import class_of
from ladd_jax.models.sd3.text import T5_LENGTH, PromptTokenizer, SD3TextEncoder
from ladd_jax.models.t5 import T5Config, t5_encoder
from ladd_jax.paths import expand
from ladd_jax.ranges import FINITE, POSITIVE
from ladd_jax.weights.clip import clip_text_layout
from ladd_jax.weights.files import StoredTensor, read_headers, weight_dtype
from ladd_jax.weights.layout import convolution, linear, matrix, norm, same, stacked
from ladd_jax.weights.sizes import EPSILON, check_depth, check_numbers, check_sizes
from ladd_jax.weights.source import PIPELINE_INDEX, fetch_pipeline, weight_files
from ladd_jax.weights.transfer import check_tensors, load
from ladd_jax.weights.vocabulary import check_vocabulary
from ladd_jax.whole_files import read_json

_SD3_CONTEXT_WIDTH = 4096

_PARTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
"""Folders of the text encoders in a pipeline."""

# Defaults of `transformers`' CLIPTextConfig. The config of a whole CLIP leaves out such values.
_CLIP_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
_CLIP_PROJECTION = 512


def _residual_block(name: str, shapes: Params) -> Params:
    block = {
        "norm1": norm(f"{name}.norm1"),
        "convolution1": convolution(f"{name}.conv1"),
        "norm2": norm(f"{name}.norm2"),
        "convolution2": convolution(f"{name}.conv2"),
    }
    if "shortcut" in shapes:
        block["shortcut"] = convolution(f"{name}.conv_shortcut")
    return block


def _half_autoencoder(half: str, levels: str, resamplers: str, shapes: Params) -> Params:
    def level(i: int, shapes: Params) -> Params:
        name = f"{half}.{levels}.{i}"
        blocks = {
            j: _residual_block(f"{name}.resnets.{j}", block)
            for j, block in shapes["blocks"].items()
        }
        if "resample" not in shapes:
            return {"blocks": blocks}
        return {"blocks": blocks, "resample": convolution(f"{name}.{resamplers}.0.conv")}

    middle = {
        f"block{j + 1}": _residual_block(
            f"{half}.mid_block.resnets.{j}", shapes["middle"][f"block{j + 1}"]
        )
        for j in range(2)
    }
    if "attention" in shapes["middle"]:
        name = f"{half}.mid_block.attentions.0"
        middle["attention"] = {
            "norm": norm(f"{name}.group_norm"),
            "qkv": linear(*(f"{name}.to_{part}" for part in "qkv")),
            "out": linear(f"{name}.to_out.0"),
        }
    return {
        "convolution_in": convolution(f"{half}.conv_in"),
        "levels": {i: level(i, part) for i, part in shapes["levels"].items()},
        "middle": middle,
        "norm_out": norm(f"{half}.conv_norm_out"),
        "convolution_out": convolution(f"{half}.conv_out"),
    }


def _autoencoder_layout(shapes: Params) -> Params:
    return {
        "encoder": _half_autoencoder("encoder", "down_blocks", "downsamplers", shapes["encoder"]),
        "decoder": _half_autoencoder("decoder", "up_blocks", "upsamplers", shapes["decoder"]),
    }


def _t5_layout(config: T5Config, embedding: str) -> Params:
    def block(i: int) -> Params:
        attention = f"encoder.block.{i}.layer.0"
        mlp = f"encoder.block.{i}.layer.1"
        return {
            "norm1": {"scale": same(f"{attention}.layer_norm.weight")},
            "qkv": {
                "kernel": matrix(*(f"{attention}.SelfAttention.{part}.weight" for part in "qkv"))
            },
            "out": {"kernel": matrix(f"{attention}.SelfAttention.o.weight")},
            "norm2": {"scale": same(f"{mlp}.layer_norm.weight")},
            "up": {"kernel": matrix(*(f"{mlp}.DenseReluDense.wi_{i}.weight" for i in range(2)))},
            "down": {"kernel": matrix(f"{mlp}.DenseReluDense.wo.weight")},
        }

    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {
        "tokens": same(embedding),
        "relative_bias": same(bias),
        "blocks": stacked([block(i) for i in range(config.num_layers)]),
        "final_norm": {"scale": same("encoder.final_layer_norm.weight")},
    }


_CLIP_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "projection_dim",
)  # fmt: skip
_T5_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_MOST_LEVELS = 16
"""Most levels of an autoencoder, each of which halves the sides."""


def read_config(directory: Path) -> dict[str, Any]:
    """A folder's `config.json`.

    Raises:
      NotFoundError: it is not there.
      UserError: it is damaged.
    """
    path = directory / "config.json"
    if not path.exists():
        raise NotFoundError(f"no {path}: give the directory of a diffusers pipeline")
    return read_json(path)


def _fields(
    config: Mapping[str, Any], directory: Path, required: str, optional: str = ""
) -> dict[str, Any]:
    """Named fields of a config.json; a missing optional one gets the default of its dataclass."""
    for name in required.split():
        if config.get(name) is None:
            raise UserError(
                f"{directory / 'config.json'} has no {name!r}: use the model's own file"
            )
    names = required.split()
    names += [name for name in optional.split() if config.get(name) is not None]
    return {name: config[name] for name in names}


def _check_class(config: Mapping[str, Any], directory: Path, *classes: str) -> None:
    """Raises UserError if a config names another class; older configs do not name any."""
    found = config.get("_class_name", classes[0])
    if found not in classes:
        raise UserError(
            f"{directory / 'config.json'} describes a {found}, not a {classes[0]}: use a Stable "
            f"Diffusion 3 pipeline"
        )


def _check(config: Mapping[str, Any], directory: Path, **supported: tuple[Any, Any]) -> None:
    """Raises UserError for unsupported values of fields; each has (only value, default)."""
    for name, (value, default) in supported.items():
        found = config.get(name, default)
        if found != value:
            has = f"{name} {found!r}" if name in config else f"no {name}, which is {found!r} then,"
            raise UserError(
                f"{directory / 'config.json'} has {has} and only {value!r} is supported: use a "
                f"Stable Diffusion 3 pipeline"
            )


@dataclasses.dataclass(frozen=True)
class Opened:
    """A network whose files have been checked but whose weights have not been read yet.

    Attributes:
      config: the architecture and dtypes.
      model: the network.
      tensors: the files' tensors.
      layout: the tensors behind each parameter.
    """

    config: Any
    model: Any
    tensors: Mapping[str, StoredTensor]
    layout: Params

    def load(self, mesh: Mesh | None = None) -> Params:
        """The network's parameters, on a mesh or the first device."""
        return load(self.tensors, self.layout, self.model.shapes, self.model.axes, mesh)


def read_autoencoder_config(path: Path | str) -> AutoencoderConfig:
    """The architecture of the autoencoder in `path/vae`, or in `path` if that is its own folder.

    Raises:
      NotFoundError: its config is not there.
      UserError: the config is not one of SD3.
    """
    directory = _autoencoder_folder(Path(path))
    config = read_config(directory)
    _check_class(config, directory, "AutoencoderKL")
    _check(
        config,
        directory,
        use_quant_conv=(False, True),
        use_post_quant_conv=(False, True),
        act_fn=("silu", "silu"),
        latents_mean=(None, None),
        latents_std=(None, None),
    )
    fields = _fields(
        config,
        directory,
        "block_out_channels layers_per_block norm_num_groups in_channels out_channels "
        "latent_channels scaling_factor shift_factor",
        "mid_block_add_attention",
    )
    file, widths = directory / "config.json", fields["block_out_channels"]
    if not isinstance(widths, list) or not 1 <= len(widths) <= _MOST_LEVELS:
        raise UserError(
            f"block_out_channels is {str(widths)[:60]} in {file}: it must be a list of 1 to "
            f"{_MOST_LEVELS} widths"
        )
    for width in widths:
        check_sizes({"block_out_channels": width}, ["block_out_channels"], file)
    sizes = "norm_num_groups in_channels out_channels latent_channels layers_per_block".split()
    check_sizes(fields, sizes, file)
    check_numbers(fields, {"scaling_factor": POSITIVE, "shift_factor": FINITE}, file)
    if type(fields.get("mid_block_add_attention", True)) is not bool:
        raise UserError(f"mid_block_add_attention in {file} is neither true nor false: use one")
    fields["block_out_channels"] = tuple(widths)
    return AutoencoderConfig(**fields)


def _autoencoder_folder(folder: Path) -> Path:
    alone = not (folder / "vae").is_dir() and (folder / "config.json").is_file()
    return folder if alone else folder / "vae"


def open_autoencoder(path: Path | str, dtype: Dtype = jnp.float32) -> Opened:
    """Finds and checks the files of an autoencoder; see `load_autoencoder`."""
    dtype = weight_dtype(dtype)
    source = expand(path)
    if source.is_file():
        config, tensors = stability_encoders.read_autoencoder(source, read_headers([source])[0])
    else:
        folder = fetch_pipeline(path)
        config, source = read_autoencoder_config(folder), _autoencoder_folder(folder)
        tensors = _tensors(source)
    check_depth(config.layers_per_block, tensors, source)
    network = Autoencoder(dataclasses.replace(config, dtype=dtype, param_dtype=dtype))
    layout = _autoencoder_layout(network.shapes)
    check_tensors(source, tensors, layout, network.shapes)
    return Opened(network.config, network, tensors, layout)


def load_autoencoder(path: Path | str, dtype: Dtype = jnp.float32) -> tuple[Autoencoder, Params]:
    """The autoencoder of a pipeline, on the first device.

    Args:
      path: the folder of a diffusers pipeline or of its autoencoder, a repository of the hub as
        `owner/name`, or a single file that holds one.
      dtype: dtype of parameters and computation.

    Returns:
      the network and its parameters.

    Raises:
      NotFoundError: a file is not there, or the hub does not give access.
      UserError: the config is not one of SD3, or a tensor is missing, unknown or misshaped.
    """
    opened = open_autoencoder(path, dtype)
    return opened.model, opened.load()


def read_clip_text_config(directory: Path) -> CLIPTextConfig:
    """The architecture of CLIP's text encoder, alone or in the folder of a whole CLIP.

    Raises:
      NotFoundError: its config is not there.
      UserError: the config is damaged, has a field missing, or an unsupported activation.
    """
    config = read_config(directory)
    if config.get("model_type") == "clip":
        tower = config.get("text_config") or config.get("text_config_dict") or {}
        if not isinstance(tower, Mapping):
            raise DamagedError(
                f"{directory / 'config.json'} is damaged (its text_config is no object): get it "
                f"again"
            )
        # A tower's own projection_dim only counts when the tower is used without the other.
        width = config.get("projection_dim", _CLIP_PROJECTION)
        config = _CLIP_DEFAULTS | dict(tower) | {"projection_dim": width}
    fields = _fields(
        config,
        directory,
        " ".join(_CLIP_SIZES),
        "hidden_act eos_token_id layer_norm_eps",
    )
    file = directory / "config.json"
    check_sizes(fields, _CLIP_SIZES, file)
    check_numbers(fields, {"layer_norm_eps": EPSILON}, file)
    if not isinstance(fields.get("eos_token_id"), int | None):
        raise UserError(f"eos_token_id in {file} is no number: get the file again")
    if fields["hidden_size"] % fields["num_attention_heads"]:
        raise UserError(
            f"hidden_size {fields['hidden_size']} in {file} is not divisible by "
            f"num_attention_heads {fields['num_attention_heads']}: get the file again"
        )
    # Configs from before 2023 carry a wrong id, 2; the end is then at the highest id.
    if fields.get("eos_token_id") == 2:
        fields["eos_token_id"] = None
    if str(fields.get("hidden_act", "quick_gelu")) not in ACTIVATIONS:
        raise UserError(
            f"{directory / 'config.json'} has hidden_act {fields['hidden_act']!r}, which is not "
            f"one of {', '.join(ACTIVATIONS)}: use a Stable Diffusion 3 pipeline"
        )
    return CLIPTextConfig(**fields)


def load_clip_text(
    directory: Path, dtype: Dtype, mesh: Mesh | None = None
) -> tuple[CLIPTextConfig, Model, Params]:
    """A text encoder of CLIP, saved as `CLIPTextModelWithProjection` or `CLIPModel`.

    Args:
      directory: folder with `config.json` and safetensors; only the text tower of a CLIP is read.
      dtype: dtype of parameters and computation.
      mesh: mesh to shard the parameters over.

    Returns:
      its architecture, network and parameters.

    Raises:
      NotFoundError: a file is not there.
      UserError: the activation is unsupported, or a tensor is missing, unknown or misshaped.
    """
    opened = open_clip_text(directory, dtype)
    return opened.config, opened.model, opened.load(mesh)


def open_clip_text(directory: Path, dtype: Dtype) -> Opened:
    """Finds and checks the files of a text encoder of CLIP; see `load_clip_text`."""
    config = read_clip_text_config(directory)
    tensors = _tensors(directory)
    if read_config(directory).get("model_type") == "clip":
        text = ("text_model.", "text_projection.")
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(text)}
    return _open_clip(directory, config, tensors, dtype)


def read_t5_config(directory: Path) -> T5Config:
    """The architecture of an encoder of T5 v1.1.

    Raises:
      NotFoundError: its config is not there.
      UserError: the config is damaged, has a field missing, or is not T5 v1.1.
    """
    config = read_config(directory)
    _check(config, directory, feed_forward_proj=("gated-gelu", "relu"))
    fields = _fields(
        config,
        directory,
        " ".join(_T5_SIZES),
        "relative_attention_num_buckets relative_attention_max_distance layer_norm_epsilon",
    )
    file = directory / "config.json"
    check_sizes(fields, _T5_SIZES, file)
    check_sizes(fields, [name for name in fields if name.startswith("relative")], file)
    check_numbers(fields, {"layer_norm_epsilon": EPSILON}, file)
    # Half of the buckets are for each direction, and half of these for a single distance each.
    if fields.get("relative_attention_num_buckets", 32) < 4:
        raise UserError(f"relative_attention_num_buckets in {file} is below 4: get the file again")
    return T5Config(**fields)


def load_t5(
    directory: Path, dtype: Dtype, mesh: Mesh | None = None
) -> tuple[T5Config, Model, Params]:
    """An encoder of T5 v1.1, saved as `T5EncoderModel`.

    Args:
      directory: folder with `config.json` and safetensors.
      dtype: dtype of parameters and computation; activations of T5-XXL exceed float16.
      mesh: mesh to shard the parameters over.

    Returns:
      its architecture, network and parameters.

    Raises:
      NotFoundError: a file is not there.
      UserError: it is not T5 v1.1, or a tensor is missing, unknown or misshaped.
    """
    opened = open_t5(directory, dtype)
    return opened.config, opened.model, opened.load(mesh)


def open_t5(directory: Path, dtype: Dtype) -> Opened:
    """Finds and checks the files of an encoder of T5; see `load_t5`."""
    return _open_t5(directory, read_t5_config(directory), _tensors(directory), dtype)


@dataclasses.dataclass(frozen=True)
class OpenedText:
    """The text encoders of a pipeline, not read yet.

    Attributes:
      encoders: the encoders `clip_l`, `clip_g` and, if there is one, `t5`.
      tokenizers: folders of the encoders' tokenizers.
      context_width: features of a text token.
    """

    encoders: dict[str, Opened]
    tokenizers: dict[str, Path]
    context_width: int


def open_text_encoders(
    path: Path | str, dtype: Dtype = jnp.bfloat16, tokenizers: Path | str | None = None
) -> OpenedText:
    """Finds the files of the text encoders, and checks them against each other.

    Arguments and errors are those of `load_text_encoders`; several problems are reported at once.
    """
    dtype = weight_dtype(dtype)
    single = expand(path).is_file()
    if single and not tokenizers:
        raise UserError(
            f"{path} is a single file, which holds no tokenizers: give tokenizers=, the folder or "
            f"owner/name of a diffusers pipeline, which is data.tokenizers in a config"
        )
    folder = expand(path) if single else fetch_pipeline(path)
    texts = fetch_pipeline(tokenizers) if tokenizers else folder
    problems = Problems()
    opened: dict[str, Opened] = {}
    with problems.found():
        names = dict(_PARTS)
        headers = read_headers([folder])[0] if single else {}
        t5 = stability_encoders.read_t5(folder, headers)
        if not (t5 is not None if single else has_t5(folder)):
            del names["t5"]
        for name, part in names.items():
            with problems.found():
                if not single:
                    open_part = open_t5 if name == "t5" else open_clip_text
                    opened[name] = open_part(folder / part, dtype)
                elif name == "t5" and t5 is not None:
                    opened[name] = _open_t5(folder, *t5, dtype)
                else:
                    found = stability_encoders.read_clip(folder, headers, name)
                    opened[name] = _open_clip(folder, *found, dtype)
        places = {
            name: texts / part.replace("text_encoder", "tokenizer") for name, part in names.items()
        }
        for name in opened:
            with problems.found():
                check_vocabulary(places[name], opened[name].config.vocab_size)
    problems.tell()
    if "t5" in opened:
        width = opened["t5"].config.d_model
    elif (folder / "transformer").is_dir():
        directory = folder / "transformer"
        fields = _fields(read_config(directory), directory, "joint_attention_dim")
        check_sizes(fields, fields, directory / "config.json")
        width = fields["joint_attention_dim"]
    else:
        width = _SD3_CONTEXT_WIDTH
    return OpenedText(opened, places, width)


def has_t5(folder: Path) -> bool:
    """Whether a pipeline has a third text encoder, by its index or, without one, by its folders.

    Raises:
      UserError: the index is damaged.
    """
    index = folder / PIPELINE_INDEX
    if index.is_file():
        entry = read_json(index).get(_PARTS["t5"])
        if entry is not None:
            return class_of(entry) is not None
    return (folder / _PARTS["t5"]).is_dir()


def load_text_encoders(
    path: Path | str,
    dtype: Dtype = jnp.bfloat16,
    mesh: Mesh | None = None,
    *,
    tokenizers: Path | str | None = None,
    t5_length: int = T5_LENGTH,
    batch: int = 32,
) -> SD3TextEncoder:
    """The three text encoders of a pipeline, or the two of CLIP where T5 is absent.

    Args:
      path: the folder of a diffusers pipeline, a repository of the hub as `owner/name`, or a
        single file.
      dtype: dtype of parameters and computation; activations of T5-XXL exceed float16.
      mesh: devices of this process, to shard the parameters and the batch over.
      tokenizers: folder or repository of the pipeline whose tokenizers are read, needed for a
        single file. Default: `path`.
      t5_length: T5's tokens, 77 to 256 in training of SD3 and SD3.5.
      batch: prompts encoded at once.

    Raises:
      NotFoundError: a file is not there, or the hub does not give access.
      UserError: a config is not one of SD3, a tensor is missing, unknown or misshaped, a tokenizer
        does not have its encoder's vocabulary, the batch does not divide over the mesh, or a single
        file is given without tokenizers.
    """
    opened = open_text_encoders(path, dtype, tokenizers)
    clips = [opened.encoders[name].config for name in ("clip_l", "clip_g")]
    lengths = dict.fromkeys(opened.encoders, min(c.max_position_embeddings for c in clips))
    if "t5" in lengths:
        lengths["t5"] = t5_length
    return SD3TextEncoder(
        {name: PromptTokenizer(opened.tokenizers[name], n) for name, n in lengths.items()},
        {name: encoder.model for name, encoder in opened.encoders.items()},
        {name: encoder.load(mesh) for name, encoder in opened.encoders.items()},
        t5_length=t5_length,
        context_width=opened.context_width,
        batch=batch,
        mesh=mesh,
    )


def _tensors(directory: Path) -> dict[str, StoredTensor]:
    return read_headers(weight_files(directory))[0]


def _open_clip(
    source: Path, config: CLIPTextConfig, tensors: Mapping[str, StoredTensor], dtype: Dtype
) -> Opened:
    check_depth(config.num_hidden_layers, tensors, source)
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    model = clip_text(config)
    # Older files also hold the position indices as a tensor.
    ignored = frozenset({"text_model.embeddings.position_ids"})
    layout = clip_text_layout(config)
    check_tensors(source, tensors, layout, model.shapes, ignored)
    return Opened(config, model, tensors, layout)


def _open_t5(
    source: Path, config: T5Config, tensors: Mapping[str, StoredTensor], dtype: Dtype
) -> Opened:
    check_depth(config.num_layers, tensors, source)
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    model = t5_encoder(config)
    # The same table under two names, of which a file has either or both.
    shared, tied = "shared.weight", "encoder.embed_tokens.weight"
    layout = _t5_layout(config, shared if shared in tensors else tied)
    ignored = frozenset({tied})
    check_tensors(source, tensors, layout, model.shapes, ignored)
    return Opened(config, model, tensors, layout)
