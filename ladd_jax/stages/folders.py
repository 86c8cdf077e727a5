"""Metrics of a folder of pictures, alone or against another folder."""

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
from ladd_jax.ranges import check_choice

ALONE = ("alignment", "diversity", "deviation")
"""Metrics that need no reference."""

COMPARED = ("fd", "kid", "cmmd", "precision", "recall")
"""Metrics that need a reference. `fd_real` is left out, since it would equal `fd` here, and
`outside`, since no byte is outside of its range."""

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
      reference: the pictures that they are compared with, if any.
      extractor: the extractor of features.
      metrics: names in `ALONE` and, with a reference, in `COMPARED`. Metrics that need prompts, or
        two pictures of a prompt, are left out where there are none.
      resamples: number of resamples for each interval; below 2 there are no intervals.
      seed: seed of the resamples.

    Raises:
      UserError: a picture cannot be read, or a metric is unknown or needs a reference.
    """
    for name in metrics:
        check_choice(name, "metric", *ALONE, *COMPARED)
        if reference is None and name in COMPARED:
            raise UserError(f"metric {name!r} needs a reference: give --reference=DIR")
    seen = [_look(extractor, samples, "samples")]
    others = seen if reference is None else [_look(extractor, reference, "reference")]
    # Without prompts all pictures would count as samples of one prompt.
    left_out = {"diversity"} if samples.prompts is None else set()
    asked = {name: METRICS[name] for name in metrics if name not in left_out}
    values, intervals = measure_with_intervals(asked, seen, others, resamples, seed)
    return Row("samples", 0, 1.0, "all", values, intervals if resamples > 1 else {})


def open_named(name: str, seed: int, mesh: Mesh) -> Extractor:
    """The extractor of `NAME:PATH`, such as `inception:weights.pth`.

    Raises:
      UserError: the name is not NAME:PATH, or there is no such extractor or file.
    """
    kind, _, path = name.partition(":")
    if not path or kind not in EXTRACTORS:
        raise UserError(
            f"--extractor={name} is not NAME:PATH, such as inception:weights.pth or "
            "clip:openai/clip-vit-large-patch14"
        )
    if not EXTRACTORS[kind].weights:
        raise UserError(
            f"extractor {kind!r} is trained on a run's own pictures, which folders do not have: "
            "use one with weights, such as inception:weights.pth"
        )
    return open_extractor(kind, Given(path, dict, seed, mesh))


def default_metrics(extractor: str, compared: bool) -> tuple[str, ...]:
    """The metrics that an extractor's features are meant for."""
    if not compared:
        return ALONE
    # CMMD is only defined on CLIP's features.
    distances = [name for name in COMPARED if name != "cmmd" or not extractor.startswith("incep")]
    return (*distances, *ALONE)


def _look(extractor: Extractor, folder: PictureFolder, title: str) -> Seen:
    """A folder as one set of features, with a grid of pixels from each picture.

    The pictures themselves are not kept, since their sizes differ and they would fill the memory.
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
