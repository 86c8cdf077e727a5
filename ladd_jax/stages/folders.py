"""Metrics of a folder of pictures, alone or against another."""

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ladd_jax.data.picture_folder import PictureFolder
from ladd_jax.errors import UserError
from ladd_jax.evaluation.extractors import EXTRACTORS, Given, Training, open_extractor
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.intervals import measure_with_interval
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.rows import Row
from ladd_jax.evaluation.seen import Seen

ALONE = ("alignment", "diversity", "deviation")
"""Metrics that compare with nothing."""

COMPARED = ("fd", "kid", "cmmd", "precision", "recall", "outside")
"""Metrics that need a reference. `fd` and `fd_real` would be the same here."""

_BATCH = 32

_GRID = 32
"""Rows and columns of the pixels that contrast is measured on, of each picture."""


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
    values, intervals = {}, {}
    for name in metrics:
        # Pictures without prompts are not all of one prompt.
        if name == "diversity" and samples.prompts is None:
            continue
        measured = measure_with_interval(METRICS[name].measure, seen, others, resamples, seed)
        if measured is not None:
            values[name], interval = measured
            if resamples > 1:
                intervals[name] = interval
    return Row("samples", 0, 1.0, "all", values, intervals)


def open_named(name: str, seed: int, mesh: Mesh) -> Extractor:
    """The extractor of `NAME:PATH`, such as `inception:weights.pth`.

    Raises:
      UserError: it has no such form, or there is no such extractor or no such file.
    """
    kind, _, path = name.partition(":")
    if not path or kind not in EXTRACTORS:
        raise UserError(
            f"--extractor={name} is no NAME:PATH, such as inception:weights.pth or "
            "clip:openai/clip-vit-large-patch14"
        )
    return open_extractor(kind, Given(path, _no_training(kind), seed, mesh))


def default_metrics(extractor: str, compared: bool) -> tuple[str, ...]:
    """The metrics that an extractor's features are meant for."""
    if not compared:
        return ALONE
    # CMMD is defined on CLIP's features alone.
    distances = [name for name in COMPARED if name != "cmmd" or not extractor.startswith("incep")]
    return (*distances, *ALONE)


def _no_training(kind: str) -> Callable[[], Training]:
    def training() -> Training:
        raise UserError(
            f"extractor {kind!r} is trained on a run's own pictures, and folders have none: use "
            "one with weights, such as inception:weights.pth"
        )

    return training


def _look(extractor: Extractor, folder: PictureFolder, title: str) -> Seen:
    """A folder as one set: features, and of each picture a grid of pixels.

    Pictures of many sizes have no common array, and whole ones would fill the memory. Evenly spaced
    pixels have the same distribution of values.
    """
    texts = folder.prompts or [""] * len(folder)
    features: list[np.ndarray] = [np.empty(0)] * len(folder)
    pixels = np.empty((len(folder), _GRID, _GRID, 3), np.float32)
    alignments = np.empty(len(folder))
    aligned = folder.prompts is not None
    with tqdm(total=len(folder), desc=title, unit="img") as bar:
        for images, places in folder.batches(_BATCH):
            found, alignment = extractor.look(images, [texts[place] for place in places])
            for place, feature in zip(places, found, strict=True):
                features[place] = feature
            rows, columns = (
                (np.arange(_GRID) * side + side // 2) // _GRID for side in images.shape[1:3]
            )
            pixels[places] = images[:, rows][:, :, columns]
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
