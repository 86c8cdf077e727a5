"""Samples a trained model: writes pictures of prompts.

A picture depends only on its prompt and its seed: number i of seed S is number 0 of seed S+i, no
matter how many are made and, except for rounding, what the batch size is.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from ladd_jax import __version__
from ladd_jax.data.buckets import Bucket, nearest
from ladd_jax.diffusion.samplers import ALWAYS
from ladd_jax.diffusion.sampling import Sampling, scales_of
from ladd_jax.errors import UserError
from ladd_jax.evaluation.pictures import png, sheet
from ladd_jax.stages.conditions import Conditions
from ladd_jax.stages.given import GivenFiles, open_given
from ladd_jax.stages.prompted import Picture, Prompted, check_count
from ladd_jax.stages.trained import TrainedModel
from ladd_jax.whole_files import write_whole

_SHOWN_PROMPTS = 16
"""The most prompts, and so rows, of a sheet of several."""

_SHOWN_COLUMNS = 32
"""The most columns of a sheet, and rows if there is a single prompt."""

_SHEET_WIDTH = 2048
"""The largest width of a sheet, in pixels."""


def choose_bucket(aspect: str, trained: TrainedModel) -> Bucket:
    """The shape of the latents.

    Args:
      aspect: `W:H`, which selects the nearest bucket, or `WxH` in pixels.
      trained: the model that is sampled.

    Raises:
      UserError: it has neither form, or the network cannot make that number of pixels.
    """
    numbers = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", aspect)
    if numbers and all(0 < float(number) < math.inf for number in numbers.groups()):
        return nearest(trained.buckets, float(numbers[2]), float(numbers[1]))
    pixels = re.fullmatch(r"(\d{1,9})x(\d{1,9})", aspect)
    if not pixels:
        raise UserError(
            f"aspect {aspect!r} is neither W:H, such as 16:9, nor pixels WxH, such as 1024x768"
        )
    width, height = int(pixels[1]), int(pixels[2])
    step, most = trained.family.sides(trained.architecture)
    unit = trained.reduction * step
    if width % unit or height % unit or not width * height:
        raise UserError(f"aspect {aspect} is not in multiples of {unit} pixels: use multiples")
    if most is not None and max(width, height) > trained.reduction * most:
        raise UserError(
            f"aspect {aspect} exceeds the network's position table, which ends at "
            f"{trained.reduction * most} pixels: use less"
        )
    return Bucket(height // trained.reduction, width // trained.reduction)


def sample(
    trained: TrainedModel,
    prompts: Sequence[str],
    sampling: Sampling,
    bucket: Bucket,
    out: Path,
    *,
    seed: int,
    count: int,
    batch_size: int,
    mesh: Mesh,
    place: Callable[[int, int], Path] | None = None,
    images: Sequence[GivenFiles] = (),
    values: Sequence[Mapping[str, str]] = (),
) -> list[Path]:
    """Writes pictures, and if there are several also a sheet with the first ones of the first
    prompts.

    Args:
      trained: the model that is sampled.
      prompts: prompts, none of them empty.
      sampling: steps, guidance and schedule.
      bucket: shape of the latents.
      out: folder to write to; it is created if necessary.
      seed: seed of the first picture of each prompt; each further picture has the next number.
      count: number of pictures of each prompt.
      batch_size: pictures at once.
      mesh: the mesh that `trained` was opened for.
      place: `place(prompt, number)` gives a picture's file below `out`; by default files get unique
        names that describe the picture.
      images: files of pictures, one for each prompt, which the network is given or else samples
        start from; for the latter `sampling` must be made with a strength. Empty to start from
        noise alone.
      values: of the conditions that the network reads, by their names, for each prompt; none: their
        defaults.

    Returns:
      the pictures' files, prompt by prompt, then the sheet's.

    Raises:
      UserError: there are too many pictures, a prompt does not fit the text encoder, a file is not
        a picture, a mask does not fit its picture, or a value does not fit its condition.
    """
    check_count(len(prompts), count)
    # Opened before the network is read, so that a mistake in a file is reported at once.
    given_files = open_given(trained, bucket, images)
    conditions = Conditions(trained, bucket, values or [{}] * len(prompts))
    prompted = Prompted(trained, prompts, mesh, batch_size)
    height, width = bucket.image_size(trained.reduction)
    given = sampling.given_guidance
    if given is None:
        given = trained.fixed_guidance
    scales: tuple[float, ...] = (sampling.guidance, sampling.image_guidance)
    if given is not None:
        scales = (*scales_of(given), 1.0)[:2]
    facts = {
        "steps": str(sum(sigma > 0 for sigma in sampling.sigmas)),
        "sigmas": ", ".join(f"{sigma:.6g}" for sigma in sampling.sigmas),
        "sampler": sampling.sampler,
        "guidance": f"{scales[0]:g}",
        **({} if scales[1] == 1 else {"image_guidance": f"{scales[1]:g}"}),
        **(
            {}
            if sampling.guidance_interval == ALWAYS
            else {"guidance_interval": "{:g}, {:g}".format(*sampling.guidance_interval)}
        ),
        "model": trained.model,
        "checkpoint": trained.place,
        **({} if trained.step is None else {"checkpoint_step": str(trained.step)}),
        **({"loras": ", ".join(trained.loras)} if trained.loras else {}),
        "size": f"{width}x{height}",
        "dtype": jnp.dtype(trained.architecture.dtype).name,
        "software": f"ladd_jax {__version__}",
    }
    jobs = [Picture(i, seed + j) for i in range(len(prompts)) for j in range(count)]
    several = len(prompts) > 1
    shown = min(count, _SHOWN_COLUMNS if several else _SHOWN_COLUMNS**2)
    columns = shown if several else math.ceil(math.sqrt(shown))
    side = min(_SHEET_WIDTH // columns, 512)
    files, pictures = [], []
    _make_folder(out)
    with tqdm(total=len(jobs), desc="sample", unit="img") as bar:
        for job, picture in prompted.pictures(sampling, bucket, jobs, given_files, conditions):
            text = {"prompt": prompts[job.prompt], "seed": str(job.seed), **facts}
            if given_files is not None:
                text |= given_files.facts(job.prompt)
            text |= conditions.facts(job.prompt)
            name = (
                Path(f"{_stem(text, trained.place)}.png")
                if place is None
                else place(job.prompt, job.seed - seed)
            )
            files.append(_write(out / name, png(picture, 1, text)))
            if job.prompt < _SHOWN_PROMPTS and job.seed - seed < shown:
                pictures.append(sheet([picture], 1, side))
            bar.update()
    if len(files) > 1:
        texts = json.dumps(list(prompts[:_SHOWN_PROMPTS]), ensure_ascii=False)
        text = {"prompts": texts, "seed": str(seed), "num": str(shown), **facts}
        whole = png(sheet(pictures, columns, side), 1, text)
        name = Path(f"grid_{_digest([file.name for file in files])}.png")
        files.append(_write(out / name, whole))
    return files


def _stem(text: dict[str, str], place: str) -> str:
    """A unique file name: prompt and seed for people to read, and a digest of all metadata."""
    words = re.sub(r"[\W_]+", "-", text["prompt"].lower()).strip("-")[:40]
    # File names are limited to 255 bytes, and a letter can take 4.
    words = words.encode()[:120].decode(errors="ignore").strip("-")
    name = (words or "prompt", text["model"], f"{text['steps']}steps", f"seed{text['seed']}")
    # The digest covers the absolute path, since two checkpoints may have the same relative path.
    return "_".join((*name, _digest([text, str(Path(place).resolve())])))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:10]


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {out} cannot be made ({error.strerror}): name another --out"
        ) from error


def _write(file: Path, data: bytes) -> Path:
    write_whole(file, lambda stream: stream.write(data))
    return file
