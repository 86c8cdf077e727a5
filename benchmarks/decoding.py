"""`python -m benchmarks.decoding`: how fast `encode` reads pictures, compared with Pillow alone.

Makes JPEG pictures of 1024 x 768 pixels, give or take one, smooth with some noise so that their
files are as large as those of photographs. Decodes them alternately in two ways: with Pillow alone,
to RGB arrays, in as many threads as there are cores; and as `encode` does, which reads their
headers first, hashes them twice and decodes them once. The ratio is `encode`'s rate over Pillow's.
Writes the times to `--json`.
"""

import io
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import app, flags
from PIL import Image

from benchmarks.result_files import write_result
from ladd_jax.data.images import decode_image, look_at_image
from ladd_jax.data.map_ahead import map_ahead
from ladd_jax.data.sources.held_out import draw

_PICTURES = flags.DEFINE_integer("pictures", 200, "Pictures in a pass.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Passes of each kind, alternating.")
_JSON = flags.DEFINE_string("json", "benchmarks/results/decoding.json", "Where to write.")


def pictures(count: int) -> list[bytes]:
    """Encoded JPEG pictures, no two alike."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        width, height = 1024 + seed % 3 - 1, 768 + seed % 2
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + rng.integers(-8, 9, smooth.shape, np.int16)
        file = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def with_pillow(data: bytes) -> np.ndarray:
    """A picture as an array, by Pillow alone."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def as_encode(data: bytes) -> tuple[tuple[int, int], np.ndarray]:
    """What `encode` does before it resizes a picture: reads its header, then decodes it once."""
    looked, drawn = look_at_image(data), draw(data)
    # `encode` hashes the file again, to make sure that it is still the same.
    assert draw(data) == drawn
    return looked, decode_image(data)


def main(_: list[str]) -> None:
    """Measures, prints and writes."""
    made, cores = pictures(_PICTURES.value), len(os.sched_getaffinity(0))

    def pillow() -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(lambda data: with_pillow(data).shape, made))

    def encode() -> None:
        for _ in map_ahead(as_encode, made):
            pass

    times: dict[str, list[float]] = {"pillow": [], "encode": []}
    ways: dict[str, Callable[[], None]] = {"pillow": pillow, "encode": encode}
    for _ in range(_REPEATS.value):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    rates = {n: len(made) / cores / statistics.median(found) for n, found in times.items()}
    pairs = zip(times["pillow"], times["encode"], strict=True)
    ratio = statistics.median(alone / ours for alone, ours in pairs)
    print(
        f"{len(made)} pictures of {sum(map(len, made)) / len(made) / 1e3:.0f} kB, {cores} cores: "
        f"Pillow {rates['pillow']:.1f} images/s a core, encode {rates['encode']:.1f}, "
        f"ratio {ratio:.2f}"
    )
    result = {
        "pictures": len(made), "cores": cores, "seconds": times,
        "images_per_second_a_core": rates, "encode_over_pillow": ratio,
    }  # fmt: skip
    write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)
