"""`python -m benchmarks.preferences --output=FILE`: pairs of digits with a known preference.

Writes a table of scans of handwritten digits, alone and in pairs, each compared with another
picture of the same prompt: the bolder one, whose pixels have the larger standard deviation, is
preferred. Boldness can be measured (`deviation`), and so can what a network has learned of the
preference. The study `benchmarks/studies/preference.json` compares the stages at which it is added.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from ladd_jax.data import digits
from ladd_jax.data.buckets import Bucket
from ladd_jax.evaluation.pictures import to_bytes

_OUTPUT = flags.DEFINE_string("output", "runs/preferences.parquet", "File to write.")
_EXAMPLES = flags.DEFINE_integer("examples", 1437, "Number of pairs in each bucket.")

BUCKETS = (digits.SINGLE, digits.BESIDE, digits.STACKED)


def pairs(scans: digits.Digits, bucket: Bucket, count: int) -> Iterator[dict[str, Any]]:
    """Pictures of a bucket, each with another one of the same prompt and which is preferred.

    Args:
      scans: the scans that pictures are composed of.
      bucket: one of `BUCKETS`.
      count: number of pairs.
    """
    pictures, _, prompts = digits.compose(scans, bucket, count, seed=0)
    places = defaultdict(list)
    for place, prompt in enumerate(prompts):
        places[prompt].append(place)
    rng = np.random.default_rng((0, bucket.height, bucket.width))
    for place, prompt in enumerate(prompts):
        others = [other for other in places[prompt] if other != place]
        other = int(rng.choice(others)) if others else place
        own, compared = pictures[place], pictures[other]
        yield {
            "prompt": prompt,
            "image": _picture(own),
            "other": _picture(compared),
            "preference": 0.5 + 0.5 * float(np.sign(np.std(own) - np.std(compared))),
        }


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(to_bytes(pixels)[..., 0])


def main(_: list[str]) -> None:
    """Writes the table."""
    import datasets

    scans, _ = digits.load(0)
    rows = [row for bucket in BUCKETS for row in pairs(scans, bucket, _EXAMPLES.value)]
    target = Path(_OUTPUT.value)
    target.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(target))
    print(f"{target}: {len(rows)} pairs")


if __name__ == "__main__":
    app.run(main)
