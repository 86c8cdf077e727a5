"""From released weights and prompts to a student, by the command of `configs/sd3_turbo.py`."""

import io
import json
import shutil
import tarfile
from collections import Counter

import diffusers_mmdit as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pipelines import save_pipeline
from sklearn.datasets import load_sample_images
from untrained_run import save_student

from configs import sd3_turbo
from configs import small as from_scratch
from ladd_jax.cli.preflight import check
from ladd_jax.config import objectives
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import decode_image, fit
from ladd_jax.data.shards import Shards
from ladd_jax.data.sources import images, open_source
from ladd_jax.errors import UserError
from ladd_jax.evaluation.extractors import own
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.evaluate import evaluate
from ladd_jax.stages.load import load_generator, load_teacher
from ladd_jax.stages.previews import Previews, show_latents
from ladd_jax.stages.sets import encoded, held_out, synthesized
from ladd_jax.stages.students import load_student
from ladd_jax.stages.synthesize import synthesize
from ladd_jax.weights import load_autoencoder, load_mmdit

PROMPTS = ["a red cat", "seven cats", "", "the sea over there", "on and on"]


def tiny(weights, data, **changes):
    """The config of the command line, made small."""
    config = sd3_turbo.get_config(f"size=tiny,weights={weights},data={data},resolution=128,steps=2")
    read_architectures(config)
    config.data.update(dict(buckets=("8x8", "4x16"), text_length=77 + 8, text_batch_size=8))
    config.synthesize.update(dict(steps=2, batch_size=8, records_per_shard=4))
    config.distil.update(dict(batch_size=8))
    config.heads.update(dict(channels=8, groups=2, projection=8))
    config.model.update(dict(dtype="float32", teacher_dtype="float32", remat="none"))
    config.log.update(dict(every=1, samples_every=0))
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline") / "sd3"
    save_pipeline(directory, qk_norm=True, dual_attention=(0,))
    return directory


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("".join(f"{text} {i}\n" for i in range(12) for text in PROMPTS if text))
    return path


@pytest.fixture(scope="module")
def run(pipeline, prompts, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = tiny(pipeline, prompts)
    check(typed(config))
    encode(typed(config), workdir)
    synthesize(typed(config), workdir)
    return config, workdir


def test_the_architecture_is_that_of_the_weights(pipeline):
    config = tiny(pipeline, "")
    assert (config.model.depth, config.model.qk_norm) == (2, True)
    assert tuple(config.model.dual_attention) == (0,)
    assert (config.data.text_width, config.data.pooled_width) == (32, 20)


def test_every_prompt_has_one_record_in_one_bucket_and_one_sample(run, prompts):
    _, workdir = run
    text, made = Shards(encoded(workdir)), Shards(synthesized(workdir))
    assert not text.has_latents and made.has_latents
    assert text.sizes == made.sizes and len(text.sizes) == 2
    found = []
    for bucket, size in made.sizes.items():
        sources, samples = (shards.read(bucket, np.arange(size)) for shards in (text, made))
        assert sources["prompt"] == samples["prompt"]
        np.testing.assert_array_equal(sources["cond"]["context"], samples["cond"]["context"])
        assert samples["latents"].shape == (size, bucket.height, bucket.width, 16)
        found += samples["prompt"]
    assert sorted(found) == sorted(prompts.read_text().splitlines())


def test_a_second_encoding_reads_nothing_and_writes_nothing(run):
    config, workdir = run
    files = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    moved = config.copy_and_resolve_references()
    moved.data.path = "gone.txt"
    encode(typed(moved), workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == files


@pytest.mark.slow
def test_several_processes_write_what_one_writes(run, tmp_path, monkeypatch):
    config, workdir = run
    (tmp_path / "encoded").symlink_to(encoded(workdir))
    # Two of three processes, then one alone that finds their shards and writes the rest.
    for index in (2, 0):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: 3)
            patch.setattr(jax, "process_index", lambda index=index: index)
            patch.setattr("ladd_jax.stages.synthesize.process_mesh", make_mesh)
            patch.setattr("ladd_jax.stages.synthesize.as_process_0", lambda value: value)
            patch.setattr("ladd_jax.stages.changes.barrier", lambda *_: None)
            patch.setattr("ladd_jax.stages.synthesize.finalize_together", lambda *_: None)
            synthesize(typed(config), tmp_path)
    written = len(list(synthesized(tmp_path).rglob("*array_record*")))
    synthesize(typed(config), tmp_path)
    every = len(list(synthesized(tmp_path).rglob("*array_record*")))
    assert 0 < written < every
    together, alone = (Shards(synthesized(path)) for path in (tmp_path, workdir))
    assert together.sizes == alone.sizes
    for bucket, size in together.sizes.items():
        ours, theirs = (s.read(bucket, np.arange(size)) for s in (together, alone))
        assert ours["key"] == theirs["key"]
        np.testing.assert_allclose(ours["latents"], theirs["latents"], atol=1e-5)


def test_previews_are_in_colours_and_decoded_if_asked(run, caplog):
    config, workdir = run
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 16)).astype(np.float32)
    quick, decoded = (show_latents(typed(config), decode)(latents) for decode in (False, True))
    # The tiny autoencoder reduces by 2.
    assert quick.shape == (2, 8, 8, 3) and decoded.shape == (2, 16, 16, 3)
    assert np.isfinite(decoded).all()
    shards = Shards(synthesized(workdir))
    with caplog.at_level("INFO"):
        Previews(typed(config), workdir, shards, None, make_mesh(config.mesh))
    assert "no quick metrics of previews, since their latents are not pictures" in caplog.text


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Real photographs in two shapes, one of them with the sides swapped by EXIF."""
    directory = tmp_path_factory.mktemp("photographs")
    lines = []
    for i, photo in enumerate(load_sample_images().images):
        for j in range(15):
            crop = Image.fromarray(photo[30 * j :, 30 * j :])
            shape, exif = ((60, 60), None) if j % 5 in (1, 3) else ((120, 30), None)
            if j % 5 == 4:
                crop, exif = crop.rotate(90, expand=True), Image.Exif()
                shape, exif[0x0112] = (30, 120), 6
            name = f"{i}_{j}.png"
            crop.resize(shape).save(directory / name, **({"exif": exif} if exif else {}))
            lines.append(json.dumps({"file_name": name, "text": f"photograph {i} {j}"}))
    (directory / "metadata.jsonl").write_text("\n".join(lines))
    return directory


@pytest.fixture(scope="module")
def seen(pipeline, photographs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("seen")
    config = tiny(pipeline, photographs, stages=("encode", "distil"))
    config.distil.data = "encoded"
    config.data.held_out = 0.2
    check(typed(config))
    with pytest.MonkeyPatch.context() as patch:
        # There are few photographs.
        patch.setattr(images, "LEAST", 2)
        encode(typed(config), workdir)
    return config, workdir


def records_of(shards):
    """The records of a set of shards, by prompt."""
    found = {}
    for bucket, size in shards.sizes.items():
        read = shards.read(bucket, np.arange(size))
        for i, prompt in enumerate(read["prompt"]):
            cond = {name: array[i] for name, array in read["cond"].items()}
            found[prompt] = (bucket.name, read["latents"][i], cond)
    return found


def test_photographs_become_latents_of_the_nearest_bucket(pipeline, photographs, seen):
    config, workdir = seen
    assert config.data.source == "images" and config.distil.distillation_weight == 2.5
    parts = [records_of(Shards(place(workdir))) for place in (encoded, held_out)]
    assert not parts[0].keys() & parts[1].keys() and 0 < len(parts[1]) < 10
    records = parts[0] | parts[1]
    # Three of five are four times as wide as high, as they are meant to be looked at.
    assert Counter(bucket for bucket, _, _ in records.values()) == {"4x16": 18, "8x8": 12}
    autoencoder, params = load_autoencoder(pipeline, jnp.float32)
    for prompt, (bucket, latents, cond) in records.items():
        name = "_".join(prompt.split()[1:]) + ".png"
        image = decode_image((photographs / name).read_bytes())
        pixels = fit(image, *Bucket.parse(bucket).image_size(autoencoder.config.reduction))
        mean, _ = autoencoder.moments(params, pixels[None])
        np.testing.assert_allclose(latents, (mean[0] - 0.0609) * 1.5305, atol=2e-4)
        assert np.abs(cond["context"]).max() > 0


def test_an_autoencoder_makes_the_latents_of_a_network_from_scratch(
    pipeline, photographs, tmp_path
):
    def source(channels):
        arguments = f"data={photographs},resolution=32,channels={channels},autoencoder={pipeline}"
        config = from_scratch.get_config(arguments)
        config.data.held_out = 0.0
        config.pretrain.batch_size = 4
        # For autoencoders that reduce by 8; the tiny one reduces by 2.
        config.model.position_table *= 4
        return open_source(typed(config), [], tmp_path)

    found = source(16)
    assert {bucket.name for bucket in found.prompts} == {"16x16", "12x22"}
    assert found.read(Bucket(12, 22), 0, 9)["latents"].shape == (9, 12, 22, 16)
    with pytest.raises(UserError, match="latents of 16 channels and model.channels is 3: set it"):
        source(3)


@pytest.mark.slow
def test_a_student_learns_from_photographs_without_samples_of_the_teacher(seen):
    config, workdir = seen
    distil(typed(config), workdir)
    assert int(load_student(typed(config), workdir, make_mesh(config.mesh)).step) == 2


def test_too_many_unreadable_images_are_an_error_and_leave_no_shards(
    pipeline, photographs, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(photographs, broken)
    (broken / "1_2.png").write_bytes(b"")
    config = tiny(pipeline, broken)
    with pytest.raises(ValueError, match=r"1 of 30 records cannot be read.*1_2.png"):
        encode(typed(config), tmp_path / "run")
    assert (tmp_path / "run" / "unreadable.jsonl").exists()
    assert not list((tmp_path / "run").rglob("*array_record*"))


def pixels_of(colour, shape=(16, 16)):
    return np.broadcast_to(np.float32(colour) / 127.5 - 1, (*shape, 3))


@pytest.mark.slow
def test_tars_of_images_of_every_kind_become_latents_and_the_unreadable_one_is_listed(
    pipeline, tmp_path
):
    turned = Image.new("RGB", (16, 64), (10, 200, 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.full((16, 16), 40_000, np.uint16))
    special = {
        "alpha": (Image.new("RGBA", (16, 16), (9, 9, 9, 0)), {}, (255, 255, 255), (16, 16)),
        "deep": (deep, {}, (156, 156, 156), (16, 16)),
        "ink": (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), {}, (254, 0, 0), (16, 16)),
        "turned": (turned, {"exif": exif}, (10, 200, 90), (16, 64)),
    }
    folder = tmp_path / "tars"
    folder.mkdir()
    for part in range(2):
        with tarfile.open(folder / f"{part}.tar", "w") as tar:

            def put(name, data, tar=tar):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

            names = [f"plain {i}" for i in range(45 + part)]
            for name in names + [list(special), ["nothing"]][part]:
                image, options = special.get(name, (Image.new("RGB", (20, 18), "blue"), {}))[:2]
                kind = "JPEG" if name == "ink" else "PNG"
                file = io.BytesIO()
                image.save(file, kind, **options)
                put(f"{name}.{kind.lower()}", b"" if name == "nothing" else file.getvalue())
                put(f"{name}.json", json.dumps({"caption": f"{name} in {part}"}).encode())
    config = tiny(pipeline, folder)
    assert config.data.source == "images"
    config.data.update(dict(column="caption", held_out=0.0))
    config.distil.batch_size = 1  # A bucket of one picture is kept.
    # 1 of 96 would be more than 1 %.
    with pytest.raises(ValueError, match="1 of 96 records cannot be read"):
        encode(typed(config), tmp_path / "run")
    with tarfile.open(folder / "2.tar", "w") as tar:
        file = io.BytesIO()
        Image.new("RGB", (9, 9)).save(file, "PNG")
        for i in range(4):
            put(f"more {i}.png", file.getvalue(), tar)
            put(f"more {i}.json", b'{"caption": "more"}', tar)
    encode(typed(config), tmp_path / "run")
    (line,) = (tmp_path / "run/unreadable.jsonl").read_text().splitlines()
    assert json.loads(line) == {"key": "1/nothing", "reason": "the image has no bytes"}
    shards = Shards(encoded(tmp_path / "run"))
    assert {bucket.name: size for bucket, size in shards.sizes.items()} == {"4x16": 1, "8x8": 98}
    autoencoder, params = load_autoencoder(pipeline, jnp.float32)
    latents = {}
    for bucket, size in shards.sizes.items():
        read = shards.read(bucket, np.arange(size))
        latents |= dict(zip(read["prompt"], read["latents"], strict=True))
    for name, (_, _, colour, shape) in special.items():
        bucket_shape = (8, 32) if shape[1] > shape[0] else (16, 16)
        expected = autoencoder.encode(params, pixels_of(colour, bucket_shape)[None])[0]
        # Lossy colours are within three steps of 255; other colours give other latents.
        np.testing.assert_allclose(latents[f"{name} in 0"], expected, atol=0.05, err_msg=name)
        other = autoencoder.encode(params, pixels_of((90, 40, 130), bucket_shape)[None])[0]
        assert np.max(np.abs(expected - other)) > 0.2


@pytest.mark.slow
def test_the_student_starts_from_the_weights_and_learns(run):
    config, workdir = run
    distil(typed(config), workdir)
    mesh = make_mesh(config.mesh)
    teacher = load_generator(typed(config), workdir, mesh)
    state = load_student(typed(config), workdir, mesh)
    assert int(state.step) == 2
    difference = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, teacher)
    largest = max(jax.tree.leaves(difference))
    # Two updates of Adam from the teacher's parameters.
    assert 0 < largest < 10 * config.distil.optimizer.learning_rate


@pytest.mark.slow
def test_a_student_of_a_pipeline_is_judged_on_other_prompts_by_decoded_pictures(
    run, tmp_path, monkeypatch
):
    config, workdir = run
    config = config.copy_and_resolve_references()
    config.stages = ("distil", "evaluate")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    config.evaluate.update(
        dict(prompts=str(tmp_path / "prompts.txt"), extractor="own", samples=4, per_prompt=2,
             batch_size=8, resamples=2, student_steps=(1,), teacher_steps=(2,))
    )  # fmt: skip
    check(typed(config))
    for place in (encoded, synthesized):
        place(tmp_path).symlink_to(place(workdir))
    save_student(typed(config), tmp_path)

    class Means:
        def look(self, images, prompts):
            # The autoencoder reduces by 2.
            assert images.shape[1:] in ((16, 16, 3), (8, 32, 3))
            return images.mean((1, 2))[:, None].astype(np.float64), np.ones(len(prompts))

    def train(training, seed):
        images, prompts = training[Bucket(8, 8)]
        assert len(images) == len(prompts) > 10 and np.ptp(images) > 0
        return Means()

    monkeypatch.setattr(own, "train_encoder", train)
    rows = evaluate(typed(config), tmp_path)
    models = {(row.model, row.bucket) for row in rows}
    assert models == {
        (model, bucket)
        for model in ("generator", "teacher", "untrained", "student")
        for bucket in ("all", "8x8", "4x16")
    }
    assert all({*row.values} == {*config.evaluate.metrics} - {"fd_real"} for row in rows)
    assert "by the autoencoder" in (tmp_path / "report.html").read_text()
    assert evaluate(typed(config), tmp_path) == rows


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Another pipeline's transformer, for the same latents and text."""
    theirs = reference.transformer(
        depth=3, heads=3, head_width=8, in_channels=16, out_channels=16, context_width=32,
        pooled_width=20, table=8,
    )  # fmt: skip
    return reference.save(theirs, tmp_path_factory.mktemp("small") / "transformer")


@pytest.mark.slow
def test_the_student_is_judged_by_another_pipeline_than_it_starts_from(run, small, tmp_path):
    config, workdir = run
    given = f"size=tiny,weights={config.weights},teacher={small},resolution=128"
    other = sd3_turbo.get_config(given)
    read_architectures(other)
    other = other.teacher
    assert (other.depth, other.width, other.num_heads, other.qk_norm) == (3, 24, 3, False)
    config = config.copy_and_resolve_references()
    config.teacher.update(other)
    config.distil.update(dict(steps=1, hooked_blocks=(0, 1)))
    config.distil.optimizer.update(dict(learning_rate=1e-6, warmup_steps=0))
    check(typed(config))
    for place in (encoded, synthesized):
        place(tmp_path).symlink_to(place(workdir))
    distil(typed(config), tmp_path)

    mesh = make_mesh(config.mesh)
    state = load_student(typed(config), tmp_path, mesh)
    start = load_generator(typed(config), tmp_path, mesh)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, start)
    assert 0 < max(jax.tree.leaves(moved)) < 1e-5
    assert state.heads["heads"]["entry"]["convolution"]["kernel"].shape[:4] == (2, 1, 1, 24)
    frozen = load_teacher(typed(config), tmp_path, mesh)
    assert frozen["blocks_0"]["image"]["qkv"]["kernel"].shape == (2, 24, 3, 3, 8)
    theirs = load_mmdit(small, jnp.float32).params
    np.testing.assert_array_equal(
        frozen["blocks_0"]["image"]["qkv"]["kernel"], theirs["blocks_0"]["image"]["qkv"]["kernel"]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(in_channels=4, out_channels=4), "4 channels of latents and the student 16"),
        (dict(context_width=8), "8 features of text tokens and the student 32"),
        (dict(pooled_width=9), "9 features of the text vector and the student 20"),
    ],
)
def test_a_teacher_of_other_latents_or_text_is_refused(pipeline, tmp_path, changes, words):
    fields = dict(in_channels=16, out_channels=16, context_width=32, pooled_width=20) | changes
    folder = reference.save(reference.transformer(**fields), tmp_path / "other")
    config = sd3_turbo.get_config(f"size=tiny,weights={pipeline},teacher={folder}")
    with pytest.raises(UserError, match=words):
        read_architectures(config)


def test_a_teacher_in_bfloat16_leaves_the_student_in_float32(pipeline):
    config = tiny(pipeline, "")
    config.model.teacher_dtype = "bfloat16"
    objective = objectives.ladd(typed(config))
    teacher = load_generator(typed(config), None, make_mesh(config.mesh))
    assert {leaf.dtype for leaf in jax.tree.leaves(teacher)} == {jnp.dtype(jnp.bfloat16)}
    state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), teacher)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("size=huge", "is not one of tiny, medium"),
        ("size=tiny", "give weights=DIR too"),
        ("sise=medium", "did you mean size"),
        ("steps=many", "steps is 'many'"),
        ("resolution=1000", "multiple of 64"),
    ],
)
def test_a_bad_argument_of_the_config_is_named(arguments, words):
    with pytest.raises(UserError, match=words):
        sd3_turbo.get_config(arguments)


def test_what_is_missing_is_named_with_the_command_that_makes_it(pipeline):
    with pytest.raises(UserError, match="weights is empty.*weights=DIR.*`hf download"):
        check(typed(sd3_turbo.get_config("data=prompts.txt")))
    with pytest.raises(UserError, match="data.path is empty.*--images=DIR$"):
        check(typed(tiny(pipeline, "")))


def test_missing_shards_are_named_with_the_command_that_makes_them(pipeline, tmp_path):
    config = tiny(pipeline, "prompts.txt")
    with pytest.raises(FileNotFoundError, match=r"encoded: run .*`python -m ladd_jax\.encode`"):
        synthesize(typed(config), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"synthesized: .*`python -m ladd_jax\.synthesize`"):
        distil(typed(config), tmp_path)


def test_prompts_are_spread_over_the_buckets_by_their_weights(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"cat {i}\n" for i in range(2000)))
    config = sd3_turbo.get_config(f"data={path},resolution=128")
    wide, square, tall = (Bucket.parse(name) for name in ("4x16", "8x8", "16x4"))
    config.data.buckets = tuple(bucket.name for bucket in (wide, square, tall))
    config.data.bucket_weights = (3.0, 0.0, 1.0)
    raw = open_source(typed(config), [wide, square, tall], tmp_path)
    assert set(raw.prompts) == {wide, tall}
    assert 0.7 < len(raw.prompts[wide]) / 2000 < 0.8
    assert len({*raw.prompts[wide], *raw.prompts[tall]}) == 2000
    # More prompts at the end leave the others where they are.
    path.write_text(path.read_text() + "a dog\n")
    longer = open_source(typed(config), [wide, square, tall], tmp_path)
    assert longer.prompts[wide][: len(raw.prompts[wide])] == list(raw.prompts[wide])


def test_weights_of_another_architecture_than_the_config_are_refused(pipeline, tmp_path):
    other = tmp_path / "other"
    save_pipeline(other, depth=3)
    config = tiny(pipeline, "")
    config.weights = str(other)
    with pytest.raises(UserError, match="depth is 3 in the weights and 2 in the config"):
        load_generator(typed(config), tmp_path, make_mesh(config.mesh))


def test_the_known_sizes_are_those_of_the_released_models():
    # Numbers in the released transformers, in billions; their position tables count.
    for size, billions in (("medium", 2.08), ("medium3.5", 2.47), ("large", 8.06)):
        config = sd3_turbo.get_config(f"size={size}")
        shapes = objectives.ladd(typed(config)).student.shapes
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        count += config.model.position_table**2 * config.model.width
        assert count / 1e9 == pytest.approx(billions, rel=0.02)
        assert 3 <= len(config.data.buckets) <= 8 and "128x128" in config.data.buckets
