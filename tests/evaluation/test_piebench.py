"""PIE-Bench: what is asked for, and where its scorer looks for the edits."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.evaluation.piebench import make_places, read_piebench

ENTRY = {
    "image_path": "1_change_object_80/1_artificial/1_animal/1.jpg",
    "original_prompt": "a [cat] on a chair",
    "editing_prompt": "a [dog] on a chair",
    "editing_instruction": "Make the cat a dog",
    "editing_type_id": "1",
    "mask": [0, 10],
}


def write(folder, **changes):
    """The benchmark's folder with one picture; returns the mapping file."""
    picture = folder / "annotation_images" / ENTRY["image_path"]
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(picture)
    file = folder / "mapping_file.json"
    entry = {name: value for name, value in (ENTRY | changes).items() if value is not None}
    file.write_text(json.dumps({"000": entry}))
    return file


def test_pictures_are_beside_the_mapping_and_edits_have_their_names(tmp_path):
    [task] = read_piebench(write(tmp_path / "data"))
    assert task.instruction == "Make the cat a dog"
    assert task.image == tmp_path / "data" / "annotation_images" / ENTRY["image_path"]
    place = make_places(tmp_path / "out", [task])
    assert place(0, 0) == Path("annotation_images", ENTRY["image_path"])
    assert (tmp_path / "out" / place(0, 0)).parent.is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(editing_instruction=None), "has no field 'editing_instruction': give PIE-Bench's"),
        (dict(image_path="../x.jpg"), "outside of its folder"),
        (dict(editing_instruction=" "), "empty"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_piebench(write(tmp_path, **changes))


def test_two_edits_of_one_place_are_refused(tmp_path):
    file = write(tmp_path)
    file.write_text(json.dumps({"000": ENTRY, "001": ENTRY | {"editing_instruction": "Again"}}))
    with pytest.raises(UserError, match=r"json, 001 names '.*1\.jpg', which is named before"):
        read_piebench(file)


def test_a_picture_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"2\.jpg, which is not there"):
        read_piebench(write(tmp_path, image_path="2.jpg"))
    with pytest.raises(NotFoundError, match=r"give PIE-Bench's mapping_file\.json"):
        read_piebench(tmp_path / "none.json")


def test_a_file_that_is_no_mapping_is_told(tmp_path):
    file = tmp_path / "mapping_file.json"
    cases = (
        ("[", "is damaged"), ("[" * 10**5, "is damaged"), ("[]", "holds no JSON object"),
        ("{}", "names no pictures"),
    )  # fmt: skip
    for text, message in cases:
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_piebench(file)
