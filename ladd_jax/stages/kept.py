"""Samples that are made once and kept: the data generator's, which no student changes."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.identity import identity
from ladd_jax.config.workdir import data_directory
from ladd_jax.data import archives
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.conditions import CONDITIONS
from ladd_jax.errors import DamagedError, UserError
from ladd_jax.models.base import CHANNELS, Params
from ladd_jax.object_store import address_of
from ladd_jax.parallel.mesh import replicated
from ladd_jax.parallel.processes import as_process_0
from ladd_jax.stages.judging import Samples
from ladd_jax.whole_files import write_whole

_LOG = getLogger(__name__)


def directory_of(workdir: Path) -> Path:
    """The folder of a run's kept samples.

    It is with the run's data, so that all runs on these share it, or in the run's workdir if the
    former cannot be written to. Process 0 decides for all.
    """
    shared = data_directory(workdir)
    there = shared / "evaluation"
    writable = not address_of(shared) and os.access(there if there.exists() else shared, os.W_OK)
    return there if as_process_0(writable) else workdir / "evaluation"


def fingerprint(
    config: Config,
    prompts: Mapping[Bucket, np.ndarray],
    params: Params,
    mesh: Mesh,
    cond: Mapping[Bucket, Mapping[str, np.ndarray]] | None = None,
) -> str:
    """A digest of what the data generator's samples depend on, except for how they are sampled.

    It covers settings, prompts, what is joined to x_t, and the network. The latter is identified by
    the sum of its parameters' absolute values, to 6 digits.

    Args:
      config: the run's config.
      prompts: prompts of each bucket's samples.
      params: the network's parameters.
      mesh: mesh that they are on.
      cond: arrays of the samples by name; only `CHANNELS` and those of `CONDITIONS` count, as
        all others follow from the prompts. None for no arrays.
    """
    parts = identity(to_dict(config), "pretrain")["config"]
    if config.prefer.before:
        parts["prefer"] = to_dict(config.prefer)
    texts = {bucket.name: list(map(str, found)) for bucket, found in prompts.items()}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    parts["prompts"] = digest.hexdigest()
    if joined := {b.name: own[CHANNELS] for b, own in (cond or {}).items() if CHANNELS in own}:
        parts["joined"] = _digest(joined)
    given = {
        f"{bucket.name} {name}": own[name]
        for bucket, own in (cond or {}).items()
        for name in CONDITIONS.keys() & own.keys()
    }
    if given:
        parts["conditions"] = _digest(given)
    parts["parameters"] = f"{_size(params, mesh):.6g}"
    return json.dumps(parts, sort_keys=True)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _size(params: Params, mesh: Mesh) -> float:
    def sums(tree: Params) -> jax.Array:
        leaves = jax.tree.leaves(tree)
        return jnp.stack([jnp.sum(jnp.abs(leaf.astype(jnp.float32))) for leaf in leaves])

    found = jax.jit(sums, out_shardings=replicated(mesh))(params)
    return float(np.sum(np.asarray(found, np.float64)))


def kept(path: Path, mark: str, make: Callable[[], Samples]) -> Samples:
    """Samples from a file if it has the same fingerprint, or else new ones, which are kept there.

    Process 0 decides for all, so that either all processes read the file or all make samples.

    Args:
      path: path of the file, on a disk that all processes share.
      mark: the fingerprint.
      make: makes the samples; all processes call it together.
    """
    found = _read(path, mark) if jax.process_index() == 0 else None
    if as_process_0(found is not None):
        samples = found if found is not None else _read(path, mark)
        if samples is None:
            raise UserError(
                f"process {jax.process_index()} does not see {path} as process 0 does: give a "
                f"--workdir on a disk that all processes share"
            )
        return samples
    samples = make()
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {bucket.name: images for bucket, images in samples.items()}
        arrays["fingerprint"] = np.array(mark)
        write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    return samples


def _read(path: Path, mark: str) -> Samples | None:
    if not path.exists():
        return None
    try:
        data = archives.read(path, "it is made again")
        if str(data.pop("fingerprint", "")) != mark:
            return None
        return {Bucket.parse(name): array for name, array in data.items()}
    # An equal fingerprint guarantees that the buckets' names are right.
    except (DamagedError, PermissionError) as error:
        _LOG.warning("%s", error)
        return None
