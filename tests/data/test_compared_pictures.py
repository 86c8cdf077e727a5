"""Pairs of pictures as records: both as latents of one bucket, and which was preferred."""

import dataclasses
import io
import json

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from damage import damage_within
from PIL import Image
from test_picture_source import settings

from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.contents import contents_of
from ladd_jax.data.image_records import open_images
from ladd_jax.data.images import decode_image, fit
from ladd_jax.data.records import DECODE_ALL, UndecodableError
from ladd_jax.data.sources import open_source
from ladd_jax.data.sources.held_out import draw

COLUMNS = dict(other_column="jpg_1", preference_column="label_0")
SQUARE = Bucket(16, 16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The library converts into its cache, where a table of the same name may be another's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(seed, height=24, width=24, kind="PNG"):
    """A picture whose every part is another."""
    file, rng = io.BytesIO(), np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def rows(count=8):
    return [
        dict(jpg_0=picture(i), jpg_1=picture(100 + i, 30, 46), caption=f"pair {i}", label_0=label)
        for i, label in zip(range(count), (1.0, 0.0, 0.5) * count, strict=False)
    ]


def write(path, records):
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def opened(path, workdir, **changes):
    return open_source(settings(path, **COLUMNS | changes), [], workdir)


def marks(source):
    """Marks by prompt."""
    return {
        prompt: mark
        for bucket, prompts in source.prompts.items()
        for prompt, mark in zip(prompts, source.marks[bucket], strict=True)
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_a_record_has_both_pictures_in_the_bucket_of_its_own(tmp_path, channels):
    records = rows()
    path = write(tmp_path / "a.parquet", records)
    source = opened(path, tmp_path / "run", arguments=f"channels={channels}")
    latents = ArraySpec(("H", "W", channels))
    given = dict(latents=latents, other=latents, preference=ArraySpec((1,)))
    assert source.arrays == given and list(source.prompts) == [SQUARE]
    read = source.read(SQUARE, 1, 8)
    assert {name: array.dtype for name, array in read.items()} == dict.fromkeys(given, "float32")
    assert read["preference"].shape == (7, 1)
    for i, prompt in enumerate(source.prompts[SQUARE][1:8]):
        record = records[int(prompt.split()[1])]
        for name, column in (("latents", "jpg_0"), ("other", "jpg_1")):
            fitted = fit(decode_image(record[column]), 16, 16, channels)
            np.testing.assert_array_equal(read[name][i], fitted)
        assert read["preference"][i] == {1.0: 1, 0.0: -1, 0.5: 0}[record["label_0"]]


def test_pairs_that_cannot_be_read_are_left_out_and_listed(tmp_path):
    records = rows(12)
    for i, wrong in enumerate(
        (dict(label_0=None), dict(label_0=float("nan")), dict(label_0=1.5), dict(jpg_1=None),
         dict(jpg_1=b"none"), dict(jpg_1=b""), dict(jpg_1=picture(0, 600, 10)), dict(jpg_0=b"")),
    ):  # fmt: skip
        records[i] |= wrong
    path = write(tmp_path / "a.parquet", records)
    source = opened(path, tmp_path, max_unreadable=(0.0, 8), max_pixels=5000)
    assert sorted(source.prompts[SQUARE]) == ["pair 10", "pair 11", "pair 8", "pair 9"]
    listed = [json.loads(s) for s in (tmp_path / "unreadable.jsonl").read_text().splitlines()]
    assert [line["key"] for line in listed] == [str(i) for i in range(8)]
    for line, words in zip(
        listed,
        ("null as its preference", "NaN as its preference", "1.5 as its preference",
         "column 'jpg_1' has no image", "compared with cannot be read: the bytes are not a JPEG",
         "compared with cannot be read: the image has no bytes", "600 pixels and the limit is 5000",
         "the image has no bytes"),
        strict=True,
    ):  # fmt: skip
        assert words in line["reason"]


def test_an_other_picture_that_is_damaged_within_is_left_out_at_the_second_look(tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture(1, kind="JPEG"))
    damage_within(tmp_path / "a.jpg")
    records = rows()
    records[3]["jpg_1"] = (tmp_path / "a.jpg").read_bytes()
    path = write(tmp_path / "tables/a.parquet", records)
    source = opened(path, tmp_path)
    with pytest.raises(UndecodableError, match="the other picture of 3 cannot be decoded"):
        source.read(SQUARE, 0, 8)
    assert (tmp_path / DECODE_ALL).exists()
    again = opened(path, tmp_path, max_unreadable=(0.0, 1))
    assert sorted(again.prompts[SQUARE]) == [f"pair {i}" for i in range(8) if i != 3]


def test_a_mark_covers_both_pictures_and_the_preference(tmp_path):
    before = marks(opened(write(tmp_path / "a/a.parquet", rows()), tmp_path / "run"))
    records = rows()
    records[1]["jpg_1"] = picture(7)
    records[2]["label_0"] = 0.0
    # A share on the same side is the same preference.
    records[3]["label_0"] = 0.75
    source = opened(write(tmp_path / "b/a.parquet", records), tmp_path / "run")
    after = marks(source)
    assert [p for p in sorted(before) if before[p] != after[p]] == ["pair 1", "pair 2"]
    plain = open_source(
        settings(tmp_path / "b/a.parquet", image_column="jpg_0"), [], tmp_path / "run"
    )
    assert contents_of(plain)[SQUARE].tolist() != contents_of(source)[SQUARE].tolist()
    # Those without a pair are as they are in the shards of older versions.
    assert marks(plain) == {row["caption"]: repr(draw(row["jpg_0"])) for row in records}
    assert list(plain.arrays) == list(plain.read(SQUARE, 0, 2)) == ["latents"]


def test_a_records_own_picture_alone_says_whether_it_is_for_judges(tmp_path):
    records = rows(60)
    # Two records of one picture, each compared with another.
    records += [row | dict(jpg_1=picture(500 + i)) for i, row in enumerate(rows(60))]
    path = write(tmp_path / "a.parquet", records)
    source = opened(path, tmp_path / "run", held_out=0.3)
    unpaired = settings(path, image_column="jpg_0", held_out=0.3)
    plain = open_source(unpaired, [], tmp_path / "run")
    assert source.prompts == plain.prompts
    assert source.held_out.prompts == plain.held_out.prompts
    assert not set(source.prompts[SQUARE]) & set(source.held_out.prompts[SQUARE])
    assert source.held_out.read(SQUARE, 0, 5)["other"].shape == (5, 16, 16, 3)


def test_an_other_picture_that_changed_after_the_look_is_refused(tmp_path, monkeypatch):
    records = rows()
    path = write(tmp_path / "a.parquet", records)
    images, changed = open_images(path, **COLUMNS), []

    class Changing:
        keys = images.keys

        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            record = images[index]
            return dataclasses.replace(record, other=picture(9)) if changed else record

    monkeypatch.setattr("ladd_jax.data.sources.images.open_images", lambda *_, **__: Changing())
    source = opened(path, tmp_path / "run")
    assert source.read(SQUARE, 0, 8)["other"].shape == (8, 16, 16, 3)
    changed.append(True)
    words = r"the other picture of \d is not the one that this job, or another process, saw when"
    with pytest.raises(ValueError, match=words):
        source.read(SQUARE, 0, 8)
