"""Pictures with prompts, each as latents of the bucket that is nearest to its shape.

The autoencoder of `data.autoencoder` or `weights` makes the latents. Without either they are the
pixels themselves, grey or in colours as `model.channels` says. In a pair the record's own picture
decides the bucket and the side, training or judges, and the other picture is fitted into the same
bucket. In an edit the picture that was edited decides the side, so that all edits of a picture are
on the same side.
"""

import dataclasses
import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import (
    Bucket,
    check_resolution,
    nearest,
)
from ladd_jax.data.image_records import names_dataset, open_images
from ladd_jax.data.images import decode_image, fit, look_at_image, memory_for
from ladd_jax.data.joined import JOINED
from ladd_jax.data.map_ahead import map_ahead
from ladd_jax.data.records import DECODE_ALL, Record, Records, UndecodableError, Unreadable
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.sources import Source
from ladd_jax.data.sources.chosen_buckets import buckets_for
from ladd_jax.data.sources.fill_buckets import fill_buckets, smallest_bucket
from ladd_jax.data.sources.held_out import LEAST, draw, lowest_draws
from ladd_jax.data.sources.inpainting import (
    inpainting_channels,
    masked,
    record_masks,
)
from ladd_jax.errors import UserError
from ladd_jax.models.base import CHANNELS, OTHER, PREFERENCE
from ladd_jax.models.families import family_of
from ladd_jax.parallel.mesh import batch_divisor, batch_sharding, process_mesh, replicated
from ladd_jax.parallel.processes import as_process_0, check_same, gather
from ladd_jax.paths import matches

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A picture that can be read: its place in the source, and what is known about it."""

    place: int
    key: str
    height: int
    width: int
    prompt: str
    # `held_out.draw` of the picture, so that all its records have the same.
    draw: float
    held_out: bool
    stated: bool  # whether the source itself says what is held out
    # The draw that decides the side: its own, or that of the picture that it is an edit of.
    side: float
    # For a pair, the draw of the picture that it was compared with, and which was preferred; for an
    # edit, the draw of the picture that was edited.
    other: float | None = None
    preference: float = 0.0

    @property
    def mark(self) -> str:
        """A text for what went into the record besides its prompt; draws stand for pictures."""
        own = repr(self.draw)
        return own if self.other is None else f"{own} {self.other!r} {self.preference:g}"


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """Turns pixels into latents: `encode` takes images `[n, H, W, C]` in [-1, 1]."""

    reduction: int
    image_channels: int
    latent_channels: int
    encode: Callable[[np.ndarray], np.ndarray]


def most(config: Any) -> int:
    """The number of local pictures; see `data.sources`."""
    data = config.data
    # The stage itself fetches data from the hub, once for each host.
    if not data.path or data.stream or not _is_here(data.path):
        return 0
    found = _records(data, None)
    return min(len(found), data.limit or len(found))


def _is_here(path: str) -> bool:
    """Whether a path is on this machine, and not a dataset's name on the hub."""
    try:
        return bool(matches(path))
    except UserError:
        return not names_dataset(path)


def _records(data: Any, stream: Path | None, tell_unread: bool = False) -> Records:
    """The records that the section `data` of a config names; see `open_images`."""
    return open_images(
        data.path,
        data.column,
        image_column=data.image_column,
        other_column=data.other_column or data.source_column,
        preference_column=data.preference_column,
        edits=data.joined == "edit",
        split=data.split,
        subset=data.subset,
        stream=stream,
        limit=data.limit,
        strict=False,
        tell_unread=tell_unread,
    )


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """The pictures of `data.path`; see `data.sources`.

    If there are no buckets, a few of `data.resolution` squared pixels are chosen for the pictures'
    aspects. Records may say themselves whether they are held out. Otherwise a share
    `data.held_out` is, by the bytes of their pictures, and at least `LEAST` of each bucket. Records
    are shuffled, so that the first ones are a fair sample, however the data are sorted.

    Raises:
      NotFoundError: there are no pictures.
      UserError: more of them cannot be read than `Unreadable` allows, a chosen bucket is larger
        than the network allows, no bucket fills a batch and has enough for judges, or the
        autoencoder's latents do not have `model.channels`. A picture that looks whole but cannot be
        decoded raises an `UndecodableError` when it is read; if the file `DECODE_ALL` exists, it
        counts as unreadable here.
    """
    data, encoder = config.data, _encoder(config)
    if not buckets:
        # Before all pictures are looked at.
        check_resolution(data.resolution, config.model.patch * encoder.reduction)
    streamed = workdir / "streamed.arrow" if data.stream else None
    images = _records(data, streamed, tell_unread=jax.process_index() == 0)
    decode = as_process_0((workdir / DECODE_ALL).exists())
    seen = _look(images, data, workdir, decode)
    if not buckets:
        aspects = [record.width / record.height for record in seen]
        buckets = buckets_for(config, aspects, encoder.reduction)
    shapes = [nearest(buckets, record.height, record.width) for record in seen]
    counts = Counter((shape, r.held_out) for shape, r in zip(shapes, seen, strict=True))
    sizes, apart = ({b: counts[b, held_out] for b in buckets} for held_out in (False, True))
    # A source that decides for all records decides how many judges get, too.
    least = LEAST if data.held_out and not all(record.stated for record in seen) else 0
    homes = fill_buckets(config, sizes, apart, least)
    parts: dict[bool, dict[Bucket, list[_Seen]]] = {False: {}, True: {}}
    left_out = Unreadable(len(seen), workdir / "left_out.jsonl", limit=1.0)
    for shape, record in zip(shapes, seen, strict=True):
        home = homes[shape]
        if home is None:
            left_out.add(record.key, f"bucket {shape.name} has too few records")
        else:
            parts[record.held_out].setdefault(home, []).append(record)
    for bucket in sorted(parts[False]) if least else ():
        _hold_out_enough(bucket, parts, smallest_bucket(config)[0], least)
    if jax.process_index() == 0:
        left_out.write()
    source = functools.partial(_source, config, images, encoder, workdir / DECODE_ALL)
    held_out = source(parts[True]) if parts[True] else None
    return dataclasses.replace(source(parts[False]), held_out=held_out)


def _hold_out_enough(
    bucket: Bucket, parts: dict[bool, dict[Bucket, list[_Seen]]], batch: int, least: int
) -> None:
    """Moves records of a bucket from training to judges until judges have at least `least`."""
    training, held_out = parts[False][bucket], parts[True].setdefault(bucket, [])
    missing = least - len(held_out)
    draws = [record.side for record in training if not record.stated]
    moved = lowest_draws(draws, missing, len(training) - batch)
    parts[False][bucket] = [r for r in training if r.stated or r.side not in moved]
    more = [r for r in training if not r.stated and r.side in moved]
    if len(more) < missing:
        raise UserError(
            f"bucket {bucket.name} has {len(training)} records for training and {len(held_out)} "
            f"held out, and judges need {least} beside one batch of {batch}: add records, or set "
            f"data.held_out to 0, which leaves none for the stage 'evaluate'"
        )
    if more:
        _LOG.info("bucket %s: %d more are held out, so that there are %d",
                  bucket.name, len(more), len(held_out) + len(more))  # fmt: skip
    parts[True][bucket] = _by_chance([*held_out, *more])


def _by_chance(records: Iterable[_Seen]) -> list[_Seen]:
    """Shuffles records, in an order that follows from hashes of their keys."""

    def place(record: _Seen) -> bytes:
        return hashlib.sha256(record.key.encode("utf-8", "surrogatepass")).digest()

    return sorted(records, key=place)


def _look(images: Records, data: Any, workdir: Path, decode: bool) -> list[_Seen]:
    """Looks at all pictures, since their number decides the names of shards, and shuffles them.

    Each process looks at a share of them and tells the others what it has found.
    """
    count = min(len(images), data.limit or len(images))
    listed = workdir / "unreadable.jsonl"
    unreadable = Unreadable(count, listed, *data.max_unreadable)
    index, hidden = jax.process_index(), jax.process_index() != 0

    def look(found: tuple[int, Record | ValueError]) -> _Seen | ValueError:
        place, record = found
        if isinstance(record, ValueError):
            return record
        try:
            with memory_for(f"picture {record.key}"):
                height, width = look_at_image(record.data, data.max_pixels, decode)
        except ValueError as error:
            return error
        other = None
        edits = data.joined == "edit"
        if data.other_column or edits:
            try:
                with memory_for(f"the other picture of {record.key}"):
                    sides = look_at_image(record.other, data.max_pixels, decode)
            except ValueError as error:
                what = "that was edited" if edits else "that it was compared with"
                return UserError(f"the picture {what} cannot be read: {error}")
            if edits and not _have_one_aspect(sides, (height, width)):
                return UserError(
                    f"the picture that was edited has {sides[1]}x{sides[0]} pixels and the edited "
                    f"one {width}x{height}, of another aspect, so that places do not agree: give "
                    f"both the same"
                )
            other = draw(record.other)
        drawn, stated = draw(record.data), record.held_out is not None
        side = other if edits and other is not None else drawn
        apart = bool(record.held_out) if stated else side < data.held_out
        own = (place, record.key, height, width, record.prompt, drawn, apart, stated, side)
        return _Seen(*own, other, record.preference)

    own = range(index, count, jax.process_count())
    looked = map_ahead(look, ((i, _record(images, i)) for i in own))
    bar = tqdm(looked, desc="encode: look", total=len(own), unit="img", disable=hidden)
    found_here: list[Any] = []
    refused = Unreadable(count, listed, *data.max_unreadable)
    for i, found in zip(own, bar, strict=True):
        if not isinstance(found, _Seen):
            # Raises an error as soon as there are too many, so that the rest is not looked at.
            refused.add(images.keys[i], found)
        found_here.append(dataclasses.astuple(found) if isinstance(found, _Seen) else str(found))
    keys = hashlib.sha256("\0".join(images.keys[:count]).encode("utf-8", "surrogatepass"))
    told = gather([keys.hexdigest(), *found_here])
    for process, (other, *_) in enumerate(told):
        if other != told[0][0]:
            raise UserError(
                f"process {process} has another list of images than process 0: let all processes "
                f"see the same files"
            )
    seen = []
    for i in range(count):
        found = told[i % len(told)][1 + i // len(told)]
        if isinstance(found, str):
            unreadable.add(images.keys[i], found)
        else:
            seen.append(_Seen(*found))
    # If a process read other records, its shards would not fit those of the others.
    check_same("list of readable images", [dataclasses.astuple(record) for record in seen])
    if not hidden:
        unreadable.write()
        if len(unreadable):
            _LOG.warning("%d unreadable images are left out: %s", len(unreadable), listed)
    if not seen:
        raise UserError(f"none of the {count} images can be read: {listed} says why")
    return _by_chance(seen)


def _have_one_aspect(sides: tuple[int, int], others: tuple[int, int]) -> bool:
    """Whether two pictures have the same aspect, up to the rounding of sides to whole pixels."""
    (a, b), (c, d) = sides, others
    return abs(a * d - b * c) <= max(a, b, c, d)


def _record(images: Records, place: int) -> Record | ValueError:
    """A record, or what is wrong with it."""
    try:
        return images[place]
    except ValueError as error:
        return error


def _source(
    config: Any,
    images: Records,
    encoder: _Encoder,
    decode_all: Path,
    part: dict[Bucket, list[_Seen]],
) -> Source:
    pairs, joined = bool(config.data.other_column), config.data.joined

    def read(bucket: Bucket, start: int, stop: int) -> dict[str, np.ndarray]:
        height, width = bucket.image_size(encoder.reduction)
        records = part[bucket][start:stop]

        def pixels(item: tuple[str, bytes, float | None]) -> np.ndarray:
            name, data, drawn = item
            # Otherwise processes that see different files would write different pictures.
            if draw(data) != drawn:
                raise UserError(
                    f"{name} is not the one that this job, or another process, saw when it looked "
                    f"at all of them: let all processes see the same files, and do not change them"
                )
            try:
                with memory_for(name):
                    return fit(decode_image(data), height, width, encoder.image_channels)
            except UserError as error:
                decode_all.touch()
                raise UndecodableError(f"{name} cannot be decoded ({error})") from error

        def fitted(items: Iterable[tuple[str, bytes, float | None]]) -> np.ndarray:
            return np.stack(list(map_ahead(pixels, items)))

        own = fitted((f"picture {r.key}", images[r.place].data, r.draw) for r in records)
        arrays = {LATENTS: encoder.encode(own)}
        if joined == "inpaint":
            keys = [record.key for record in records]
            masks = record_masks(config, keys, height, width, encoder.reduction)
            held = encoder.encode(masked(own, masks))
            arrays[CHANNELS] = inpainting_channels(masks, held, encoder.reduction)
        # Rows are read a second time, so that only one side's pixels are in memory at a time.
        others = ((f"the other picture of {r.key}", images[r.place].other, r.other)
                  for r in records)  # fmt: skip
        if joined == "edit":
            arrays[CHANNELS] = encoder.encode(fitted(others))
        if pairs:
            arrays[OTHER] = encoder.encode(fitted(others))
            arrays[PREFERENCE] = np.array([[r.preference] for r in records], np.float32)
        return arrays

    def where(bucket: Bucket, index: int) -> tuple[int, str]:
        record = part[bucket][index]
        return record.place, f"picture {record.key}"

    prompts = {bucket: [record.prompt for record in records] for bucket, records in part.items()}
    marks = {bucket: [record.mark for record in records] for bucket, records in part.items()}
    spec = ArraySpec(("H", "W", encoder.latent_channels))
    arrays = {LATENTS: spec}
    if joined:
        arrays[CHANNELS] = ArraySpec(("H", "W", JOINED[joined].channels(encoder.latent_channels)))
    if pairs:
        arrays |= {OTHER: spec, PREFERENCE: ArraySpec((1,))}
    return Source(prompts, arrays, read, marks, where)


def _encoder(config: Any) -> _Encoder:
    place, channels = config.autoencoder, config.model.channels
    if not place:
        return _Encoder(1, channels, channels, lambda pixels: pixels)
    autoencoder, params = family_of(config).load_autoencoder(place, jnp.float32)
    if autoencoder.latent_channels != channels:
        raise UserError(
            f"the autoencoder of {place} makes latents of {autoencoder.latent_channels} channels "
            f"and model.channels is {channels}: set it to theirs"
        )
    mesh = process_mesh(config.mesh.sizes)
    params = jax.device_put(params, replicated(mesh))
    size = -(-config.data.image_batch_size // batch_divisor(mesh)) * batch_divisor(mesh)
    program = jax.jit(autoencoder.encode)

    def encode(pixels: np.ndarray) -> np.ndarray:
        latents = []
        for start in range(0, len(pixels), size):
            some = pixels[start : start + size]
            padded = np.resize(some, (size, *some.shape[1:]))
            encoded = program(params, jax.device_put(padded, batch_sharding(mesh)))
            latents.append(np.asarray(encoded)[: len(some)])
        return np.concatenate(latents)

    return _Encoder(autoencoder.reduction, 3, autoencoder.latent_channels, encode)
