"""`python -m ladd_jax.encode --config=FILE --workdir=DIR`: raw data to latent shards."""

from pathlib import Path

from ml_collections import ConfigDict
from tqdm import tqdm

from ladd_jax import command
from ladd_jax.config import ConfigError
from ladd_jax.data import sources
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import Layout, finalize, is_complete, missing_shards, write_shard
from ladd_jax.models.text import TextEncoder
from ladd_jax.stages import encoded


def text_encoder(config: ConfigDict) -> TextEncoder:
    """The text encoder of a config."""
    data = config.data
    return TextEncoder.random(
        seed=config.seed,
        length=data.text_length,
        width=data.text_width,
        layers=data.text_layers,
        heads=data.text_heads,
        pooled_width=data.pooled_width,
    )


def encode(config: ConfigDict, workdir: Path) -> None:
    """Writes the train split as latent shards; does nothing where they are complete."""
    data = config.data
    if data.source != "digits":
        raise ConfigError(f"data.source {data.source!r} is unknown: use 'digits'")
    target = encoded(workdir)
    if is_complete(target):
        return
    buckets = [Bucket.parse(name) for name in data.buckets]
    encoder = text_encoder(config)
    layout = Layout(
        sizes={bucket: data.examples for bucket in buckets},
        records_per_shard=data.records_per_shard,
        channels=1,
        text_length=encoder.length,
        context_width=encoder.context_width,
        pooled_width=encoder.pooled_width,
    )
    train, _ = sources.load(config.seed)
    with tqdm(total=sum(layout.sizes.values()), desc="encode", unit="img") as bar:
        done = {shard for shard in layout.shards()} - set(missing_shards(target, layout))
        bar.update(sum(shard.stop - shard.start for shard in done))
        for bucket in buckets:
            images, _, prompts = sources.compose(train, bucket, data.examples, config.seed)
            context, pooled = encoder.encode(prompts)
            for shard in missing_shards(target, layout):
                if shard.bucket == bucket:
                    records = (
                        {
                            "latents": images[i],
                            "context": context[i],
                            "pooled": pooled[i],
                            "prompt": prompts[i],
                        }
                        for i in range(shard.start, shard.stop)
                    )
                    write_shard(target, layout, shard, records)
                    bar.update(shard.stop - shard.start)
    null_context, null_pooled = encoder.encode([""])
    finalize(target, layout, null_context[0], null_pooled[0])


if __name__ == "__main__":
    command.run(encode)
