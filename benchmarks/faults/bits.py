"""Compares what two runs have made, bit for bit."""

import hashlib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from ladd_jax.data.shards import Shards

_TRAININGS = ("pretrain", "finetune", "distil")
_SHARDS = ("encoded", "held_out", "synthesized")


def contents(workdir: Path) -> dict[str, str]:
    """A digest of every array and record of a run, and of its report's numbers, by name."""
    found: dict[str, str] = {}
    for stage in _TRAININGS:
        folders = (workdir / stage / "checkpoints").iterdir()
        last = max((int(f.name), f) for f in folders if f.name.isdecimal())[1] / "state"
        reader = ocp.PyTreeCheckpointer()
        tree = reader.metadata(last).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(last, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            found[f"{stage}{jax.tree_util.keystr(path)}"] = _hash(np.asarray(leaf).tobytes())
    for name in _SHARDS:
        shards = Shards(workdir / name)
        for bucket in shards.buckets:
            records = shards.read(bucket, np.arange(shards.sizes[bucket]))
            leaves, structure = jax.tree.flatten(records)
            parts = [
                leaf.tobytes() if isinstance(leaf, np.ndarray) else repr(leaf).encode()
                for leaf in leaves
            ]
            found[f"{name} {bucket.name}"] = _hash(repr(structure).encode(), *parts)
    found["report"] = _hash((workdir / "metrics.json").read_bytes())
    return found


def compared(found: dict[str, str], wanted: dict[str, str]) -> str:
    """`same bits`, or what differs."""
    differing = [name for name in wanted | found if found.get(name) != wanted.get(name)]
    if not differing:
        return "same bits"
    return f"{len(differing)} of {len(wanted)} differ, such as {differing[0]}"


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
