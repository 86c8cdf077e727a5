"""Sets of random SD3-shaped records: text of CLIP and T5, and a latent of 1024 x 1024 pixels."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.data.array_specs import ArraySpec, text_spec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS, Layout, Shard, Text, is_complete
from ladd_jax.data.shard_writing import finalize, missing_shards, write_shard

BUCKET = Bucket(128, 128)
CLIP_TOKENS, CLIP_WIDTH, WIDTH, POOLED, CHANNELS = 77, 2048, 4096, 2048, 16


@dataclasses.dataclass(frozen=True)
class Form:
    """How a prompt and its sample are stored.

    Attributes:
      text: dtype of the text.
      latents: dtype of the latents.
      t5_tokens: number of T5's tokens.
      copied: whether the text is stored whole, and a second time beside the sample.
    """

    text: str
    latents: str = "float32"
    t5_tokens: int = 256
    copied: bool = False

    def layouts(self, records: int, per_shard: int) -> dict[str, Layout]:
        """Layouts of the encoded set and of the samples, by name."""
        blocks = (CLIP_TOKENS, CLIP_WIDTH), (self.t5_tokens, WIDTH)
        shape = (CLIP_TOKENS + self.t5_tokens, WIDTH)
        text = {
            "context": text_spec(shape, self.text, () if self.copied else blocks),
            "pooled": text_spec((POOLED,), self.text),
        }
        latents = {LATENTS: ArraySpec(("H", "W", CHANNELS), self.latents)}
        sizes = {BUCKET: records}
        samples = Layout(sizes, per_shard, latents, text=Text("encoded", sizes))
        if self.copied:
            samples = Layout(sizes, per_shard, latents | text)
        return {"encoded": Layout(sizes, per_shard, text), "synthesized": samples}


def random_records(shard: Shard, t5_tokens: int = 256) -> Iterator[dict[str, Any]]:
    """Records of normal numbers, but for CLIP's unused columns, which are zero."""
    for place in range(shard.start, shard.stop):
        rng = np.random.default_rng(place)
        context = np.zeros((CLIP_TOKENS + t5_tokens, WIDTH), np.float32)
        context[:CLIP_TOKENS, :CLIP_WIDTH] = rng.standard_normal(
            (CLIP_TOKENS, CLIP_WIDTH), np.float32
        )
        context[CLIP_TOKENS:] = rng.standard_normal((t5_tokens, WIDTH), np.float32)
        yield {
            LATENTS: rng.standard_normal((BUCKET.height, BUCKET.width, CHANNELS), np.float32),
            "cond": {"context": context, "pooled": rng.standard_normal(POOLED, np.float32)},
            "prompt": f"a photograph of the number {place}",
        }


def write_set(
    directory: Path, layout: Layout, records: Callable[[Shard], Iterator[dict[str, Any]]]
) -> None:
    """Writes a set, unless it is there already."""
    if is_complete(directory):
        return
    for shard in missing_shards(directory, layout):
        write_shard(directory, layout, shard, records(shard))
    finalize(directory, layout, {})
