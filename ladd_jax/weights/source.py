"""Where the files of a model are: a folder, a file, or a repository of the Hugging Face hub."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from ladd_jax.errors import DamagedError, NotFoundError, UserError
from ladd_jax.whole_files import read_json

WEIGHTS = "diffusion_pytorch_model"
"""Stem of the files of a diffusers model."""

PIPELINE_INDEX = "model_index.json"
"""Names the parts of a diffusers pipeline and their classes."""

_TRANSFORMER = "transformer"
_ENCODERS = (
    "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
    "tokenizer_3", "scheduler",
)  # fmt: skip
_OTHERS = {
    "unet": "holds a U-Net",
    "pytorch_lora_weights.safetensors": "holds a LoRA",
    "adapter_config.json": "holds a LoRA",
    "adapter_model.safetensors": "holds a LoRA",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of one transformer.

    Attributes:
      files: safetensors.
      config: `config.json` of a diffusers model; None for a single file.
    """

    files: tuple[Path, ...]
    config: Path | None


def find(
    path: str | Path,
    variant: str | None = None,
    *,
    network: str = "transformer",
    pipeline: str = "diffusers",
) -> Source:
    """The files of a transformer.

    Args:
      path: a diffusers pipeline's folder, a transformer's folder, a `.safetensors` file, or a
        repository of the hub as `owner/name`, of which the transformer's files are fetched.
      variant: such as `fp16`, for files that have it in their name; where a folder has only one
        variant, that one is taken without being named.
      network: what messages call the network that is looked for.
      pipeline: what messages call the pipelines that hold one.

    Raises:
      NotFoundError: nothing is there; the hub does not answer, or does not give access.
      UserError: something else is there.
    """
    local = Path(path).expanduser()
    if not local.exists():
        if not names_repository(path):
            raise NotFoundError(
                f"{path} does not exist: give a folder, a .safetensors file, or a repository of "
                f"the hub as owner/name"
            )
        local = _fetch(str(path), list(_patterns(variant)))
    if local.is_file():
        config = local.with_name("config.json")
        if local.name.startswith(WEIGHTS) and config.exists():
            return Source((local,), config)
        return Source((local,), None)
    folder = local / _TRANSFORMER if (local / _TRANSFORMER).is_dir() else local
    config = folder / "config.json"
    if not config.exists():
        for name, what in _OTHERS.items():
            if (folder / name).exists():
                raise UserError(
                    f"{local} {what} and no {network}: give a {pipeline} pipeline or its "
                    f"transformer folder"
                )
        raise NotFoundError(
            f"{local} has neither transformer/config.json nor config.json: give a {pipeline} "
            f"pipeline, its transformer folder, or a single .safetensors file"
        )
    return Source(_weights(folder, variant), config)


def names_repository(path: str | Path) -> bool:
    """Whether a path has the form of a repository of the hub, owner/name; it may be a folder."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)))


def fetch_pipeline(path: str | Path) -> Path:
    """The folder of a whole pipeline; the encoders of a repository of the hub are fetched.

    Raises:
      NotFoundError: neither a folder nor a repository that the hub gives.
    """
    return _folder(
        path,
        "a pipeline, which is needed for its text encoders and autoencoder: give the one that "
        "holds text_encoder and vae",
        [PIPELINE_INDEX, "LICENSE*", *(f"{part}/*" for part in _ENCODERS)],
    )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors of one component of a pipeline, in full precision where it is there.

    Raises:
      NotFoundError: there are none, or not all that their index names.
    """
    for stem in ("model", "diffusion_pytorch_model"):
        # Full precision first; some downloads hold the half-precision variant alone.
        for index, single in (
            (f"{stem}.safetensors.index.json", f"{stem}.safetensors"),
            (f"{stem}.safetensors.index.fp16.json", f"{stem}.fp16.safetensors"),
        ):
            if (directory / single).exists():
                return [directory / single]
            if (directory / index).exists():
                files = [directory / name for name in _names_in(directory / index)]
                absent = [file for file in files if not file.exists()]
                if absent:
                    raise NotFoundError(
                        f"{directory / index} names {absent[0].name}, which is not there: "
                        f"download all {len(files)} files"
                    )
                return files
    raise NotFoundError(
        f"no model.safetensors or diffusion_pytorch_model.safetensors in {directory}: give a "
        f"folder with weights in safetensors"
    )


def fetch_model(path: str | Path) -> Path:
    """The folder of a model in `transformers`' layout; one of the hub is fetched.

    Raises:
      NotFoundError: neither a folder nor a repository that the hub gives.
    """
    return _folder(
        path,
        "a model: give the one that holds config.json and model.safetensors",
        ["*.json", "*.txt", "model*.safetensors"],
    )


def _folder(path: str | Path, wanted: str, patterns: list[str]) -> Path:
    """A folder that is here, or what matches the patterns of a repository of the hub."""
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.exists() or not names_repository(path):
        raise NotFoundError(f"{path} is no folder of {wanted}, or owner/name of the hub")
    return _fetch(str(path), patterns)


def pipeline_class(path: str | Path) -> str:
    """The class of a diffusers pipeline, as its index names it; empty where there is no index.

    Raises:
      NotFoundError: a repository that the hub does not give.
      UserError: the index is damaged.
    """
    local = Path(path).expanduser()
    if not local.exists() and names_repository(path):
        local = _fetch(str(path), [PIPELINE_INDEX])
    file = local / PIPELINE_INDEX
    if not file.is_file():
        return ""
    return str(read_json(file).get("_class_name", ""))


def _names(variant: str | None) -> tuple[str, str]:
    """Names of a whole file and of the index of a sharded one."""
    mark = f".{variant}" if variant else ""
    return f"{WEIGHTS}{mark}.safetensors", f"{WEIGHTS}.safetensors.index{mark}.json"


def _weights(folder: Path, variant: str | None) -> tuple[Path, ...]:
    if variant is None and not any((folder / name).exists() for name in _names(None)):
        pattern = rf"{WEIGHTS}(?:\.(\w+))?\.safetensors(?:\.index\.(\w+)\.json)?"
        matches = (re.fullmatch(pattern, file.name) for file in folder.iterdir())
        variants = {match[1] or match[2] for match in matches if match}
        if len(variants) > 1:
            raise NotFoundError(
                f"{folder} has weights in the variants {', '.join(sorted(variants))}: name one"
            )
        variant = next(iter(variants), None)
    whole, index = (folder / name for name in _names(variant))
    if whole.exists():
        return (whole,)
    if not index.exists():
        raise NotFoundError(
            f"{folder} has neither {whole.name} nor {index.name}: give a folder with weights in "
            f"safetensors"
        )
    files = tuple(folder / name for name in _names_in(index))
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise NotFoundError(
            f"{index} names {missing[0]}, which is not in {folder}: get all of its "
            f"{len(files)} files"
        )
    return files


def _names_in(index: Path) -> list[str]:
    """Names of the files of weights that an index names, in order."""
    try:
        names = read_json(index).get("weight_map")
    except DamagedError as error:
        raise DamagedError(f"{index} is no index of weights: {error}") from error
    found = list(names.values()) if isinstance(names, dict) else []
    if not found or not all(isinstance(name, str) for name in found):
        raise DamagedError(f"{index} is no index of weights (it names no files): get it again")
    return sorted(set(found))


def _patterns(variant: str | None) -> Iterable[str]:
    whole, index = _names(variant)
    shards = (
        (f"{WEIGHTS}.{variant}-*.safetensors", f"{WEIGHTS}-*.{variant}.safetensors")
        if variant
        else (f"{WEIGHTS}-?????-of-?????.safetensors",)
    )
    for name in ("config.json", whole, index, *shards):
        yield f"{_TRANSFORMER}/{name}"
        yield name


def _fetch(repository: str, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise NotFoundError(
            f"{repository} is gated: accept its licence on https://huggingface.co/{repository}, "
            f"then run `hf auth login` with a token of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotFoundError(
            f"there is neither a folder nor a public repository {repository}: check the name, or "
            f"run `hf auth login` with a token that may read it"
        ) from error
    except (errors.HFValidationError, OSError) as error:
        raise NotFoundError(
            f"{repository} is no folder here, and the hub does not give it "
            f"({str(error).splitlines()[0]}): give a folder, or try again with a connection"
        ) from error
