"""Models side by side, from the command line to the page and to the scores."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pipelines import save_pipeline
from runs import keeping_programs
from sampled import draw, save_editing, save_filling
from test_sd3 import tiny
from untrained_run import save_student

from configs import sd3_edit, sd3_inpaint
from ladd_jax import evaluate
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import typed
from ladd_jax.config.workdir import read
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import enlarged, to_bytes
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.base import CHANNELS
from ladd_jax.models.families import family
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.compared import Asked, open_networks, prompts_of
from ladd_jax.stages.encode import encode
from ladd_jax.stages.export import export
from ladd_jax.stages.given_records import given_records, write_given
from ladd_jax.stages.judging import first_subjects
from ladd_jax.stages.latents import of_pixels, pictures_of_run
from ladd_jax.stages.sets import shards_of

PROMPTS = ("a red cat", "</script> قطة 🦊")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A run of a tiny released pipeline, its export, and another run of the same pipeline."""
    directory = tmp_path_factory.mktemp("models")
    save_pipeline(directory / "pipeline", qk_norm=True)
    config = typed(tiny(directory / "pipeline", ""))
    save_student(config, directory / "run")
    export(directory / "run", directory / "export", dtype="float32")
    shutil.copytree(directory / "run", directory / "other")
    (directory / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return directory


def command(*arguments, **named):
    """A command without config, in this process."""
    flags.FLAGS.mark_as_parsed()
    for name in evaluate.FLAGS:
        evaluate.FLAGS[name].unparse()
    given = [f"--{name}={value}" for name, value in named.items() if name != "prompts"]
    given = evaluate.complete(["evaluate", *arguments, *given])
    evaluate.FLAGS(given)
    flags.FLAGS["prompts"].value = named.get("prompts")
    try:
        evaluate._BODIES[evaluate.command_of(given[1:])][0]()
    finally:
        # Other commands in this process read it, too.
        flags.FLAGS["prompts"].value = None


def pictures(page, title):
    data = json.loads((page / "arena.json").read_text(encoding="utf-8"))
    (found,) = (each for each in data["contenders"] if each["title"] == title)
    return [file for file, *_ in found["pictures"]]


def folder(path, prompts, **text):
    path.mkdir(exist_ok=True)
    for i, prompt in enumerate(prompts):
        information = PngInfo()
        for name, value in (text | {"prompt": prompt}).items():
            information.add_text(name, str(value))
        pixels = np.random.default_rng(i).integers(0, 255, (16, 12, 3), np.uint8)
        name = f"{len(list(path.iterdir()))}.png"
        Image.fromarray(pixels).save(path / name, pnginfo=information)
    return path


def test_runs_exports_and_folders_share_prompts_and_seeds(models, tmp_path, capsys):
    photos = folder(tmp_path / "photos", [p for p in PROMPTS for _ in range(2)])
    page = tmp_path / "page"
    command(
        "--compare", str(models / "run"), f"also={models / 'other'}", str(models / "export"),
        f"--compare={photos}", prompts=models / "prompts.txt", page=page, num=2, seed=5,
        teacher_steps=3, batch_size=3,
    )  # fmt: skip
    assert "4 pictures of each model" in capsys.readouterr().out
    data = json.loads((page / "arena.json").read_text(encoding="utf-8"))
    assert data["samples"] == [{"prompt": p, "seed": s} for p in PROMPTS for s in (5, 6)]
    assert [model["name"] for model in data["models"]] == ["run", "also", "export", "photos"]
    titles = [contender["title"] for contender in data["contenders"]]
    steps = ["1 step", "2 steps", "4 steps"]
    assert titles == [
        *(f"run, {each}" for each in steps), "teacher of run and also, 3 steps",
        *(f"also, {each}" for each in steps), *(f"export, {each}" for each in steps), "photos",
    ]  # fmt: skip
    # The same weights, prompts and seeds are the same pictures, and other steps or seeds others.
    for each in steps:
        assert pictures(page, f"run, {each}") == pictures(page, f"also, {each}")
    shown = sum((pictures(page, title) for title in titles if title.startswith("run, ")), [])
    assert len(set(shown)) == len(shown) == 12


def test_pictures_that_tell_their_steps_and_seeds_are_found_by_them(tmp_path):
    made = tmp_path / "made"
    for steps in (1, 4):
        for seed in (8, 7):
            folder(made, PROMPTS, steps=steps, seed=seed)
    command(compare=made, page=tmp_path / "page", seed=7, num=2)
    data = json.loads((tmp_path / "page" / "arena.json").read_text(encoding="utf-8"))
    assert [c["title"] for c in data["contenders"]] == ["made, 1 step", "made, 4 steps"]
    with pytest.raises(
        UserError, match="has no picture in 1 step of 'a red cat' with seed 9, only"
    ):
        command(compare=made, page=tmp_path / "other", seed=9)
    twice = folder(tmp_path / "twice", PROMPTS[:1], steps=4, seed=7)
    (file,) = twice.glob("*.png")
    shutil.copy(file, twice / "again.png")
    with pytest.raises(
        UserError, match="have the same prompt and seed in 4 steps: leave one of them"
    ):
        command(compare=twice, page=tmp_path / "other", seed=7)
    few = folder(tmp_path / "few", PROMPTS[:1])
    with pytest.raises(UserError, match="few has no picture of 'a red cat' with seed 1, only of"):
        command(compare=f"{few},{made}", page=tmp_path / "other", num=2)
    other = folder(tmp_path / "strange", ["a dog"])
    with pytest.raises(UserError, match="no prompt in common"):
        command(compare=f"{few},{other}", page=tmp_path / "other")
    Image.new("RGB", (4, 4)).save(other / "bare.png")
    with pytest.raises(UserError, match="strange do not carry their prompts: give --prompts=FILE"):
        command(compare=other, page=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_compared_is_told_and_nothing_is_written(models, tmp_path):
    page, run = tmp_path / "page", models / "run"
    named = {"compare": run, "page": page, "prompts": models / "prompts.txt"}
    for changes, words in (
        ({"steps": "1,x"}, "--steps=1,x is not a list of whole numbers: write them as in 1,2,4"),
        ({"steps": 3}, "3 steps do not divide the 4 training times of the student: use one of"),
        ({"num": 0}, "--num is 0: use 1 or more"),
        ({"page": "gs://bucket/page"}, "--page=gs://bucket/page cannot be an address"),
        ({"page": models}, "exists and is not empty"),
        ({"prompts": None}, "there are no prompts: give --prompts=FILE"),
        ({"reference": "x"}, "--reference is a flag of --samples and not of --compare: leave it"),
        ({"compare": f"{run},{run}"}, "names two models 'run'"),
    ):
        with pytest.raises(UserError, match=words):
            command(**named | changes)
    with pytest.raises(NotFoundError):
        command(**named | {"compare": tmp_path / "absent"})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def filling(tmp_path_factory):
    """A run that fills holes of digits, with held-out records and without a data generator."""
    directory = tmp_path_factory.mktemp("filling") / "run"
    save_filling(directory, examples=8, held_out_examples=12)
    encode(read(directory), directory)
    return directory


@pytest.fixture(scope="module")
def editing(tmp_path_factory):
    """The same of a run that edits scenes."""
    directory = tmp_path_factory.mktemp("editing") / "run"
    save_editing(directory, examples=8, held_out_examples=8)
    encode(read(directory), directory)
    return directory


def image(file):
    with Image.open(file) as opened:
        return np.asarray(opened)


def rows(data):
    """Source and picture of the first contender, by prompt and seed."""
    made = data["contenders"][0]["pictures"]
    found = zip(data["samples"], data["sources"], made, strict=True)
    return {tuple(sample.values()): pair for sample, *pair in found}


def test_models_that_fill_holes_are_given_those_of_held_out_records(
    filling, tmp_path, tmp_path_factory
):
    page, options = tmp_path / "page", dict(steps=1, teacher_steps=0, num=2, batch_size=4)
    with keeping_programs(tmp_path_factory.mktemp("kept")):
        command(compare=filling, page=page, **options)
        given = page / "given"
        data = json.loads((page / "arena.json").read_text(encoding="utf-8"))
        prompts = [sample["prompt"] for sample in data["samples"][::2]]
        # What stands in the page's folder is what `sample` takes, and makes the same of.
        made, _ = draw(
            tmp_path / "sampled", *(f"--prompt={prompt}" for prompt in prompts),
            checkpoint=filling, image=given / "images", mask=given / "masks", steps=1, num=2,
            batch_size=4,
        )  # fmt: skip
        for sheet in (tmp_path / "sampled").glob("grid*"):
            sheet.unlink()
        command(compare=f"{filling},{tmp_path / 'sampled'}", page=tmp_path / "both", **options)
    held = first_subjects(shards_of(read(filling), filling, "held_out"), Bucket(8, 8), 24)
    assert prompts == held.prompts.tolist() and len(set(prompts)) == len(prompts) > 3
    assert len(data["sources"]) == len(data["samples"]) == 2 * len(prompts)
    for place, sample in enumerate(data["samples"]):
        mask, masked = np.split(held.cond[CHANNELS][place // 2], [1], axis=-1)
        hole = enlarged(mask[..., 0] > 0, 8)
        source = image(page / "pictures" / data["sources"][place][0])
        np.testing.assert_array_equal(source[..., 3] == 0, hole)
        np.testing.assert_array_equal(source[~hole, 0], enlarged(to_bytes(masked), 8)[~hole, 0])
        assert not source[hole].any()
        (contender,) = data["contenders"]
        shown = image(page / "pictures" / contender["pictures"][place][0])
        np.testing.assert_array_equal(shown[~hole], source[~hole, 0])
        np.testing.assert_array_equal(shown, made[sample["prompt"], sample["seed"]])
    # A folder of the same pictures stands beside it, and shares the files of the run's.
    both = json.loads((tmp_path / "both" / "arena.json").read_text(encoding="utf-8"))
    assert rows(both) == rows(data)
    run, other = (contender["pictures"] for contender in both["contenders"])
    assert run == other


def test_models_that_edit_are_given_the_sources_of_held_out_records(editing, tmp_path):
    config, shards = read(editing), shards_of(read(editing), editing, "held_out")
    (bucket,) = shards.buckets
    held = first_subjects(shards, bucket, 24)
    wanted = held.prompts[[2, 0]].tolist()
    (tmp_path / "prompts.txt").write_text("\n".join(wanted))
    command(
        compare=editing, page=tmp_path / "page", steps=1, teacher_steps=0,
        prompts=tmp_path / "prompts.txt",
    )  # fmt: skip
    data = json.loads((tmp_path / "page" / "arena.json").read_text(encoding="utf-8"))
    assert [sample["prompt"] for sample in data["samples"]] == wanted
    for source, place in zip(data["sources"], (2, 0), strict=True):
        found = image(tmp_path / "page" / "pictures" / source[0])
        np.testing.assert_array_equal(found, enlarged(to_bytes(held.cond[CHANNELS][place]), 8))
    assert not (tmp_path / "page" / "given" / "masks").exists()
    # Where a latent pixel is several of the picture's, so are those of what is written.
    decoding = dataclasses.replace(
        of_pixels(3), pixels=8, pixels_of=lambda latents: enlarged(latents, 8)
    )
    records = given_records(config, shards, bucket, decoding, 1, 8)
    ((file, mask),) = write_given(tmp_path / "given", records)
    np.testing.assert_array_equal(image(file), records[0].shown)
    assert mask is None and image(file).shape == (192, 192, 3)


def test_a_record_whose_hole_a_model_cuts_off_is_left_out_and_named(filling, tmp_path, caplog):
    wide = save_filling(tmp_path / "wide", buckets=("2x8",))
    mesh = make_mesh({}, jax.devices()[:1])
    models = [open_networks(str(run), Asked(teacher_steps=0), mesh) for run in (filling, wide)]
    held = first_subjects(shards_of(read(filling), filling, "held_out"), Bucket(8, 8), 24)
    # Of eight rows it keeps the two in the middle.
    seen = [held.cond[CHANNELS][i, 3:5, :, 0].any() for i in range(len(held.prompts))]
    assert 0 < sum(seen) < len(seen)
    cut = [str(prompt) for prompt, kept in zip(held.prompts, seen, strict=True) if not kept]
    found, _ = prompts_of(models, None)
    assert found == [str(prompt) for prompt in held.prompts if str(prompt) not in cut]
    told = [record.getMessage() for record in caplog.records if "leaving out" in record.message]
    assert len(told) == len(cut) and all("of bucket 2x8 of" in line for line in told)
    with pytest.raises(
        UserError, match="the holes of all .* are outside of the crop of some model's bucket: "
    ):
        prompts_of(models, cut)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A tiny released pipeline, whose latent pixels are 2 of a picture's, and a folder of edits."""
    directory = tmp_path_factory.mktemp("autoencoder")
    save_pipeline(directory / "pipeline", latent_channels=4, qk_norm=True)
    (directory / "edits").mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(6):
        names = (f"{i}_before.png", f"{i}_after.png")
        for name in names:
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(directory / "edits" / name)
        lines.append(
            {"file_name": names[1], "source_file_name": names[0], "text": f"a red cat {i}",
             "held_out": i < 2}
        )  # fmt: skip
    (directory / "edits" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory


@pytest.mark.parametrize("module", [sd3_inpaint, sd3_edit], ids=lambda module: module.__name__)
def test_pictures_of_an_autoencoder_are_given_decoded_and_encoded_again(
    module, autoencoder, tmp_path
):
    config = module.get_config(
        f"size=tiny,weights={autoencoder / 'pipeline'},data={autoencoder / 'edits'},resolution=128"
    )
    config.data.update(dict(buckets=("8x8",), text_length=77 + 8, text_batch_size=8))
    config.model.update(dict(dtype="float32", remat="none"))
    config.heads.update(dict(channels=8, groups=2, projection=8))
    config.pretrain.batch_size = config.distil.batch_size = 2
    read_architectures(config)
    run, page = tmp_path / "run", tmp_path / "page"
    save_student(typed(config), run)
    encode(read(run), run)
    command(compare=run, page=page, steps=1, teacher_steps=0, batch_size=2)
    data = json.loads((page / "arena.json").read_text(encoding="utf-8"))
    assert sorted(prompt for prompt, _ in rows(data)) == ["a red cat 0", "a red cat 1"]
    (record,) = given_records(
        read(run), shards_of(read(run), run, "held_out"), Bucket(8, 8),
        pictures_of_run(read(run), family("sd3")), 1, 8,
    )  # fmt: skip
    source, made = (image(page / "pictures" / file) for file, *_ in rows(data)[record.prompt, 0])
    assert made.shape == (16, 16, 3) and np.std(made) > 1
    np.testing.assert_array_equal(source, record.shown)
    np.testing.assert_array_equal(
        image(page / "given" / "images" / "0000.png"), to_bytes(record.pixels)
    )
    hole = np.ones((16, 16), bool) if record.mask is None else record.mask
    np.testing.assert_array_equal(made[~hole], to_bytes(record.pixels)[~hole])
    assert (made != to_bytes(record.pixels))[hole].any(axis=-1).mean() > 0.9


def test_models_that_are_given_different_things_or_nothing_are_told(
    models, filling, editing, tmp_path
):
    alone = save_filling(tmp_path / "alone")
    (tmp_path / "prompts.txt").write_text("a red cat")
    for changes, words in (
        ({"compare": f"{filling},also={models / 'run'}"},
         "is given a mask and a masked picture and .* prompts alone: compare models that are giv"),
        ({"compare": f"{filling},also={editing}"}, "picture and .* the picture that is edited: co"),
        ({"compare": alone}, "no run in the comparison has held-out records of 8x8 to take these"),
        ({"compare": filling, "prompts": tmp_path / "prompts.txt"},
         "none of the first 1024 held-out records of .* has the prompt 'a red cat'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            command(page=tmp_path / "page", teacher_steps=0, **changes)
    assert not (tmp_path / "page").exists()


def test_words_behind_the_flags_of_several_values_are_values():
    def given(text):
        return evaluate.complete(["evaluate", *text.split()])[1:]

    wanted = ["--votes=a.json", "--votes=b.json", "--out=x"]
    for text in ("--votes a.json b.json --out=x", "--votes=a.json b.json --out=x"):
        assert given(text) == wanted
    assert given("--compare a,b --page p") == ["--compare=a,b", "--page", "p"]
    assert given("--page=p --compare") == ["--page=p", "--compare"]
    assert evaluate.command_of(["--compare=a", "--page=b"]) == "compare"
    with pytest.raises(UserError, match="--metrics is a flag of --samples and not of --votes"):
        given("--votes=a --metrics=fd")
    with pytest.raises(UserError, match="--page is a flag of --compare and --votes: give that"):
        given("--page=p")


def test_votes_are_scored_into_a_table_and_json(tmp_path, capsys):
    folder(tmp_path / "a", PROMPTS)
    folder(tmp_path / "b", PROMPTS[::-1])
    page = tmp_path / "page"
    command(compare=f"{tmp_path / 'a'},{tmp_path / 'b'}", page=page)
    data = json.loads((page / "arena.json").read_text(encoding="utf-8"))
    vote = {"seed": 0, "left": "a", "right": "b", "choice": "left", "time": "2026-01-01"}
    votes = {"format": "ladd_jax votes", "page": data["id"], "models": ["a", "b"]}
    for voter in ("v", "w"):
        votes |= {"voter": voter, "votes": [vote | {"prompt": prompt} for prompt in PROMPTS]}
        (tmp_path / f"{voter}.json").write_text(json.dumps(votes))
    command(votes=f"{tmp_path}/v.json,{tmp_path}/w.json", page=page, out=tmp_path / "elo.json")
    out = capsys.readouterr().out
    assert "4 votes of 2 voters" in out and "100.0%" in out
    scores = json.loads((tmp_path / "elo.json").read_text())
    assert [row["model"] for row in scores["models"]] == ["a", "b"]
    command(votes=f"{tmp_path}/?.json")
    assert "4 votes of 2 voters" in capsys.readouterr().out
