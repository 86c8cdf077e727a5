"""Metrics of folders of pictures."""

import json

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ladd_jax import evaluate
from ladd_jax.data.picture_folder import PictureFolder
from ladd_jax.errors import UserError
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.folders import default_metrics, judge_folders, open_named

PROMPTS = ("a red cat", "a dog")


def save(folder, count, seed=0, sizes=((12, 16), (20, 8)), prompts=PROMPTS, offset=0):
    """Pictures of several sizes, each prompt's one after the other."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(offset, 200 + offset, (*sizes[i % len(sizes)], 3), np.uint8)
        text = PngInfo()
        if prompts:
            text.add_text("prompt", prompts[i * len(prompts) // count])
        Image.fromarray(pixels).save(folder / f"{i:03}.png", pnginfo=text)
    return folder


class Means:
    """Mean colours, and how red a picture is that should be."""

    def look(self, images, prompts):
        features = images.mean((1, 2)).astype(np.float64)
        red = np.array(["red" in prompt for prompt in prompts])
        return features[:, None], np.where(red, features[:, 0], -features[:, 0])


def test_pictures_of_one_size_come_together(tmp_path):
    folder = PictureFolder(save(tmp_path / "p", 7))
    sheet = PngInfo()
    sheet.add_text("prompts", "[]")
    Image.new("RGB", (4, 4)).save(tmp_path / "p" / "grid_sheet.png", pnginfo=sheet)
    assert len(PictureFolder(tmp_path / "p")) == len(folder) == 7
    batches = list(folder.batches(3))
    assert sorted(np.concatenate([places for _, places in batches])) == list(range(7))
    for images, places in batches:
        assert len(images) == len(places) <= 3 and images.dtype == np.float32
        for image, place in zip(images, places, strict=True):
            pixels = np.asarray(Image.open(folder.files[place]), np.float32)
            np.testing.assert_allclose(image, pixels / 127.5 - 1, atol=1e-6)


def test_prompts_stand_in_pictures_in_metadata_or_in_a_file(tmp_path):
    path = save(tmp_path / "own", 4)
    assert PictureFolder(path).prompts == ["a red cat", "a red cat", "a dog", "a dog"]
    assert PictureFolder(path, PROMPTS).prompts == PictureFolder(path).prompts
    with pytest.raises(ValueError, match="carries the prompt 'a red cat'.*leave --prompts out"):
        PictureFolder(path, ["x", "y"])
    with pytest.raises(ValueError, match="3 prompts for 4 pictures"):
        PictureFolder(path, ["x", "y", "z"])
    without = save(tmp_path / "without", 2, prompts=())
    assert PictureFolder(without).prompts is None
    assert PictureFolder(without, ["x", "y"]).prompts == ["x", "y"]
    rows = [{"file_name": f"{i:03}.png", "text": f"prompt {i}"} for i in range(2)]
    (without / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert PictureFolder(without).prompts == ["prompt 0", "prompt 1"]


def test_the_graph_that_comfyui_writes_as_prompt_is_none(tmp_path):
    graph = {"3": {"class_type": "KSampler", "inputs": {"text": "a cat" * 3000}}}
    path = save(tmp_path / "comfy", 2, prompts=[json.dumps(graph)])
    assert PictureFolder(path).prompts is None
    assert PictureFolder(path, PROMPTS).prompts == list(PROMPTS)
    assert PictureFolder(save(tmp_path / "json", 1, prompts=['{"a": 1}'])).prompts == ['{"a": 1}']


def test_numbers_in_names_are_sorted_as_numbers_and_only_our_sheets_are_skipped(tmp_path):
    for name in ("a10.png", "a2.png", "b1.png", "grid_of_mine.png", "2/x.png", "10/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    found = [str(file.relative_to(tmp_path)) for file in PictureFolder(tmp_path).files]
    assert found == ["2/x.png", "10/x.png", "a2.png", "a10.png", "b1.png", "grid_of_mine.png"]


def test_pictures_without_prompt_among_others_are_counted(tmp_path, caplog):
    path = save(tmp_path / "p", 4)
    Image.new("RGB", (4, 4)).save(path / "bare.png")
    assert PictureFolder(path).prompts is None
    assert "1 of 5 pictures have no prompt" in caplog.text and "bare.png" in caplog.text


def test_a_picture_that_is_too_large_is_one_sentence(tmp_path, monkeypatch):
    path = save(tmp_path / "p", 1, prompts=())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"000.png is not a picture \(Image size"):
        list(PictureFolder(path).batches(1))


def test_all_sizes_are_judged_as_one_set(tmp_path):
    samples = PictureFolder(save(tmp_path / "a", 12))
    metrics = default_metrics("clip:x", compared=True)
    options = {"resamples": 0, "seed": 0}
    same = judge_folders(samples, samples, Means(), metrics, **options).values
    assert set(same) == set(metrics)
    assert same["fd"] == pytest.approx(0, abs=1e-9) and same["precision"] == 1
    brighter = PictureFolder(save(tmp_path / "b", 12, seed=1, offset=50))
    row = judge_folders(brighter, samples, Means(), metrics, resamples=4, seed=0)
    assert row.values["fd"] > 0.1 and row.values["recall"] < 0.5
    low, high = row.intervals["fd"]
    assert low < row.values["fd"] < high
    reds = [np.asarray(Image.open(f), float)[..., 0].mean() / 127.5 - 1 for f in brighter.files]
    wanted = np.mean(reds[:6]) / 2 - np.mean(reds[6:]) / 2
    assert row.values["alignment"] == pytest.approx(wanted, abs=1e-6)


def test_what_needs_prompts_or_a_reference_is_left_out_or_refused(tmp_path):
    samples = PictureFolder(save(tmp_path / "a", 6, prompts=()))
    options = {"resamples": 0, "seed": 0}
    alone = judge_folders(samples, None, Means(), default_metrics("clip:x", False), **options)
    assert set(alone.values) == {"deviation"} and not alone.intervals
    with pytest.raises(ValueError, match="'fd' needs a reference: give --reference"):
        judge_folders(samples, None, Means(), ["fd"], **options)
    with pytest.raises(ValueError, match="'fid' is not one of"):
        judge_folders(samples, None, Means(), ["fid"], **options)
    assert "cmmd" not in default_metrics("inception:x", compared=True)


def test_other_folders_and_extractors_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        PictureFolder(tmp_path / "absent")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png is not a picture"):
        PictureFolder(tmp_path / "p")
    mesh = make_mesh({"fsdp": -1}, jax.devices()[:1])
    for name in ("inception", "digits:", "fid:weights.pth"):
        with pytest.raises(ValueError, match="is not NAME:PATH"):
            open_named(name, 0, mesh)
    with pytest.raises(ValueError, match="'own' is trained on a run's own pictures"):
        open_named("own:weights", 0, mesh)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("--config=digits --workdir out", ""),
        ("--config=digits --workdir=samples", ""),
        ("--samples=a --extractor=clip:b", "samples"),
        ("--samples a", "samples"),
    ],
)
def test_flags_alone_say_that_folders_are_judged(arguments, command):
    assert evaluate.command_of(arguments.split()) == command


def test_the_command_prints_a_row_and_writes_it(tmp_path, monkeypatch, capsys):
    save(tmp_path / "a", 8)
    save(tmp_path / "b", 8, seed=1)
    monkeypatch.setattr("ladd_jax.stages.folders.open_named", lambda *_: Means())
    flags.FLAGS.mark_as_parsed()
    given = {
        "samples": tmp_path / "a", "reference": tmp_path / "b", "extractor": "inception:x",
        "metrics": "fd,precision", "out": tmp_path / "rows.json",
    }  # fmt: skip
    evaluate.FLAGS(["evaluate", *(f"--{name}={value}" for name, value in given.items())])
    evaluate.folders()
    assert "precision" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["model"] == "samples" and set(row["values"]) == {"fd", "precision"}
