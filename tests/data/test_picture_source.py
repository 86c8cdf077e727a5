"""Pictures as records: their latents, their buckets, and which of them judges get."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from damage import damage_within
from PIL import Image

from configs import small
from ladd_jax.cli.preflight import check
from ladd_jax.config.fields import typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.records import UndecodableError
from ladd_jax.data.shards import Shards
from ladd_jax.data.sources import images, open_source
from ladd_jax.data.sources.held_out import LEAST
from ladd_jax.errors import UserError
from ladd_jax.stages.encode import _encode, encode
from ladd_jax.stages.sets import encoded, held_out, trained_buckets


def write(root, pictures):
    """A folder of pictures: name to (picture, prompt)."""
    lines = []
    for name, (image, prompt) in pictures.items():
        image.save(root / name)
        lines.append(json.dumps({"file_name": name, "text": prompt}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def settings(path, **changes):
    config = small.get_config(f"data={path},resolution=16,{changes.pop('arguments', '')}")
    config.data.update(dict(held_out=0.0) | changes)
    config.pretrain.batch_size = 4
    return typed(config)


def latents_of(config, tmp_path):
    """Latents by prompt, and the buckets they are in."""
    buckets = [Bucket.parse(name) for name in config.data.buckets]
    source = open_source(config, buckets, tmp_path)
    found = {}
    for bucket, prompts in source.prompts.items():
        read = source.read(bucket, 0, len(prompts))["latents"]
        found |= {p: (bucket.name, x) for p, x in zip(prompts, read, strict=True)}
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 8, 16))
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 10, 200, 90])
    return write(
        tmp_path_factory.mktemp("pictures"),
        {
            "a.png": (Image.new("L", (16, 16), 40), "grey"),
            "b.png": (half, "alpha"),
            "c.png": (palette, "palette"),
            "d.png": (Image.new("RGB", (40, 20), (1, 2, 3)), "wide"),
            "e.png": (Image.new("LA", (64, 64), (0, 0)), "clear"),
        },
    )


def test_latents_are_pixels_in_colours_with_transparent_parts_white(pictures, tmp_path):
    found = latents_of(settings(pictures, buckets=("16x16",)), tmp_path)
    values = {name: (latent + 1) * 127.5 for name, (_, latent) in found.items()}
    assert all(latent.shape == (16, 16, 3) for latent in values.values())
    for name, colour in (("grey", (40,) * 3), ("palette", (10, 200, 90)), ("wide", (1, 2, 3)),
                         ("clear", (255,) * 3)):  # fmt: skip
        np.testing.assert_allclose(values[name], np.broadcast_to(colour, (16, 16, 3)), atol=1e-3)
    np.testing.assert_allclose(values["alpha"][3, [0, 15]], [[255, 0, 0], [255] * 3], atol=1e-3)


def test_one_channel_is_grey(pictures, tmp_path):
    found = latents_of(settings(pictures, buckets=("16x16",), arguments="channels=1"), tmp_path)
    values = {name: (latent + 1) * 127.5 for name, (_, latent) in found.items()}
    assert all(latent.shape == (16, 16, 1) for latent in values.values())
    assert abs(values["grey"] - 40).max() < 1e-3
    assert abs(values["palette"] - (0.299 * 10 + 0.587 * 200 + 0.114 * 90)).max() <= 1


def sizes(**counts):
    """Pictures by their width, all 24 high."""
    return {
        f"{name}_{i:02d}.png": (Image.new("L", (int(width), 24), i), f"{name} {i}")
        for name, (width, count) in counts.items()
        for i in range(count)
    }


def test_buckets_suit_the_pictures_and_are_told_with_their_counts(tmp_path, caplog):
    caplog.set_level("INFO")
    path = write(tmp_path, sizes(square=(24, 40), wide=(46, 25), tall=(13, 25)))
    config = settings(path, held_out=0.2)
    source = open_source(config, [], tmp_path / "run")
    assert {bucket.name for bucket in source.prompts} == {"16x16", "12x22", "22x12"}
    assert all(bucket.height % 2 == bucket.width % 2 == 0 for bucket in source.prompts)
    parts = [{p for some in part.prompts.values() for p in some} for part in
             (source, source.held_out)]  # fmt: skip
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 90
    assert all(len(prompts) == LEAST for prompts in source.held_out.prompts.values())
    told = re.findall(r"bucket (\w+): (\d+) records, and (\d+) held out", caplog.text)
    assert {(name, int(a) + int(b)) for name, a, b in told} == {
        ("16x16", 40), ("12x22", 25), ("22x12", 25)
    }  # fmt: skip
    assert re.search(r"bucket 12x22: \d+ more are held out, so that there are 16", caplog.text)


def test_squares_alone_are_one_bucket(tmp_path):
    source = open_source(settings(write(tmp_path, sizes(square=(24, 8)))), [], tmp_path)
    assert [bucket.name for bucket in source.prompts] == ["16x16"]


@pytest.mark.parametrize("small_buckets", ["merge", "drop"])
def test_a_bucket_smaller_than_a_batch_is_merged_or_left_out_at_once(
    tmp_path, caplog, small_buckets
):
    caplog.set_level("INFO")
    path = write(tmp_path, sizes(square=(24, 9), wide=(46, 3)))
    found = latents_of(settings(path, small_buckets=small_buckets), tmp_path)
    merged = small_buckets == "merge"
    assert {bucket for bucket, _ in found.values()} == {"16x16"}
    assert len(found) == (12 if merged else 9)
    done = "put into 16x16" if merged else "left out"
    assert f"12x22: 3 records; fewer than pretrain.batch_size 4: {done}" in caplog.text
    listed = tmp_path / "left_out.jsonl"
    assert listed.exists() != merged
    if not merged:
        keys = {json.loads(line)["key"] for line in listed.read_text().splitlines()}
        assert keys == {f"wide_0{i}.png" for i in range(3)}


def test_fewer_pictures_than_a_batch_are_refused_before_anything_is_written(tmp_path):
    config = settings(write(tmp_path, sizes(square=(24, 3))))
    with pytest.raises(UserError, match="hold 3 records .* batch of pretrain.batch_size 4: lower"):
        encode(config, tmp_path / "run")
    assert not encoded(tmp_path / "run").exists()


def test_a_limit_reads_the_first_records_alone_and_a_share_may_be_unreadable(tmp_path):
    path = write(tmp_path, sizes(square=(24, 9)))
    (path / "square_00.png").write_bytes(b"none")
    with pytest.raises(UserError, match="1 of 8 records cannot be read and the limit is 1 %:"):
        open_source(settings(path, limit=8), [], tmp_path)
    for tolerance in ((0.2, 0), (0.01, 1)):
        source = open_source(settings(path, limit=8, max_unreadable=tolerance), [], tmp_path)
        assert sorted(source.prompts[Bucket(16, 16)]) == [f"square {i}" for i in range(1, 8)]
    (path / "square_01.png").write_bytes(b"none")
    with pytest.raises(UserError, match="2 of 8 records cannot be read and the limit is 1 % or 1:"):
        open_source(settings(path, limit=8, max_unreadable=(0.01, 1)), [], tmp_path)


@pytest.fixture
def damaged_within(tmp_path):
    """Pictures of which two look whole and cannot be decoded."""
    path = tmp_path / "pictures"
    path.mkdir()
    write(path, {f"{i:02d}.jpg": (Image.new("L", (24, 24), 9 * i), f"grey {i}") for i in range(12)})
    for name in ("03.jpg", "07.jpg"):
        damage_within(path / name)
    return path


def test_pictures_that_are_damaged_between_their_ends_are_left_out_and_counted(
    damaged_within, tmp_path
):
    def run(workdir, tolerance):
        encode(settings(damaged_within, max_unreadable=(0.0, tolerance)), workdir)
        return Shards(encoded(workdir))

    shards, bucket = run(tmp_path / "run", 2), Bucket(16, 16)
    assert shards.sizes == {bucket: 10}
    prompts = shards.read(bucket, np.arange(10))["prompt"]
    assert sorted(prompts) == sorted(f"grey {i}" for i in range(12) if i not in (3, 7))
    listed = (tmp_path / "run" / "unreadable.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in listed] == ["03.jpg", "07.jpg"]
    # There is nothing more to do, and that is found without a word.
    run(tmp_path / "run", 2)
    with pytest.raises(UserError, match="2 of 12 records cannot be read and the limit is 0 % or 1"):
        run(tmp_path / "another", 1)


def test_shards_that_were_begun_with_a_damaged_picture_are_made_anew(damaged_within, tmp_path):
    config = settings(damaged_within, max_unreadable=(0.0, 2), records_per_shard=1)
    # As in a job of several processes, which cannot look again together.
    with pytest.raises(UndecodableError, match="picture 0[37].jpg cannot be decoded"):
        _encode(config, tmp_path / "run")
    # What else differs is refused as ever.
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, text_length=9))
    with pytest.raises(UserError, match="data.text_length was 16 and is 9|text_length"):
        encode(other, tmp_path / "run")
    encode(config, tmp_path / "run")
    encode(config, tmp_path / "whole")
    begun, whole = (Shards(encoded(tmp_path / name)) for name in ("run", "whole"))
    for bucket, size in whole.sizes.items():
        records = (shards.read(bucket, np.arange(size)) for shards in (begun, whole))
        jax.tree.map(np.testing.assert_array_equal, *records)


def test_a_picture_of_more_than_max_pixels_is_unreadable(tmp_path):
    path = write(tmp_path, sizes(square=(24, 8), wide=(32, 1)))
    source = open_source(settings(path, max_pixels=24 * 24, max_unreadable=(0.0, 1)), [], tmp_path)
    (prompts,) = source.prompts.values()
    assert len(prompts) == 8
    listed = (tmp_path / "unreadable.jsonl").read_text()
    assert "wide_00" in listed and "the limit is 576" in listed


def test_the_first_records_show_all_classes_of_data_that_are_sorted_by_them(tmp_path):
    classes = {
        f"{name}/{i:02d}.png": (Image.new("L", (24, 24), 60 * place + i), name)
        for place, name in enumerate(("apple", "melon", "zebra"))
        for i in range(40)
    }
    for name in ("apple", "melon", "zebra"):
        (tmp_path / name).mkdir()
    source = open_source(settings(write(tmp_path, classes), held_out=0.2), [], tmp_path / "run")
    for part, first in ((source, 24), (source.held_out, 12)):
        (prompts,) = part.prompts.values()
        assert set(prompts[:first]) == {"apple", "melon", "zebra"}
    # The order follows from the names alone.
    again = open_source(settings(tmp_path, held_out=0.2), [], tmp_path / "run")
    assert again.prompts == source.prompts


def test_a_picture_with_several_captions_is_on_one_side(tmp_path):
    for i in range(40):
        Image.new("L", (24, 24), i).save(tmp_path / f"{i}.png")
        # A copy by another name is the same picture.
        (tmp_path / f"copy of {i}.png").write_bytes((tmp_path / f"{i}.png").read_bytes())
    rows = [dict(file_name=f"{start}{i}.png", text=f"picture {i}") for i in range(40)
            for start in ("", "", "copy of ")]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(settings(tmp_path, held_out=0.2), [], tmp_path / "run")
    trained, judged = (part.prompts[Bucket(16, 16)] for part in (source, source.held_out))
    assert len(trained) + len(judged) == 120 and len(judged) % 3 == 0 and len(judged) >= LEAST
    assert not set(trained) & set(judged)


def test_too_few_pictures_for_judges_are_refused_before_anything_is_written(tmp_path):
    config = settings(write(tmp_path, sizes(square=(24, LEAST + 3))), held_out=0.05)
    with pytest.raises(UserError, match="judges need 16 .* 4: add .* set data.held_out to 0"):
        encode(config, tmp_path / "run")
    assert not encoded(tmp_path / "run").exists()


def test_processes_compare_what_their_records_say(tmp_path, monkeypatch):
    path, seen = write(tmp_path, sizes(square=(24, 4))), []
    monkeypatch.setattr(images, "check_same", lambda what, value: seen.append(json.dumps(value)))
    open_source(settings(path), [], tmp_path / "run")
    (path / "metadata.jsonl").write_text((path / "metadata.jsonl").read_text().upper().replace(
        "FILE_NAME", "file_name").replace("TEXT", "text").replace("SQUARE_", "square_").replace(
        ".PNG", ".png"))  # fmt: skip
    open_source(settings(path), [], tmp_path / "run")
    assert seen[0] != seen[1] and seen[0] == seen[1].replace("SQUARE", "square")


def test_shards_for_judges_are_written_beside_older_ones(tmp_path):
    path = write(tmp_path, sizes(square=(24, 30)))
    text = dict(text_width=8, text_heads=1, text_layers=1, pooled_width=8, text_length=16)
    config, workdir = settings(path, held_out=0.2, **text), tmp_path / "run"
    encode(config, workdir)
    before = Shards(held_out(workdir)).sizes
    shutil.rmtree(held_out(workdir))
    unjudged = dataclasses.replace(config, stages=("encode", "pretrain"))
    encode(unjudged, workdir)
    assert not held_out(workdir).exists()
    encode(config, workdir)
    assert Shards(held_out(workdir)).sizes == before

    # What holds nothing out has trained on what judges would need.
    shutil.rmtree(workdir)
    encode(settings(path, held_out=0.0, **text), workdir)
    with pytest.raises(UserError, match="data.held_out was 0.0 and is 0.2"):
        encode(config, workdir)
    # An older version did not say what it held out.
    (encoded(workdir) / "identity.json").unlink()
    with pytest.raises(UserError, match="held nothing out, .*: use another --workdir"):
        encode(config, workdir)


def test_both_sets_of_shards_hold_pixels_and_text(tmp_path):
    path = write(tmp_path, sizes(square=(24, 30), wide=(46, 30)))
    text = dict(text_width=8, text_heads=1, text_layers=1, pooled_width=8, text_length=16)
    config, workdir = settings(path, held_out=0.2, **text), tmp_path / "run"
    encode(config, workdir)
    parts = [Shards(place(workdir)) for place in (encoded, held_out)]
    assert sum(sum(shards.sizes.values()) for shards in parts) == 60
    assert parts[0].arrays == parts[1].arrays
    for shards in parts:
        for bucket in shards.buckets:
            read = shards.read(bucket, np.arange(shards.sizes[bucket]))
            values = (read["latents"][:, 8, 8, 0] + 1) * 127.5
            said = [int(prompt.split()[1]) for prompt in read["prompt"]]
            np.testing.assert_allclose(values, said, atol=1e-3)
            assert read["cond"]["context"].shape[1:] == (16, 8)
    assert set(trained_buckets(config, workdir)) == set(parts[0].buckets)


@pytest.mark.parametrize(
    "arguments, message",
    [("resolution=128", "resolution 128 is not from 8 to 64"),
     ("resolution=4", "resolution 4 is not from 8 to 64")],
)  # fmt: skip
def test_pixels_are_latents_for_small_pictures_only(arguments, message):
    with pytest.raises(UserError, match=message):
        small.get_config(f"data=x,{arguments}")


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("model", dict(channels=4), "channels is 4: .* latents are pixels, of 1 channel, grey, or"),
        ("data", dict(resolution=5), "data.resolution is 5 .*: use 4 or 8"),
    ],
)
def test_what_pixels_cannot_be_is_refused_before_the_data_are_read(section, values, message):
    config = small.get_config("data=x")
    config.stages = ("encode",)
    config[section].update(values)
    with pytest.raises(UserError, match=message):
        check(typed(config))


def test_metadata_may_say_what_is_held_out_in_place_of_the_share(tmp_path):
    path = write(tmp_path, sizes(square=(24, 12)))
    rows = [json.loads(line) for line in (path / "metadata.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows[:10]):
        row["held_out"] = i % 5 == 0
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(settings(path, held_out=0.0), [], tmp_path / "run")
    assert sorted(source.held_out.prompts[Bucket(16, 16)]) == ["square 0", "square 5"]
    assert len(source.prompts[Bucket(16, 16)]) == 10


@pytest.mark.parametrize(
    "arguments, channels", [("", 3), (",channels=1", 1), (",autoencoder=a", 16)]
)
def test_channels_are_those_of_colours_or_of_latents_unless_given(arguments, channels):
    assert small.get_config(f"data=x{arguments}").model.channels == channels
