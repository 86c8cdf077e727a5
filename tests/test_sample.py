"""Pictures of a run and of an export."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image
from pipelines import save_pipeline
from runs import keeping_programs
from sampled import command, draw, pixels, save_digits
from test_sd3 import tiny
from untrained_run import save_student

from ladd_jax.config.fields import typed
from ladd_jax.errors import NotFiniteError
from ladd_jax.stages import sample as sample_stage
from ladd_jax.stages.export import export
from ladd_jax.stages.latents import of_pixels
from ladd_jax.stages.trained import is_run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sd3")
    save_pipeline(directory / "pipeline", qk_norm=True)
    save_student(typed(tiny(directory / "pipeline", "")), directory / "run")
    return directory / "run"


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    return save_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(autouse=True)
def programs_are_kept_for_one_test(tmp_path_factory):
    """A command keeps programs with those of the run; other tests of this process do not."""
    with keeping_programs(tmp_path_factory.mktemp("kept")):
        yield


def test_a_picture_depends_on_its_prompt_and_seed_and_not_on_how_many_are_made(
    digits_run, tmp_path
):
    # A prompt that is given twice is the same pictures.
    prompts = ("--prompt=seven", "--prompt=two", "--prompt=seven")
    many, sheet = draw(tmp_path / "many", *prompts, checkpoint=digits_run, num=2, seed=3)
    assert set(many) == {(prompt, seed) for prompt in ("seven", "two") for seed in (3, 4)}
    assert sheet.size == (2 * 64 + 1, 2 * 64 + 1)
    assert json.loads(sheet.text["prompts"]) == ["seven", "two"]
    one, none = draw(tmp_path / "one", prompt="seven", checkpoint=digits_run, num=1, seed=4)
    assert none is None and list(one) == [("seven", 4)]
    np.testing.assert_array_equal(pixels(one["seven", 4]), pixels(many["seven", 4]))
    for a in many:
        for b in many:
            assert a == b or np.any(pixels(many[a]) != pixels(many[b]))


def test_geneval_finds_its_pictures_in_its_folders(digits_run, tmp_path):
    records = [{"tag": "single_object", "prompt": prompt} for prompt in ("seven", "two")]
    metadata = tmp_path / "evaluation_metadata.jsonl"
    metadata.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="leave --prompt and --prompts out"):
        command(out, prompt="two", geneval=metadata, checkpoint=digits_run)
    command(out, geneval=metadata, checkpoint=digits_run, num=2, seed=3)
    for number, record in enumerate(records):
        folder = out / f"{number:05}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == record
        files = sorted((folder / "samples").iterdir())
        assert [file.name for file in files] == ["0000.png", "0001.png"]
        for seed, file in enumerate(files, 3):
            with Image.open(file) as image:
                assert image.text["prompt"] == record["prompt"]
                assert image.text["seed"] == str(seed)


def test_files_of_prompts_in_any_script_are_told_apart_by_their_names(digits_run, tmp_path):
    prompts = ("赤い猫", "青い猫", "красный кот", "🙂", "🙃")
    command(
        tmp_path, *(f"--prompt={prompt}" for prompt in prompts),
        checkpoint=digits_run, num=1, steps=1, batch_size=5,
    )  # fmt: skip
    stems = [file.name.split("_")[0] for file in tmp_path.iterdir() if "grid" not in file.name]
    assert sorted(stems) == sorted(["赤い猫", "青い猫", "красный-кот", "prompt", "prompt"])
    # Programs are kept with those of the run.
    assert list((digits_run / "compilation_cache").iterdir())


def test_a_picture_says_how_it_was_made(digits_run, tmp_path):
    pictures, _ = draw(
        tmp_path, prompt="日本 cat", checkpoint=digits_run, num=1, steps=2, aspect="30:8"
    )
    (image,) = pictures.values()
    assert image.size == (128, 64)
    text = dict(image.text)
    assert text.pop("software").startswith("ladd_jax ")
    assert text == {
        "prompt": "日本 cat", "seed": "0", "steps": "2", "sigmas": "1, 0.5, 0",
        "sampler": "consistency", "guidance": "1", "model": "ema", "checkpoint": str(digits_run),
        "checkpoint_step": "2", "size": "128x64", "dtype": "float32",
    }  # fmt: skip


@pytest.mark.slow
def test_average_student_and_teacher_make_different_pictures_of_one_folder(run, tmp_path):
    for options in (
        {"model": "ema"}, {"model": "student"}, {"model": "generator", "steps": 3, "guidance": 2}
    ):  # fmt: skip
        draw(tmp_path, prompt="seven", checkpoint=run, num=1, **options)
    images = {}
    for file in tmp_path.iterdir():
        with Image.open(file) as image:
            images[image.text["model"]] = (pixels(image), image.text)
    assert set(images) == {"ema", "student", "generator"}
    assert np.any(images["ema"][0] != images["student"][0])
    text = images["generator"][1]
    # As synthesis does by default.
    assert (text["sampler"], text["guidance"], text["steps"]) == ("dpmpp_2m", "2", "3")
    assert text["sigmas"] == "1, 0.857143, 0.6, 0" and "checkpoint_step" not in text


@pytest.mark.slow
def test_an_export_makes_the_pictures_of_its_run(run, tmp_path):
    export(run, tmp_path / "turbo", dtype="float32")
    options = dict(prompt="seven", num=1, aspect="3:1", dtype="float32")
    theirs, _ = draw(tmp_path / "a", checkpoint=tmp_path / "turbo", **options)
    ours, _ = draw(tmp_path / "b", checkpoint=run, **options)
    image = theirs["seven", 0]
    assert (image.text["model"], image.text["sampler"]) == ("released", "consistency")
    np.testing.assert_array_equal(pixels(image), pixels(ours["seven", 0]))


@pytest.mark.slow
def test_a_released_pipeline_is_sampled_as_a_teacher_in_pixels_that_are_named(run, tmp_path):
    options = dict(prompt="seven", num=1, aspect="24x8", dtype="float32", steps=2)
    pictures, _ = draw(tmp_path, checkpoint=run.parent / "pipeline", **options)
    image = pictures["seven", 0]
    assert image.size == (24, 8)
    assert (image.text["sampler"], image.text["sigmas"]) == ("euler", "1, 0.75, 0")


def test_digits_of_a_file_of_prompts_are_pictures_too(digits_run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "three and seven"}) + "\n")
    flags.FLAGS["prompts"].value = str(tmp_path / "prompts.jsonl")
    try:
        pictures, sheet = draw(tmp_path / "out", checkpoint=digits_run, aspect="2:1")
    finally:
        flags.FLAGS["prompts"].value = None
    assert len(pictures) == 4 and sheet.size == (2 * 128 + 1, 2 * 64 + 1)
    image = pictures["three and seven", 0]
    assert (image.size, image.mode) == ((128, 64), "L")
    blocks = pixels(image).reshape(8, 8, 16, 8)
    assert np.all(blocks == blocks[:, :1, :, :1]) and np.std(blocks) > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"aspect": "wide"}, "'wide' is neither W:H"),
        ({"aspect": "16:0"}, "'16:0' is neither W:H"),
        ({"aspect": "1" * 400 + ":1"}, "is neither W:H"),
        ({"aspect": "1" * 5000 + "x64"}, "is neither W:H"),
        ({"aspect": "70x64"}, "multiples of 16 pixels"),
        ({"aspect": "0x64"}, "multiples of 16 pixels"),
        ({"aspect": "512x64"}, "ends at 256 pixels"),
        ({"steps": 3}, "3 steps do not divide the 4 training times"),
        ({"steps": 0}, "steps is 0: use a number from 1 to 10000"),
        ({"steps": 10**12}, "steps is 1000000000000: use a number from 1 to 10000"),
        ({"num": 0}, "num is 0"),
        ({"num": 10**9}, "--num=10{9} of 1 prompt are 10{9} pictures and a command makes 10{6}: u"),
        ({"seed": -1}, "seed is -1"),
        ({"guidance": "nan"}, "guidance is nan: use 0 or more"),
        ({"shift": 0}, "shift is 0.0: use a number above 0"),
        ({"guidance": 4}, "guidance is 4 and this student has none"),
        ({"step": 7}, r"no checkpoint of step 7 .* steps \[2\]"),
        ({"prompt": " "}, "--prompt is empty"),
        ({"prompt": "x" * 10_001}, "10001 characters and the limit is 10000"),
        ({"checkpoint": "nowhere/at/all"}, "nowhere/at/all does not exist"),
        ({"model": "teacher"}, "holds nothing of 1600 steps: run the stage 'pretrain'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_sampled_is_said_and_nothing_is_written(
    digits_run, tmp_path, options, words
):
    defaults = {"checkpoint": digits_run, "prompt": "seven"}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        draw(tmp_path / "out", **defaults | options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_picture_that_is_not_finite_is_an_error_and_not_grey():
    latents = np.array([[[0.0], [np.nan]]], np.float32)
    with pytest.raises(NotFiniteError, match="64 of the 128 values of a picture are not finite"):
        of_pixels(1).decode(latents)
    assert of_pixels(1).decode(np.nan_to_num(latents)).shape == (8, 16, 1)


def test_a_pipeline_has_one_network_and_no_step(run, tmp_path):
    for name, value in (("model", "student"), ("step", 2)):
        with pytest.raises(ValueError, match=f"{name} is {value} and .* is not the workdir"):
            options = {"checkpoint": run.parent / "pipeline", "prompt": "x", name: value}
            draw(tmp_path / "out", **options)


def test_a_file_in_the_place_of_the_folder_is_left_alone(digits_run, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="--out=.*out is a file: name a directory"):
        draw(tmp_path / "out", checkpoint=digits_run, prompt="seven")
    with pytest.raises(ValueError, match="--out=.*in cannot be made, since .*out is not a folder:"):
        # Before anything else is looked at.
        draw(tmp_path / "out" / "in", checkpoint=tmp_path / "nowhere", prompt="seven")
    assert (tmp_path / "out").read_text() == "mine"


def test_seeds_are_told_apart_however_large_they_are(digits_run, tmp_path):
    large = 2**63 - 1
    pictures, _ = draw(
        tmp_path, prompt="seven", checkpoint=digits_run, num=2, steps=1, seed=large, batch_size=2
    )
    assert (
        pixels(pictures["seven", large]).tobytes() != pixels(pictures["seven", large + 1]).tobytes()
    )


def test_a_seed_that_no_file_name_has_room_for_is_refused_first(tmp_path):
    with pytest.raises(ValueError, match="--seed is 1000.*: use a number from 0 to 18446"):
        draw(tmp_path, checkpoint=tmp_path / "nowhere", prompt="seven", seed=10**300)


def test_a_sheet_shows_the_first_pictures_of_many(digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_stage, "_SHOWN_COLUMNS", 2)
    options = dict(checkpoint=digits_run, num=5, steps=1, batch_size=5)
    pictures, sheet = draw(tmp_path / "one", prompt="seven", **options)
    assert len(pictures) == 5 and sheet.size == (2 * 64 + 1, 2 * 64 + 1)
    assert sheet.text["num"] == "4"
    pictures, sheet = draw(tmp_path / "two", "--prompt=two", prompt="seven", **options)
    assert len(pictures) == 10 and sheet.size == (2 * 64 + 1, 2 * 64 + 1)
    assert sheet.text["num"] == "2"


def test_a_pipeline_with_another_config_beside_it_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert is_run(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    assert not is_run(tmp_path)


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("sample", ["--checkpoint=x", "--out=y"], "there is no prompt"),
        ("export", ["--workdir=x", "--out=y", "--dtype=float8"], "float8"),
    ],
)
def test_bad_flags_are_one_sentence_and_exit_code_2(module, arguments, words):
    call = [sys.executable, "-m", f"ladd_jax.{module}", *arguments]
    result = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr and "Traceback" not in result.stderr
