"""Small valid inputs for every reader, made from nothing."""

import csv
import io
import json
import os
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.workdir import Places, settle
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.contents import write_contents
from ladd_jax.data.shard_sets import Layout, Text, write_identity
from ladd_jax.data.shard_writing import finalize, missing_shards, write_shard
from ladd_jax.evaluation.rows import Row, write_metrics

RECORDS = 4
PROMPTS = [f"a red cat {i}" for i in range(RECORDS)]


def picture(number: int, kind: str = "PNG") -> bytes:
    """A picture of 8 x 8 random pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind)
    return written.getvalue()


def write_all(root: Path) -> None:
    """Writes a folder of seeds for each reader."""
    for name, write in _WRITERS.items():
        folder = root / name
        folder.mkdir(parents=True)
        write(folder)
    _pipelines(root)


def _image_folder(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"file_name": f"{i}.png", "text": text, "held_out": i == 0}
        for i, text in enumerate(PROMPTS)
    ]
    _write_rows(folder, "metadata", rows)
    for kind in ("jsonl", "csv", "parquet"):
        place = folder / kind
        place.mkdir()
        os.rename(folder / f"metadata.{kind}", place / f"metadata.{kind}")
        for i, end in enumerate(("PNG", "JPEG", "WEBP", "GIF")):
            (place / f"{i}.png").write_bytes(picture(i, end))
    (folder / "metadata.tsv").unlink()


def _write_rows(folder: Path, stem: str, rows: list[dict[str, Any]]) -> None:
    """Writes the same rows as JSON lines, CSV, TSV and parquet."""
    import pyarrow
    import pyarrow.parquet

    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{stem}.jsonl").write_text(text)
    for end, delimiter in (("csv", ","), ("tsv", "\t")):
        with (folder / f"{stem}.{end}").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{stem}.parquet")


def _tables(folder: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    pictures = [picture(i) for i in range(RECORDS)]
    rows = [
        {"image": {"bytes": data, "path": None}, "text": text}
        for data, text in zip(pictures, PROMPTS, strict=True)
    ]
    typed = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_list(rows, typed)
    for name in ("parquet", "arrow"):
        (folder / name).mkdir()
    table.to_parquet(str(folder / "parquet/0.parquet"))
    table.save_to_disk(str(folder / "saved"))
    bare = pyarrow.Table.from_pydict({"png": pictures, "caption": PROMPTS})
    with pyarrow.ipc.new_stream(str(folder / "arrow/1.arrow"), bare.schema) as writer:
        writer.write_table(bare)


def _tars(folder: Path) -> None:
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for i, text in enumerate(PROMPTS):
                caption = ("json", json.dumps({"caption": text}).encode())
                caption = caption if i % 2 else ("txt", text.encode())
                for end, data in (("png", picture(i)), caption):
                    member = tarfile.TarInfo(f"{i:03d}.{end}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _captioned(folder: Path) -> None:
    for i, text in enumerate(PROMPTS):
        (folder / f"{i}.png").write_bytes(picture(i))
        if i % 2:
            (folder / f"{i}.json").write_text(json.dumps({"prompt": text}))
        else:
            (folder / f"{i}.txt").write_text(text)


def _prompts(folder: Path) -> None:
    numbered = [{"prompt": text, "number": i} for i, text in enumerate(PROMPTS)]
    _write_rows(folder, "prompts", numbered)
    (folder / "prompts.parquet").unlink()
    (folder / "prompts.txt").write_text("\n".join([*PROMPTS, "ein süßer Hund", "一只猫"]) + "\n")
    rows = [("Prompt", "Category", "Challenge", "Note")]
    kinds = ("Imagination", "Basic")
    rows += [(text, "Animals", kinds[i % 2], "") for i, text in enumerate(PROMPTS)]
    (folder / "parti.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    colors = "".join(f"{text},Colors\n" for text in PROMPTS)
    (folder / "drawbench.csv").write_text(f"Prompts,Category\n{colors}")
    notes = [{"image_id": i // 2, "id": i, "caption": text} for i, text in enumerate(PROMPTS)]
    (folder / "coco.json").write_text(json.dumps({"annotations": notes}))


def _pictures(folder: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    for i, text in enumerate(PROMPTS):
        information = PngInfo()
        information.add_text("prompt", text)
        Image.open(io.BytesIO(picture(i))).save(folder / f"{i}.png", pnginfo=information)


def _shards(folder: Path) -> None:
    bucket = Bucket(4, 4)
    sizes = {bucket: RECORDS}
    cond = {"context": ArraySpec((3, 4), "int8"), "pooled": ArraySpec((4,), "float16")}
    whole = Layout(sizes, 3, {"latents": ArraySpec(("H", "W", 2)), **cond})
    made = Layout(sizes, 3, {"latents": ArraySpec(("H", "W", 2))}, Text("encoded", sizes))
    null = {"context": np.zeros((3, 4)), "pooled": np.zeros(4)}
    for name, layout in (("encoded", whole), ("synthesized", made)):
        directory = folder / name
        write_identity(directory, {"config": {"seed": 0}, "inputs": {}})
        write_contents(directory, {bucket: np.arange(RECORDS, dtype=np.uint64)})
        for shard in missing_shards(directory, layout):
            write_shard(directory, layout, shard, map(record, range(shard.start, shard.stop)))
        finalize(directory, layout, null)


def record(number: int) -> dict[str, Any]:
    """A record of the shards."""
    rng = np.random.default_rng(number)
    cond = {"context": rng.standard_normal((3, 4), np.float32), "pooled": np.ones(4, np.float32)}
    latents = rng.standard_normal((4, 4, 2), np.float32)
    return {"latents": latents, "cond": cond, "prompt": PROMPTS[number]}


def state(step: int) -> Any:
    """A state of training, with arrays that are too large to be kept beside the metadata."""
    import jax.numpy as jnp

    from ladd_jax.objectives.base import TrainState

    values = np.random.default_rng(step).standard_normal((64, 64), np.float32)
    params = {"a": {"w": jnp.asarray(values)}}
    return TrainState(
        step=jnp.int32(step), key=jnp.zeros(2, jnp.uint32), params=params, ema=params, heads={},
        optimizer=(params, ()), heads_optimizer=(),
    )  # fmt: skip


CHECKPOINT_CONFIG = {"seed": 1, "model": {"depth": 2}}


def _checkpoints(folder: Path) -> None:
    from ladd_jax.training.checkpoint import Checkpoints

    saved = Checkpoints(folder / "checkpoints", keep=5)
    for step in (1, 3):
        saved.save(step, state(step), CHECKPOINT_CONFIG)
    saved.wait()
    saved.close()


def _workdir(folder: Path) -> None:
    workdir = folder / "run"
    other = folder / "other"
    settle(workdir, to_dict(Config()), Places(other, other, 4))
    owner = {"host": "h", "process": 1, "machine": "m", "started": "1", "job": "j"}
    (workdir / "owner.json").write_text(json.dumps(owner) + "\n")


def _reports(folder: Path) -> None:
    lines = [{"step": i, "loss": 0.5, "logits": [0.1, 0.2]} for i in range(1, 4)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [
        Row("student", 4, 1.0, "4x4", {"fd": 1.5, "alignment": 0.5}, {"fd": (1.0, 2.0)}),
        Row("generator", 50, 4.0, "4x4", {"fd": 1.0, "alignment": 0.5}),
    ]
    write_metrics(folder / "metrics.json", rows, evaluate={"samples": 4}, step=4)


def _commands(folder: Path) -> None:
    (folder / "config.py").write_text(
        "from ladd_jax.config import base_config\n\n\n"
        "def get_config(arg=None):\n"
        "    config = base_config()\n"
        "    config.seed = 3\n"
        "    config.distil.update(dict(steps=20, batch_size=8))\n"
        "    config.model.update(dict(depth=2, width=32, num_heads=2))\n"
        "    config.data.buckets = ('4x4', '4x8')\n"
        "    return config\n"
    )
    words = [
        "--config.distil.steps=12", "--config.data.buckets=('8x8',)", "--config.model.remat=none",
        "--config.distil.timesteps=(1.0, 0.5)", "--data=x", "--config.log.every", "5",
    ]  # fmt: skip
    (folder / "arguments.jsonl").write_text("".join(json.dumps([word]) + "\n" for word in words))


def _vocabulary(folder: Path) -> None:
    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    scores = [b"\x15" + struct.pack("<f", -i) for i in range(9)]
    pieces = b"".join(field(1, field(1, b"p%d" % i) + score) for i, score in enumerate(scores))
    for name in ("pieces", "pairs", "whole"):
        (folder / name).mkdir()
    (folder / "pieces/spiece.model").write_bytes(pieces + field(3, b"\x08\x01"))
    (folder / "pieces/added_tokens.json").write_text('{"<a>": 9}')
    (folder / "pairs/vocab.json").write_text(json.dumps({f"p{i}": i for i in range(9)}))
    (folder / "pairs/merges.txt").write_text("#version: 0.2\np 0\np 1\n")
    vocabulary = [[f"p{i}", -float(i)] for i in range(9)]
    whole = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 9, "content": "c"}]}
    (folder / "whole/tokenizer.json").write_text(json.dumps(whole))


_WRITERS = {
    "image_folder": _image_folder,
    "tables": _tables,
    "tars": _tars,
    "captioned": _captioned,
    "prompts": _prompts,
    "pictures": _pictures,
    "shards": _shards,
    "checkpoints": _checkpoints,
    "workdir": _workdir,
    "reports": _reports,
    "commands": _commands,
    "vocabulary": _vocabulary,
}


def _pipelines(root: Path) -> None:
    """Tiny random pipelines of the real classes, and their parts by themselves."""
    import shutil

    import jax.numpy as jnp

    from ladd_jax.weights import load_mmdit, save_mmdit

    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    from pipelines import save_pipeline

    whole = root / "pipeline"
    save_pipeline(whole, qk_norm=True, dual_attention=(0,))
    weights = root / "weights"
    weights.mkdir()
    loaded = load_mmdit(whole, jnp.float32)
    save_mmdit(weights / "sharded", loaded.params, loaded.config, jnp.float32, shard_bytes=60_000)
    save_mmdit(
        weights / "single/one.safetensors", loaded.params, loaded.config, jnp.bfloat16, "stability"
    )
    save_mmdit(weights / "half", loaded.params, loaded.config, jnp.bfloat16)
    for name, parts in (
        ("text", ("text_encoder", "text_encoder_2", "text_encoder_3")),
        ("tokenizers", ("tokenizer", "tokenizer_2", "tokenizer_3")),
        ("autoencoder", ("vae",)),
    ):
        for part in parts:
            shutil.copytree(whole / part, root / name / part)
    for part in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.copytree(whole / part, root / "text" / part)
    (root / "text" / "transformer").mkdir()
    shutil.copy(whole / "transformer/config.json", root / "text/transformer/config.json")
    # Only the index and the configs matter here: weights have their own readers.
    index = root / "index"
    for file in whole.rglob("*.json"):
        place = index / file.relative_to(whole)
        if not place.parent.name.startswith("tokenizer"):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        (index / name).mkdir()
        (index / name / "tokenizer_config.json").write_text("{}")
    from ladd_jax.stages.trained import FACTS

    facts = {"times": [1.0, 0.5], "buckets": ["8x8"], "text_length": 85}
    (index / FACTS).write_text(json.dumps(facts))
