"""Edits as records: a picture, what it was made of, and an instruction."""

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from configs import small
from ladd_jax.config.fields import typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.image_records import open_images
from ladd_jax.data.sources import open_source
from ladd_jax.errors import UserError

LAYOUTS = {
    "instructpix2pix": ("original_image", "edit_prompt", "edited_image"),
    "instructpix2pix, small": ("input_image", "edit_prompt", "edited_image"),
    "magicbrush": ("source_img", "instruction", "target_img"),
}


def picture(value, width=16, height=16):
    """A horizontal ramp, so that a crop is seen, of a level of green."""
    ramp = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    return Image.fromarray(
        np.stack([ramp, np.full_like(ramp, value), np.zeros_like(ramp)], -1).astype(np.uint8)
    )


def encoded(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def table(path, names, pairs, **more):
    """A parquet file: (source, instruction, edited picture) of each."""
    source, instruction, edited = names
    image = datasets.Image()
    columns = {
        source: [{"bytes": encoded(before), "path": None} for before, _ in pairs],
        instruction: [f"make it number {i}" for i in range(len(pairs))],
        edited: [{"bytes": encoded(after), "path": None} for _, after in pairs],
    }
    features = {source: image, instruction: datasets.Value("string"), edited: image}
    for name, values in more.items():
        columns[name], features[name] = values, datasets.Value("string")
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.to_parquet(path)
    return path


def settings(path, **changes):
    config = small.get_config(f"data={path},resolution=16,recipe=paper")
    config.data.update(dict(joined="edit", held_out=0.0) | changes)
    config.pretrain.batch_size = 2
    return typed(config)


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=list(LAYOUTS))
def test_the_columns_of_published_edits_are_known(tmp_path, names):
    path = table(tmp_path / "a.parquet", names, [(picture(10), picture(200))])
    record = open_images(path, edits=True)[0]
    assert record.prompt == "make it number 0"
    before, after = (Image.open(io.BytesIO(data)) for data in (record.other, record.data))
    assert (before.getpixel((0, 0))[1], after.getpixel((0, 0))[1]) == (10, 200)


def test_columns_of_any_name_are_named_and_those_of_captions_are_no_instructions(tmp_path):
    names = ("before", "todo", "after")
    path = table(tmp_path / "a.parquet", names, [(picture(10), picture(200))])
    named = dict(column="todo", image_column="after", other_column="before")
    assert open_images(path, edits=True, **named)[0].prompt == "make it number 0"
    with pytest.raises(UserError, match="has none of original_image, .*name in data.source_column"):
        open_images(path, edits=True)
    # Beside an instruction InstructPix2Pix has the captions of both pictures.
    path = table(
        tmp_path / "b.parquet", LAYOUTS["instructpix2pix"], [(picture(10), picture(200))],
        text=["a caption"],
    )  # fmt: skip
    assert open_images(path, edits=True)[0].prompt == "make it number 0"


def test_a_source_is_a_file_name_and_an_instruction_goes_before_a_caption(tmp_path):
    picture(10).save(tmp_path / "before.png")
    picture(200).save(tmp_path / "after.png")
    line = {"file_name": "after.png", "source_file_name": "before.png", "source": "unsplash",
            "source_image": "a2", "text": "a room", "instruction": "make it green"}  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    record = open_images(tmp_path, edits=True)[0]
    assert (record.prompt, record.other) == (
        "make it green", (tmp_path / "before.png").read_bytes()
    )  # fmt: skip
    assert open_images(tmp_path, edits=True, column="text")[0].prompt == "a room"
    del line["source_file_name"], line["source_image"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match="has none of source_file_name, original_image"):
        open_images(tmp_path, edits=True)


@pytest.mark.parametrize("field", ["source_file_name", "original_image_file_name", "source_img"])
def test_a_folder_names_the_source_in_its_metadata(tmp_path, field):
    picture(10).save(tmp_path / "before.png")
    picture(200).save(tmp_path / "after.png")
    line = {"file_name": "after.png", field: "before.png", "text": "make it green"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    record = open_images(tmp_path, edits=True)[0]
    assert record.prompt == "make it green"
    assert record.other == (tmp_path / "before.png").read_bytes()


def test_a_folder_does_not_lead_to_a_source_outside_of_it(tmp_path):
    (tmp_path / "in").mkdir()
    picture(200).save(tmp_path / "in" / "after.png")
    line = {"file_name": "after.png", "source_file_name": "../before.png", "text": "green"}
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match="outside"):
        open_images(tmp_path / "in", edits=True)


def test_what_holds_no_edits_is_refused(tmp_path):
    picture(10).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a picture")
    with pytest.raises(UserError, match="neither a table nor a folder .* data.joined is edit"):
        open_images(tmp_path, edits=True)


def test_a_source_is_fitted_as_its_edit_is_and_is_joined_as_channels(tmp_path):
    # The second source is twice as large as its edit, of the same aspect.
    pairs = [
        (picture(10, 24), picture(200, 24)),
        (picture(20, 48, 32), picture(210, 24)),
        (picture(30, 24), picture(220, 24)),
    ]
    path = table(tmp_path / "a.parquet", LAYOUTS["magicbrush"], pairs)
    config = settings(path, buckets=("16x16",))
    source = open_source(config, [Bucket(16, 16)], tmp_path)
    arrays = source.read(Bucket(16, 16), 0, 3)
    latents, channels = arrays["latents"], arrays["channels"]
    assert source.arrays["channels"].shape_in(Bucket(16, 16)) == channels.shape[1:] == (16, 16, 3)
    # The same crop of the ramp, and each one's own green.
    np.testing.assert_allclose(channels[..., 0], latents[..., 0], atol=0.05)
    before, after = ((1 + a[:, 0, 0, 1]) * 127.5 for a in (channels, latents))
    np.testing.assert_allclose(after - before, 190, atol=1)


def test_an_edit_of_another_aspect_is_left_out_and_named(tmp_path):
    pairs = [(picture(10 + i), picture(200 + i)) for i in range(4)]
    pairs.append((picture(50, 24), picture(250)))
    path = table(tmp_path / "a.parquet", LAYOUTS["magicbrush"], pairs)
    config = settings(path, buckets=("16x16",), max_unreadable=(0.0, 1))
    source = open_source(config, [Bucket(16, 16)], tmp_path)
    assert len(source.prompts[Bucket(16, 16)]) == 4
    [left_out] = (tmp_path / "unreadable.jsonl").read_text().splitlines()
    assert "has 24x16 pixels and the edited one 16x16, of another aspect" in left_out


def test_edits_of_one_picture_are_all_held_out_or_none(tmp_path):
    pairs = [(picture(i // 5), picture(100 + i)) for i in range(100)]
    path = table(tmp_path / "a.parquet", LAYOUTS["magicbrush"], pairs)
    config = settings(path, buckets=("16x16",), held_out=0.3)
    source = open_source(config, [Bucket(16, 16)], tmp_path)
    sides = []
    for part in (source, source.held_out):
        count = len(part.prompts[Bucket(16, 16)])
        channels = part.read(Bucket(16, 16), 0, count)["channels"]
        sides.append({round(float(value), 3) for value in channels[:, 0, 0, 1]})
    assert sides[0] and sides[1] and not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(source="scenes", joined="edit"), "edits are of the sources 'images' and"),
        (dict(source="scene_edits"), "edits are of the sources 'images' and"),
        (dict(source="images", source_column="a"), "set that to edit, or leave"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(changes, message):
    config = small.get_config("data=x,resolution=16")
    config.data.update(dict(buckets=("16x16",)) | changes)
    with pytest.raises(UserError, match=message):
        typed(config)
