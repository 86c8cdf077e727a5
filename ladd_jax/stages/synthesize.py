"""The stage `synthesize`: writes the data generator's samples as shards.

A record holds the latent, and the guidance scale if each record has its own. The rest of its cond
is already in the encoded shards, and is read from there. A record depends only on the seed and its
place, and shards are written atomically, so that the stage can be stopped at any moment and resumed
even on another number of hosts.
"""

from pathlib import Path

import jax
import numpy as np

from ladd_jax.config import architectures
from ladd_jax.config.fields import Config
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.contents import in_turn, read_contents
from ladd_jax.data.shard_sets import LATENTS, Layout, Text, is_complete
from ladd_jax.data.shard_writing import finalize_together, missing_shards, progress, write_shard
from ladd_jax.diffusion.sampling import Sampler, Sampling, seeds
from ladd_jax.models.base import GUIDANCE
from ladd_jax.models.families import family_of
from ladd_jax.parallel.mesh import process_mesh
from ladd_jax.parallel.processes import as_process_0
from ladd_jax.stages.changes import SetPlan, begin_set, inputs_of, refuse, set_change
from ladd_jax.stages.load import load_generator
from ladd_jax.stages.sets import encoded, shards_of, synthesized


def noise_keys(config: Config, bucket: Bucket, places: np.ndarray) -> np.ndarray:
    """Raw PRNG keys, uint32 `[n, 2]`, of the noise for the records at some places."""
    return seeds(config.seed, bucket.height, bucket.width, places)


def guidance_scales(config: Config, bucket: Bucket, places: np.ndarray) -> np.ndarray:
    """Guidance scales for the records at some places, drawn uniformly from the ranges.

    They are float32 `[n, 1]`, or `[n, 2]` with the scales on the image.
    """
    low, high = np.transpose(config.synthesize.ranges)
    keys = noise_keys(config, bucket, places)
    # The additional 1 gives a stream of its own, since the noise is drawn from the keys themselves.
    shares = [np.random.default_rng([*map(int, key), 1]).random(len(low)) for key in keys]
    return np.asarray(low + (high - low) * np.array(shares), np.float32)


def synthesize(config: Config, workdir: Path) -> None:
    """Writes the data generator's guided samples, taking prompts in turn from encoded shards."""
    stage = config.synthesize
    target = synthesized(workdir)
    records = read_contents(encoded(workdir))
    contents = None if records is None else in_turn(records, stage.samples)
    inputs = inputs_of(config, records)["synthesized"]
    plan = SetPlan(target, "synthesized", contents, inputs)
    change = set_change(config, plan)
    refuse(config, [change])
    if as_process_0(is_complete(target) and not change.writes):
        return
    shards = shards_of(config, workdir, "encoded")
    mesh = process_mesh(config.mesh.sizes)
    params = load_generator(config, workdir, mesh)
    sampler = Sampler(
        family_of(config).backbone(architectures.generator_architecture(config)),
        shards.null,
        mesh,
        stage.batch_size,
    )
    arrays = {LATENTS: ArraySpec(("H", "W", config.model.channels), config.data.latents_dtype)}
    if stage.guidance_range:
        arrays[GUIDANCE] = ArraySpec((len(stage.ranges),))
    layout = Layout(
        sizes={bucket: stage.samples or size for bucket, size in shards.sizes.items()},
        records_per_shard=stage.records_per_shard,
        arrays=arrays,
        text=Text(encoded(workdir).name, shards.sizes),
    )
    sampling = Sampling.generator(**stage.sampling)
    begin_set(config, plan)
    missing = missing_shards(target, layout, jax.process_index(), jax.process_count())
    with progress("synthesize", layout, missing) as bar:
        for shard in missing:
            bucket = shard.bucket
            places = np.arange(shard.start, shard.stop)
            text = shards.read(bucket, places % shards.sizes[bucket])
            scales = guidance_scales(config, bucket, places) if stage.guidance_range else None
            latents = sampler(
                params,
                noise_keys(config, bucket, places),
                text["cond"],
                (bucket.height, bucket.width, config.model.channels),
                sampling,
                bar.update,
                scales,
            )
            write_shard(
                target,
                layout,
                shard,
                (
                    {
                        LATENTS: latents[i],
                        "cond": {} if scales is None else {GUIDANCE: scales[i]},
                        "prompt": text["prompt"][i],
                    }
                    for i in range(len(places))
                ),
            )
    finalize_together(target, layout, shards.null)
