"""Metrics of a folder of pictures, alone or against another."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ladd_jax.data.picture_folder import PictureFolder
from ladd_jax.errors import UserError
from ladd_jax.evaluation.extractors import EXTRACTORS, Given, open_extractor
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.intervals import measure_with_intervals
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.rows import Row
from ladd_jax.evaluation.seen import GRID, Seen, grid_of_pixels

ALONE = ("alignment", "diversity", "deviation")
"""Metrics that compare with nothing."""

COMPARED = ("fd", "kid", "cmmd", "precision", "recall")
"""Metrics that need a reference. `fd` and `fd_real` would be the same here, and nothing is outside
of the range of bytes."""

_BATCH = 32


def judge_folders(
    samples: PictureFolder,
    reference: PictureFolder | None,
    extractor: Extractor,
    metrics: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> Row:
    """Metrics of all pictures of a folder together, whatever their sizes.

    Args:
      samples: the pictures.
      reference: what they are compared with.
      extractor: how they are looked at.
      metrics: names of `ALONE` and, with a reference, of `COMPARED`. Those for which there are no
        prompts, or no prompt with two pictures, are left out.
      resamples: number of resamples for each interval; below 2 there are none.
      seed: seed of what is drawn for them.

    Raises:
      UserError: a picture cannot be read, or a metric is unknown or needs a reference.
    """
    for name in metrics:
        if name not in ALONE + COMPARED:
            raise UserError(f"metric {name!r} is none of {', '.join(ALONE + COMPARED)}")
        if reference is None and name in COMPARED:
            raise UserError(f"metric {name!r} compares with others: give --reference=DIR")
    seen = [_look(extractor, samples, "samples")]
    others = seen if reference is None else [_look(extractor, reference, "reference")]
    # Pictures without prompts are not all of one prompt.
    left_out = {"diversity"} if samples.prompts is None else set()
    asked = {name: METRICS[name] for name in metrics if name not in left_out}
    values, intervals = measure_with_intervals(asked, seen, others, resamples, seed)
    return Row("samples", 0, 1.0, "all", values, intervals if resamples > 1 else {})


def open_named(name: str, seed: int, mesh: Mesh) -> Extractor:
    """The extractor of `NAME:PATH`, such as `inception:weights.pth`.

    Raises:
      UserError: it has no such form, or there is no such extractor or no such file.
    """
    kind, _, path = name.partition(":")
    if not path or kind not in EXTRACTORS:
        raise UserError(
            f"--extractor={name} is not NAME:PATH, such as inception:weights.pth or "
            "clip:openai/clip-vit-large-patch14"
        )
    if not EXTRACTORS[kind].weights:
        raise UserError(
            f"extractor {kind!r} is trained on a run's own pictures, and folders have none: use "
            "one with weights, such as inception:weights.pth"
        )
    return open_extractor(kind, Given(path, dict, seed, mesh))


def default_metrics(extractor: str, compared: bool) -> tuple[str, ...]:
    """The metrics that an extractor's features are meant for."""
    if not compared:
        return ALONE
    # CMMD is defined on CLIP's features alone.
    distances = [name for name in COMPARED if name != "cmmd" or not extractor.startswith("incep")]
    return (*distances, *ALONE)


def _look(extractor: Extractor, folder: PictureFolder, title: str) -> Seen:
    """A folder as one set: features, and of each picture a grid of pixels.

    Pictures of many sizes have no common array, and whole ones would fill the memory.
    """
    texts = folder.prompts or [""] * len(folder)
    features: list[np.ndarray] = [np.empty(0)] * len(folder)
    pixels = np.empty((len(folder), GRID, GRID, 3), np.float32)
    alignments = np.empty(len(folder))
    aligned = folder.prompts is not None
    with tqdm(total=len(folder), desc=title, unit="img") as bar:
        for images, places in folder.batches(_BATCH):
            found, alignment = extractor.look(images, [texts[place] for place in places])
            for place, feature in zip(places, found, strict=True):
                features[place] = feature
            pixels[places] = grid_of_pixels(images)
            if alignment is None:
                aligned = False
            else:
                alignments[places] = alignment
            bar.update(len(places))
    return Seen(
        pixels,
        np.array(texts),
        np.stack(features),
        alignments if aligned else None,
        np.arange(len(folder)),
    )
