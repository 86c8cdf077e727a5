"""Where the files of a model are: a folder, a file, or a repository of the Hugging Face hub.

One rule finds the weights of every part of a model, locally and on the hub: files without a variant
in their name are preferred, and those of a variant such as `fp16` are taken if there is no other.
Where a whole file and the shards of an index lie side by side, diffusers reads the shards.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection
from pathlib import Path

from ladd_jax.errors import DamagedError, NotFoundError, UserError, brief
from ladd_jax.paths import expand, near
from ladd_jax.whole_files import read_json

WEIGHTS = "diffusion_pytorch_model"
"""Stem of the weight files of a diffusers model."""

PIPELINE_INDEX = "model_index.json"
"""The file that lists the parts of a diffusers pipeline and their classes."""

_MODEL = "model"
"""Stem of the weight files of a transformers model."""

# Suffixes of pickled weights, which can run arbitrary code when they are read.
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
"""The file that diffusers looks for in a LoRA's folder."""

LORA_SETTINGS = "adapter_config.json"
"""The file of PEFT's settings, in the folder of the LoRA file."""

_PEFT_WEIGHTS = "adapter_model.safetensors"

_TRANSFORMER = "transformer"
_ENCODERS = (
    "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
    "tokenizer_3", "scheduler",
)  # fmt: skip
_OTHERS = {
    "unet": "holds a U-Net",
    **dict.fromkeys((LORA_WEIGHTS, LORA_SETTINGS, _PEFT_WEIGHTS), "holds a LoRA"),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of one transformer.

    Attributes:
      files: the safetensors files.
      config: `config.json` of a diffusers model; None for a single file without one.
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
        repository on the hub as `owner/name`, from which the transformer's files are fetched.
      variant: variant in the names of the wanted files, such as `fp16`; None takes the files
        without a variant, or those of the only one.
      network: what messages call the network that is looked for.
      pipeline: what messages call the pipelines that hold one.

    Raises:
      NotFoundError: nothing is there; the hub does not answer, or does not give access.
      UserError: something else is there.
    """
    local = _here(
        path,
        str(path),
        "a folder, a .safetensors file",
        lambda names: _of_transformer(names, str(path), variant),
    )
    if local.is_file():
        if local.suffix in _PICKLES:
            raise UserError(_pickled(local))
        config = local.with_name("config.json")
        beside = config if local.name.startswith(WEIGHTS) and config.exists() else None
        if local.name.endswith(".json"):
            return Source(_indexed(local), beside)
        return Source((local,), beside)
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
    return Source(tuple(weight_files(folder, variant)), config)


def names_repository(path: str | Path) -> bool:
    """Whether a path looks like a hub repository, owner/name; it may still be a folder."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)))


def fetch_pipeline(path: str | Path) -> Path:
    """The folder of a pipeline; for a hub repository, its encoders are fetched into one.

    Raises:
      NotFoundError: it is neither a folder nor a repository that can be fetched from the hub.
    """
    return _folder(
        path,
        "a pipeline, which is needed for its text encoders and autoencoder: give the one that "
        "holds text_encoder and vae",
        lambda names: _of_encoders(names, str(path)),
    )


def weight_files(directory: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of one part of a pipeline, or of a standalone model.

    Args:
      directory: the part's folder.
      variant: variant in the names of the wanted files, such as `fp16`; None takes the files
        without a variant, or those of the only one.

    Raises:
      NotFoundError: there are none, or some that their index names are missing.
      UserError: there are several variants, only pickled weights, or both a whole file and shards,
        of which some libraries read the one and some the other.
    """
    name = _choose([file.name for file in directory.iterdir()], str(directory), variant)
    chosen = directory / name
    return list(_indexed(chosen)) if name.endswith(".json") else [chosen]


def fetch_model(path: str | Path) -> Path:
    """The folder of a model in `transformers`' layout, fetched first if it is on the hub.

    Raises:
      NotFoundError: it is neither a folder nor a repository that can be fetched from the hub.
    """
    return _folder(
        path,
        "a model: give the one that holds config.json and model.safetensors",
        lambda names: _only(_of_part(names, "", str(path)), ".json", ".txt", ".safetensors"),
    )


def _folder(path: str | Path, wanted: str, choose: "_Choose") -> Path:
    """A local folder, or one with the files that `choose` selects from a hub repository."""
    local = expand(path)
    if local.is_dir():
        return local
    if local.exists() or not names_repository(path):
        gone = "" if local.exists() else f"; it does not exist{near(path)}"
        raise NotFoundError(f"{path} is not a folder of {wanted}, or owner/name on the hub{gone}")
    return _fetch(str(path), choose)


def find_lora(path: str | Path) -> Path:
    """The file of a LoRA.

    Args:
      path: the file, a folder written by diffusers or PEFT or with one such file, or a repository
        on the hub as `owner/name`.

    Raises:
      NotFoundError: nothing is there; the hub does not answer, or does not give access.
      UserError: there are several, or only pickled weights.
    """
    local = _here(
        path,
        f"the LoRA {path}",
        "a .safetensors file, its folder",
        lambda names: _of_lora(names, str(path)),
    )
    if local.is_dir():
        local /= _of_lora([file.name for file in local.iterdir()], str(path))[0]
    if local.suffix in _PICKLES:
        raise UserError(_pickled(local))
    return local


def _of_lora(names: Collection[str], where: str) -> list[str]:
    """The LoRA file among the names in a folder, and its settings file if there is one."""
    # Systems put hidden files beside a user's, with the same suffix.
    own = [name for name in names if "/" not in name and not name.startswith(".")]
    found = [name for name in own if name.endswith(".safetensors")]
    known = [name for name in (LORA_WEIGHTS, _PEFT_WEIGHTS) if name in found]
    if not known and len(found) > 1:
        raise UserError(
            f"{where} has {len(found)} files, {found[0]} and {found[1]} among them: name one"
        )
    if not found:
        _refuse_pickles(own, where)
        raise NotFoundError(f"{where} has no .safetensors file: give a LoRA")
    settings = [name for name in own if name == LORA_SETTINGS]
    return [(known or found)[0], *settings]


def _here(path: str | Path, what: str, ways: str, choose: "_Choose") -> Path:
    """A local path, or a folder with the files that `choose` selects from a hub repository.

    Args:
      path: the path, or the repository as `owner/name`.
      what: what messages call it.
      ways: what a user can give besides a repository, for messages.
      choose: selects the files to fetch from the names of a repository's files.
    """
    local = expand(path)
    if local.exists():
        return local
    if not names_repository(path):
        raise NotFoundError(
            f"{what} does not exist{near(path)}: give {ways}, or a repository on the hub as "
            f"owner/name"
        )
    return _fetch(str(path), choose)


def pipeline_class(path: str | Path) -> str:
    """The class of a diffusers pipeline, as its index names it; empty where there is no index.

    Raises:
      NotFoundError: the repository cannot be fetched from the hub.
      UserError: the index is damaged.
    """
    local = expand(path)
    if not local.exists() and names_repository(path):
        local = _fetch(str(path), lambda names: [PIPELINE_INDEX])
    file = local / PIPELINE_INDEX
    if not file.is_file():
        return ""
    return str(read_json(file).get("_class_name", ""))


@dataclasses.dataclass
class _Found:
    """The names of one variant's weights: a whole file, the index of several, or both."""

    whole: str = ""
    index: str = ""


def _choose(names: Collection[str], where: str, variant: str | None = None) -> str:
    """The weight file, or the index of several, among the names in a folder."""
    for stem in (WEIGHTS, _MODEL):
        found = _by_variant(names, stem)
        if not found:
            continue
        mark = variant or ""
        if variant is None and mark not in found:
            if len(found) > 1:
                raise NotFoundError(
                    f"{where} has weights in the variants {', '.join(sorted(found))} and none "
                    f"without a variant: name one, or keep the files of only one"
                )
            mark = next(iter(found))
        if mark not in found:
            break
        files = found[mark]
        if files.whole and files.index and stem == _MODEL:
            raise UserError(
                f"{where} has both {files.whole} and {files.index}, and libraries differ in which "
                f"they read: remove the older"
            )
        return files.index or files.whole
    _refuse_pickles(names, where)
    mark = f".{variant}" if variant else ""
    raise NotFoundError(
        f"{where} has no weights, neither {WEIGHTS}{mark}.safetensors nor "
        f"{_MODEL}{mark}.safetensors nor an index of either: give a folder with weights in "
        f"safetensors"
    )


def _by_variant(names: Collection[str], stem: str) -> dict[str, _Found]:
    """The files of a model's weights by variant, which is empty for files without one.

    Older releases of diffusers wrote the variant of an index before `.index`.
    """
    found: dict[str, _Found] = {}
    for name in names:
        if match := re.fullmatch(rf"{stem}(?:\.(\w+))?\.safetensors", name):
            found.setdefault(match[1] or "", _Found()).whole = name
        elif match := re.fullmatch(
            rf"{stem}\.safetensors(?:\.(\w+))?\.index(?:\.(\w+))?\.json", name
        ):
            files = found.setdefault(match[1] or match[2] or "", _Found())
            files.index = files.index if files.index and match[1] else name
    return found


def _refuse_pickles(names: Collection[str], where: str) -> None:
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles:
        raise UserError(_pickled(Path(where, pickles[0])))


def _pickled(file: Path) -> str:
    return (
        f"{file} holds pickled weights, which can run any code when they are read: get the model "
        f"in safetensors, or convert it with save_pretrained if you trust it"
    )


def _indexed(index: Path) -> tuple[Path, ...]:
    """The files that an index names; raises if one of them is missing."""
    files = tuple(index.with_name(name) for name in _names_in(index))
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise NotFoundError(
            f"{index} names {absent[0]}, which is not there: get all of its {len(files)} files"
        )
    return files


def _names_in(index: Path) -> list[str]:
    """The names of the weight files in an index, sorted."""
    try:
        names = read_json(index).get("weight_map")
    except DamagedError as error:
        raise DamagedError(f"{index} is not an index of weights: {error}") from error
    found = list(names.values()) if isinstance(names, dict) else []
    # The files lie beside the index, so a name with a folder in it would lead elsewhere.
    if not found or not all(isinstance(name, str) and _is_file_name(name) for name in found):
        raise DamagedError(f"{index} is not an index of weights (it names no files): get it again")
    return sorted(set(found))


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


_Choose = Callable[[Collection[str]], Collection[str]]
"""Selects, from the names of a repository's files, those to fetch."""


def _of_part(
    names: Collection[str], part: str, where: str, variant: str | None = None
) -> list[str]:
    """The files to fetch for one part of a repository, with one form of its weights, if any."""
    prefix = f"{part}/" if part else ""
    own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    own = [name for name in own if "/" not in name]
    heavy = (".safetensors", ".index.json", ".msgpack", ".h5", ".onnx", ".onnx_data", *_PICKLES)
    is_weights = re.compile(r".*\.index(\.\w+)?\.json")
    wanted = [n for n in own if not n.endswith(heavy) and not is_weights.fullmatch(n)]
    if any(name.endswith((".safetensors", *_PICKLES)) for name in own):
        chosen = _choose(own, f"{where}/{part}".rstrip("/"), variant)
        wanted.append(chosen)
        if chosen.endswith(".json"):
            wanted += [name for name in own if _is_shard(name, chosen)]
    return [prefix + name for name in wanted]


def _is_shard(name: str, index: str) -> bool:
    """Whether a file is, by its name, one of the shards of an index."""
    stem, _, rest = index.partition(".safetensors")
    mark = rest.removesuffix(".json").replace(".index", "")
    return bool(
        re.fullmatch(rf"{stem}{re.escape(mark)}-\d+-of-\d+\.safetensors", name)
        or re.fullmatch(rf"{stem}-\d+-of-\d+{re.escape(mark)}\.safetensors", name)
    )


def _of_transformer(names: Collection[str], where: str, variant: str | None) -> list[str]:
    part = _TRANSFORMER if any(name.startswith(f"{_TRANSFORMER}/") for name in names) else ""
    return _only(_of_part(names, part, where, variant), ".json", ".safetensors")


def _only(names: Collection[str], *suffixes: str) -> list[str]:
    """The names with these suffixes, since repositories also hold pictures and other files."""
    return [name for name in names if name.endswith(suffixes)]


def _of_encoders(names: Collection[str], where: str) -> list[str]:
    files = [name for name in names if name == PIPELINE_INDEX or name.startswith("LICENSE")]
    return files + [name for part in _ENCODERS for name in _of_part(names, part, where)]


def _fetch(repository: str, choose: _Choose) -> Path:
    """A folder with a repository's files; offline, with those that were fetched before."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        files = choose(huggingface_hub.HfApi().list_repo_files(repository))
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(files)))
    except errors.GatedRepoError as error:
        raise NotFoundError(
            f"{repository} is gated: accept its licence on https://huggingface.co/{repository}, "
            f"then run `hf auth login` with a token of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotFoundError(
            f"there is neither a folder nor a public repository {repository}{near(repository)}: "
            f"check the name, or run `hf auth login` with a token that may read it"
        ) from error
    except UserError:
        raise
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        with contextlib.suppress(OSError, errors.HFValidationError):
            return Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
        reason = brief(error)
        raise NotFoundError(
            f"there is no folder {repository}{near(repository)}, and it cannot be fetched from the "
            f"hub ({reason}): give a folder, or try again with a connection"
        ) from error
