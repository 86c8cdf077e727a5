"""The readers that are tried: each reads a folder of seeds, or what a mutation left of it.

A reader returns what it has read, which a check may compare with what was written, or raises an
error.
"""

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzzing import seeds
from ladd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of files that others may have written.

    Attributes:
      seeds: name of the folder with its seeds.
      read: `read(folder)` reads everything in the folder and returns it.
      check: `check(value, changes)` says what is wrong with a value that was read from changed
        files, or returns an empty text.
    """

    seeds: str
    read: Callable[[Path], Any]
    check: Callable[[Any, Sequence[str]], str] = lambda value, changes: ""


def _each(records: Any) -> int:
    """Reads all records, each of which may be refused, and counts those that are read."""
    from ladd_jax.data.images import decode_image, image_size

    count = 0
    for i in range(len(records)):
        with contextlib.suppress(UserError):
            data = records[i].data
            image_size(data)
            decode_image(data)
            count += 1
    return count


def _image_folder(folder: Path) -> list[int]:
    from ladd_jax.data.image_records import open_images

    return _several([lambda s=s: _each(open_images(folder, strict=s)) for s in (False, True)])


def _several(reads: Sequence[Callable[[], Any]]) -> list[Any]:
    """All results; if some reads end in errors for the user, raises the first of these."""
    found, refused = [], None
    for read in reads:
        try:
            found.append(read())
        except UserError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return found


def _tables(folder: Path) -> int:
    import datasets

    from ladd_jax.data.image_records import open_images

    datasets.config.HF_DATASETS_CACHE = folder.parent / "cache"
    try:
        return _each(open_images(folder))
    finally:
        shutil.rmtree(folder.parent / "cache", ignore_errors=True)


def _images(folder: Path) -> int:
    from ladd_jax.data.image_records import open_images

    return _each(open_images(folder))


_SETS = {"parti.tsv": "parti", "drawbench.csv": "drawbench", "coco.json": "coco"}


def _prompts(folder: Path) -> list[Any]:
    from ladd_jax.data.prompt_sets import read_prompt_set

    def read(file: Path) -> Any:
        name = _SETS.get(file.name)
        return read_prompt_set(f"{name}:{file}" if name else file)

    return _several([lambda f=f: read(f) for f in sorted(folder.iterdir())])


def _pictures(folder: Path) -> int:
    from ladd_jax.data.picture_folder import PictureFolder

    return sum(len(places) for _, places in PictureFolder(folder).batches(2))


def _weights(folder: Path) -> int:
    import jax
    import jax.numpy as jnp

    from ladd_jax.weights import load_mmdit

    single = folder / "one.safetensors"
    loaded = load_mmdit(single if single.exists() else folder, jnp.float32)
    return sum(leaf.size for leaf in jax.tree.leaves(loaded.params))


def _text(folder: Path) -> int:
    import jax
    import jax.numpy as jnp

    from ladd_jax.models.sd3.encoder_weights import open_text_encoders

    opened = open_text_encoders(folder, jnp.float32)
    leaves = [jax.tree.leaves(encoder.load()) for encoder in opened.encoders.values()]
    return sum(leaf.size for some in leaves for leaf in some)


def _tokenizers(folder: Path) -> list[Any]:
    from ladd_jax.models.sd3.text import PromptTokenizer
    from ladd_jax.weights.vocabulary import vocabulary_size

    def read(place: Path) -> Any:
        size = vocabulary_size(place)
        return size, PromptTokenizer(place, 16)(["a red cat", "", "x" * 99]).shape

    return _several([lambda p=p: read(p) for p in sorted(folder.iterdir())])


def _vocabulary(folder: Path) -> list[Any]:
    from ladd_jax.weights.vocabulary import check_vocabulary

    return _several([lambda p=p: check_vocabulary(p, 10) for p in sorted(folder.iterdir())])


def _autoencoder(folder: Path) -> int:
    import jax

    from ladd_jax.models.sd3.encoder_weights import load_autoencoder

    return sum(leaf.size for leaf in jax.tree.leaves(load_autoencoder(folder)[1]))


def _index(folder: Path) -> Any:
    from ladd_jax.models.sd3.encoder_weights import (
        has_t5,
        read_autoencoder_config,
        read_clip_text_config,
        read_t5_config,
    )
    from ladd_jax.models.sd3.parts import check_index
    from ladd_jax.models.sd3.pipeline import read_index
    from ladd_jax.stages.trained import read_facts
    from ladd_jax.weights.fingerprint import ENCODERS, fingerprint
    from ladd_jax.weights.source import pipeline_class

    return _several(
        [
            lambda: pipeline_class(folder), lambda: read_index(folder), lambda: has_t5(folder),
            lambda: check_index(folder), lambda: read_facts(folder),
            lambda: read_autoencoder_config(folder),
            lambda: read_clip_text_config(folder / "text_encoder"),
            lambda: read_t5_config(folder / "text_encoder_3"),
            lambda: fingerprint(str(folder), ENCODERS),
        ]
    )  # fmt: skip


def _shards(folder: Path) -> dict[str, Any]:
    from ladd_jax.data.contents import read_contents
    from ladd_jax.data.shard_sets import read_identity
    from ladd_jax.data.shards import Shards

    found = {}
    for name in ("encoded", "synthesized"):
        directory = folder / name
        shards = Shards(directory)
        read_identity(directory)
        read_contents(directory)
        found[name] = {
            bucket: shards.read(bucket, np.arange(size)) for bucket, size in shards.sizes.items()
        }
    return found


def _check_shards(value: dict[str, Any], changes: Sequence[str]) -> str:
    """What is wrong if only files of records were changed and records differ from those written."""
    if not all(".array_record-" in change.partition(":")[0] for change in changes):
        return ""
    for name, sets in value.items():
        for read in sets.values():
            for i, latents in enumerate(read["latents"]):
                if not np.array_equal(latents, seeds.record(i)["latents"]):
                    return f"record {i} of {name} is not as it was written"
                if read["prompt"][i] != seeds.PROMPTS[i]:
                    return f"the prompt of record {i} of {name} is not as it was written"
    return ""


def _checkpoints(folder: Path) -> tuple[Any, ...]:
    import jax

    from ladd_jax.training.checkpoint import Checkpoints, newest_config

    directory = folder / "checkpoints"
    newest_config(directory)
    saved = Checkpoints(directory, keep=5)
    try:
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), seeds.state(1)
        )
        state = saved.restore_newest(like)
        return state, saved.config(int(state.step))
    finally:
        saved.close()


def _check_checkpoints(value: tuple[Any, ...], changes: Sequence[str]) -> str:
    """What is wrong if digests were not changed and the state differs from the one saved."""
    if not all("/state/" in change.partition(":")[0] for change in changes):
        return ""
    state, config = value
    whole = seeds.state(int(state.step))
    if not np.array_equal(state.params["a"]["w"], whole.params["a"]["w"]):
        return f"the state of step {int(state.step)} is not as it was saved"
    return "" if config == seeds.CHECKPOINT_CONFIG else "the config is not as it was saved"


def _workdir(folder: Path) -> list[Any]:
    from ladd_jax.cli.ownership import owned
    from ladd_jax.config.fields import Config, to_dict
    from ladd_jax.config.workdir import places, read, settle

    run = folder / "run"

    def own() -> None:
        with owned(run, dead_seconds=-1.0):
            pass

    return _several(
        [lambda: places(run), lambda: read(run), lambda: settle(run, to_dict(Config())), own]
    )


def _reports(folder: Path) -> list[Any]:
    from ladd_jax.evaluation.rows import acceptance, format_table, guidance_note, read_metrics
    from ladd_jax.training.metrics import read_history

    def metrics() -> Any:
        rows, _ = read_metrics(folder / "metrics.json")
        return format_table(rows), guidance_note(rows), acceptance(rows)

    return _several([lambda: read_history(folder), metrics])


def _commands(folder: Path) -> Any:
    """Parses a config file and a command line, as a process does that has parsed none before."""
    import io
    import json

    from absl.flags import FLAGS

    from ladd_jax.cli import flags
    from ladd_jax.config.fields import partly_typed

    words = []
    with contextlib.suppress(ValueError, OSError, RecursionError):
        for line in (folder / "arguments.jsonl").read_text().splitlines():
            words += [str(word).replace("\0", "") for word in json.loads(line) or ()]
    # Where ml_collections looks for fields of a config.
    sys.argv = ["main", f"--config={folder}/config.py", *words]
    try:
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            flags.parse(sys.argv)
            _, errors = partly_typed(flags.config())
        return len(errors)
    except SystemExit as error:
        if error.code != 2 or not told.getvalue().startswith("error: "):
            raise RuntimeError(f"exit code {error.code}: {told.getvalue()}") from error
        raise UserError(told.getvalue()) from error
    finally:
        FLAGS.unparse_flags()
        for name in [*FLAGS]:
            if name.startswith("config."):
                delattr(FLAGS, name)
        for name in flags.SHARED:
            if name != "config":
                FLAGS[name].unparse()


READERS = {
    "image folders of jsonl": Reader("image_folder/jsonl", _image_folder),
    "image folders of csv": Reader("image_folder/csv", _image_folder),
    "image folders of parquet": Reader("image_folder/parquet", _image_folder),
    "tables of parquet": Reader("tables/parquet", _tables),
    "tables of Arrow": Reader("tables/arrow", _tables),
    "saved datasets": Reader("tables/saved", _tables),
    "tars": Reader("tars", _images),
    "captioned folders": Reader("captioned", _images),
    "prompts": Reader("prompts", _prompts),
    "picture folders": Reader("pictures", _pictures),
    "weights in parts": Reader("weights/sharded", _weights),
    "weights in a single file": Reader("weights/single", _weights),
    "weights in half precision": Reader("weights/half", _weights),
    "text encoders": Reader("text", _text),
    "tokenizers": Reader("tokenizers", _tokenizers),
    "vocabularies": Reader("vocabulary", _vocabulary),
    "autoencoders": Reader("autoencoder", _autoencoder),
    "indices and configs of pipelines": Reader("index", _index),
    "shards": Reader("shards", _shards, _check_shards),
    "checkpoints": Reader("checkpoints", _checkpoints, _check_checkpoints),
    "workdirs": Reader("workdir", _workdir),
    "history and metrics": Reader("reports", _reports),
    "command lines": Reader("commands", _commands),
}
