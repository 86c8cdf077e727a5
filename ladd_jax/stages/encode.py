"""The stage `encode`: turns raw data into shards of latents and text.

`data.source` names the kind of data in the table of `data.sources`: pictures with text, prompts
alone, or the digits and scenes that need no files.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.fields import Config
from ladd_jax.config.workdir import data_directory
from ladd_jax.data.array_specs import joined_spec, text_spec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.contents import contents_of
from ladd_jax.data.joined import joined_channels
from ladd_jax.data.records import DECODE_ALL, UndecodableError
from ladd_jax.data.shard_sets import LATENTS, Layout, Shard, is_complete
from ladd_jax.data.shard_writing import finalize_together, missing_shards, progress, write_shard
from ladd_jax.data.shards import Shards
from ladd_jax.data.sources import Source, is_looked_at, open_source
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models import random_text
from ladd_jax.models.base import CHANNELS, OTHER
from ladd_jax.models.families import TextEncoder, family_of
from ladd_jax.parallel.mesh import process_mesh
from ladd_jax.parallel.processes import as_process_0
from ladd_jax.stages.changes import SetPlan, begin_set, inputs_of, refuse, set_change
from ladd_jax.stages.sets import check_set, encoded, held_out

_LOG = logging.getLogger(__name__)


def text_encoder(config: Config, mesh: Mesh | None = None, batch: int | None = None) -> TextEncoder:
    """The text encoder of a config: the one of `data.text` or of `weights`, or else a random one.

    Args:
      config: the run's config.
      mesh: mesh of this process's devices, for encoders with weights; default: the config's.
      batch: prompts encoded at once by encoders with weights; default: the config's.
    """
    data = config.data
    place = data.text or config.weights
    if place:
        return family_of(config).load_text_encoder(
            place,
            jnp.dtype(config.model.dtype),
            process_mesh(config.mesh.sizes) if mesh is None else mesh,
            data.text_length,
            batch or data.text_batch_size,
            data.tokenizers,
        )
    return random_text.TextEncoder.random(
        seed=config.seed,
        length=data.text_length,
        width=data.text_width,
        layers=data.text_layers,
        heads=data.text_heads,
        pooled_width=data.pooled_width,
        tokens=data.text_tokens,
    )


def encode(config: Config, workdir: Path) -> None:
    """Writes text and latents as shards: see `_encode`.

    At first pictures are only checked superficially. If one turns out to be undecodable, all are
    checked by decoding them: at once if there is one process, else when the job is started again.
    """
    try:
        return _encode(config, workdir)
    except UndecodableError as error:
        if jax.process_count() > 1:
            raise UserError(
                f"{error}: run the same command again, which checks all pictures by decoding them "
                f"and leaves this one out"
            ) from error
        _LOG.warning("%s: all pictures are decoded now, to leave out those that cannot be", error)
    # Outside of the handler, whose traceback would keep the first attempt's networks in memory.
    try:
        _encode(config, workdir)
    except UndecodableError as error:
        raise UserError(
            f"{error}, though it could be a moment ago: repair or remove it, and run the same "
            f"command again"
        ) from error


def _encode(config: Config, workdir: Path) -> None:
    """Writes text, and latents if the data have images, as shards; resumes where it stopped.

    Records that the source holds out for evaluation go to shards of their own, in `held_out`. If
    only these are missing and the config evaluates, they are added to the existing shards. New
    records at the end of prompts are added too. For other data, detecting changes means looking at
    all records, which is skipped for complete shards unless the config says redo.

    Raises:
      NotFoundError: the data are not there.
      UserError: the data are damaged or differ from those of the shards, or one of their arrays has
        the name of one of the text encoder's, or not the channels that networks read.
    """
    data = config.data
    target, apart = encoded(workdir), held_out(workdir)
    # An older version wrote no held-out shards. They only matter to `evaluate`, and looking for
    # them means looking at all records.
    judged = is_complete(apart) or "evaluate" not in config.stages
    done = is_complete(target) and judged
    if done and config.on_change != "redo" and not is_looked_at(config):
        check_set(config, target, "encoded")
        return
    try:
        buckets = [Bucket.parse(name) for name in data.buckets]
        source = open_source(config, buckets, data_directory(workdir))
    except NotFoundError:
        # Complete shards do not need the raw data any more.
        if not done:
            raise
        check_set(config, target, "encoded")
        return
    _check_arrays(config, source)
    inputs = inputs_of(config, None)["encoded"]
    parts = {target: source} | ({} if source.held_out is None else {apart: source.held_out})
    plans = {
        directory: SetPlan(directory, directory.name, contents_of(part), inputs, part.where)
        for directory, part in parts.items()
    }
    changes = [set_change(config, plan) for plan in plans.values()]
    if as_process_0(not is_complete(target) and (data_directory(workdir) / DECODE_ALL).exists()):
        # Shards begun earlier still include pictures that are left out now, so they are redone.
        refuse(config, [change for change in changes if change.shards is None])
        config = dataclasses.replace(config, on_change="redo")
    refuse(config, changes)
    whole = is_complete(target) and (source.held_out is None or is_complete(apart))
    if as_process_0(whole and not any(change.writes for change in changes)):
        return
    sizes = {bucket: len(prompts) for bucket, prompts in source.prompts.items()}
    if is_complete(target) and not changes[0].writes and Shards(target).sizes != sizes:
        raise UserError(
            f"{target} was written by a version that held nothing out, so that training reads "
            f"records that 'evaluate' needs: use another --workdir, or leave 'evaluate' out of "
            f"stages"
        )
    encoder = text_encoder(config)
    null = {name: array[0] for name, array in encoder.encode([""]).items()}
    for name in null.keys() & {LATENTS, *source.arrays}:
        raise UserError(
            f"the text encoder and the data {data.source!r} both write an array {name!r}: rename "
            f"the array of the data"
        )
    # The held-out shards first, so that they are complete where the others are.
    for directory, part in reversed(parts.items()):
        begin_set(config, plans[directory])
        _write(config, part, encoder, null, directory)
    report_cut(encoder)


def _check_arrays(config: Config, source: Source) -> None:
    """Raises UserError if networks would not get the number of channels that they read."""
    wanted = {CHANNELS: joined_channels(config)} if config.data.joined else {}
    if LATENTS in source.arrays:
        wanted[LATENTS] = config.model.channels
    for name, channels in wanted.items():
        found = source.arrays[name].shape[-1] if name in source.arrays else 0
        if found != channels:
            fields = f"model.channels is {config.model.channels}"
            if name == CHANNELS:
                fields += f" and data.joined {config.data.joined!r}"
            raise UserError(
                f"{fields}, so that networks read {channels} channels of {name!r}, and records of "
                f"the source {config.data.source!r} have {found}: change the fields or the source"
            )


def _write(
    config: Config,
    source: Source,
    encoder: TextEncoder,
    null: Mapping[str, np.ndarray],
    target: Path,
) -> None:
    """Writes the records of a source, except those that it holds out, as a set of shards."""
    if is_complete(target):
        return
    data = config.data
    arrays = dict(source.arrays)
    for name in arrays.keys() & {LATENTS, OTHER}:
        arrays[name] = dataclasses.replace(arrays[name], dtype=data.latents_dtype)
    if CHANNELS in arrays:
        arrays[CHANNELS] = joined_spec(arrays[CHANNELS], data.latents_dtype)
    for name, array in null.items():
        arrays[name] = text_spec(array.shape, data.text_dtype, encoder.blocks.get(name, ()))
    layout = Layout(
        sizes={bucket: len(prompts) for bucket, prompts in source.prompts.items()},
        records_per_shard=data.records_per_shard,
        arrays=arrays,
    )
    missing = missing_shards(target, layout, jax.process_index(), jax.process_count())
    with progress(f"encode: {target.name}", layout, missing) as bar:
        for shard in missing:
            records = _records(source, encoder, shard, data.text_batch_size)
            write_shard(target, layout, shard, records)
            bar.update(shard.stop - shard.start)
    finalize_together(target, layout, {**null, **source.null})


def _records(
    source: Source, encoder: TextEncoder, shard: Shard, batch: int
) -> Iterator[dict[str, Any]]:
    """Yields the records of a shard, keeping one batch of them in memory at a time."""
    for start in range(shard.start, shard.stop, batch):
        stop = min(start + batch, shard.stop)
        prompts = source.prompts[shard.bucket][start:stop]
        arrays = source.read(shard.bucket, start, stop)
        text = encoder.encode(prompts)
        cond = text | {name: array for name, array in arrays.items() if name != LATENTS}
        for i, prompt in enumerate(prompts):
            record = {"prompt": prompt, "cond": {name: array[i] for name, array in cond.items()}}
            yield record | ({LATENTS: arrays[LATENTS][i]} if LATENTS in arrays else {})


def report_cut(encoder: TextEncoder) -> None:
    """Warns about prompts that were cut."""
    for name, count in encoder.truncated.items():
        if count:
            _LOG.warning("%d prompts are longer than %s reads and were cut", count, name)
