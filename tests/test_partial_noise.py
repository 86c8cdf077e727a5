"""Samples that start from a picture with noise (SDEdit)."""

import re

import jax
import jax.numpy as jnp
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
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import decode_image, fit, to_bytes
from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.diffusion.samplers import sample_noise
from ladd_jax.diffusion.sampling import Sampler, Sampling, generator_samplers, seeds
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.export import export
from ladd_jax.stages.starts import find_starts, pair
from ladd_jax.stages.trained import open_trained

TIMES = (1.0, 0.75, 0.5, 0.25)
NULL = {"pooled": np.zeros(1, np.float32)}
KEYS = seeds(3, np.arange(3))
COND = {"pooled": np.arange(3, dtype=np.float32)[:, None]}
SHAPE = (4, 6, 2)
WAYS = [Sampling.generator(8, 2.0, 3.0, sampler) for sampler in generator_samplers()]
WAYS.append(Sampling.student(4, TIMES))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    return save_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def sd3_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sd3")
    save_pipeline(directory / "pipeline", qk_norm=True)
    save_student(typed(tiny(directory / "pipeline", "")), directory / "run")
    return directory / "run"


@pytest.fixture(autouse=True)
def programs_are_kept_for_one_test(tmp_path_factory):
    with keeping_programs(tmp_path_factory.mktemp("kept")):
        yield


@pytest.fixture
def picture(tmp_path):
    """A file with colours and edges, wider than high."""
    rows = np.random.default_rng(0).integers(0, 256, (10, 17, 3), np.uint8)
    file = tmp_path / "start.png"
    Image.fromarray(rows.repeat(7, 0).repeat(7, 1)).save(file)
    return file


def model(params, x, t, cond):
    return params * x + cond["pooled"][:, :1, None, None] * t[:, None, None, None]


def sampler():
    return Sampler(model, NULL, make_mesh({"data": 1}, jax.devices()[:1]), 2)


def start():
    return np.random.default_rng(1).standard_normal((3, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.sampler)
def test_all_of_the_noise_leaves_nothing_of_the_picture_and_none_leaves_all_of_it(way):
    args = (jnp.asarray(0.3), KEYS, COND, SHAPE)
    samples = sampler()
    x_0 = start()
    whole = samples(*args, way.starting(1.0), x_0=x_0)
    np.testing.assert_array_equal(whole, samples(*args, way))
    assert way.starting(1.0) == way
    nearly = samples(*args, way.starting(1e-5), x_0=x_0)
    np.testing.assert_allclose(nearly, x_0, atol=1e-3)
    half = samples(*args, way.starting(0.5), x_0=x_0)
    assert np.max(np.abs(half - whole)) > 0.1 and np.max(np.abs(half - x_0)) > 0.1


def test_a_student_takes_its_steps_from_the_picture_noised_to_the_first():
    x_0 = start()
    way = Sampling.student(4, TIMES).starting(0.5)
    assert way.sigmas == (0.5, 0.25, 0.0)
    found = sampler()(jnp.asarray(0.3), KEYS, COND, SHAPE, way, x_0=x_0)
    x = interpolate(x_0, sample_noise(KEYS, 0, SHAPE), jnp.full(3, 0.5))
    for number, (t, after) in enumerate([(0.5, 0.25), (0.25, 0.0)], 1):
        t = jnp.full(3, t)
        x = predict_x0(x, model(0.3, x, t, COND), t)
        x = interpolate(x, sample_noise(KEYS, number, SHAPE), jnp.full(3, after))
    np.testing.assert_allclose(found, x, atol=1e-6)


def test_a_student_starts_at_its_next_time_below_and_a_generator_where_it_is_told(digits_run):
    trained = open_trained(str(digits_run), None, None, None, make_mesh({}, jax.devices()[:1]))
    for strength, steps, sigmas in (
        (1.0, None, (1.0, 0.75, 0.5, 0.25, 0.0)), (0.8, None, (0.75, 0.5, 0.25, 0.0)),
        (0.75, 2, (0.75, 0.5, 0.0)), (0.6, 1, (0.5, 0.0)), (0.25, 4, (0.25, 0.0)),
    ):  # fmt: skip
        assert trained.sampling(steps, None, None, strength).sigmas == sigmas
    with pytest.raises(ValueError, match="strength is 0.2 and .* no step is left: use 0.25 or mo"):
        trained.sampling(None, None, None, 0.2)
    assert Sampling.generator(4, 2.0, 1.0).starting(0.6).sigmas == (0.6, 0.5, 0.25, 0.0)


def test_a_sample_of_all_noise_is_that_without_a_picture_and_its_file_says_which(
    digits_run, picture, tmp_path, caplog
):
    options = dict(checkpoint=digits_run, prompt="seven", aspect="2:1", num=2, seed=3)
    plain, _ = draw(tmp_path / "plain", **options)
    full, _ = draw(tmp_path / "full", **options, image=picture, strength=1)
    for key, image in plain.items():
        np.testing.assert_array_equal(pixels(image), pixels(full[key]))
    with caplog.at_level("INFO", "ladd_jax.sample"):
        half, _ = draw(tmp_path / "half", **options, image=picture, strength=0.7)
    assert "strength 0.7, starting at the student's time 0.5" in caplog.text
    text = half["seven", 3].text
    assert (text["sigmas"], text["steps"]) == ("0.5, 0.25, 0", "2")
    assert text["image"].startswith("start.png ") and "image" not in plain["seven", 3].text
    assert np.any(pixels(half["seven", 3]) != pixels(half["seven", 4]))


def test_pictures_of_any_kind_fill_the_bucket_that_was_asked_for(digits_run, picture):
    trained = open_trained(str(digits_run), None, None, None, make_mesh({}, jax.devices()[:1]))
    data = picture.read_bytes()
    latent = trained.pictures.encode(decode_image(data), Bucket(8, 16))
    assert latent.shape == (8, 16, 1) and np.std(latent) > 0.1
    np.testing.assert_array_equal(latent, fit(decode_image(data), 8, 16, 1))
    shown = trained.pictures.decode(latent)
    np.testing.assert_array_equal(shown[::8, ::8], latent)


def test_latents_of_an_autoencoder_start_from_what_it_makes_of_the_picture(
    sd3_run, picture, tmp_path
):
    trained = open_trained(str(sd3_run), None, None, None, make_mesh({}, jax.devices()[:1]))
    bucket = trained.buckets[0]
    kind, place = trained.family, str(sd3_run.parent / "pipeline")
    autoencoder, params = kind.load_autoencoder(place, jnp.float32)
    pixels_in = fit(decode_image(picture.read_bytes()), *bucket.image_size(trained.reduction))
    expected = autoencoder.encode(params, pixels_in[None])[0]
    found = trained.pictures.encode(decode_image(picture.read_bytes()), bucket)
    assert found.shape == (bucket.height, bucket.width, 16)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Of a data generator next to no noise gives what the autoencoder does alone.
    options = dict(checkpoint=sd3_run, prompt="seven", num=1, model="generator", steps=2)
    pictures, _ = draw(tmp_path / "out", **options, image=picture, strength=1e-4, aspect="1:1")
    square = next(bucket for bucket in trained.buckets if bucket.height == bucket.width)
    alone = trained.pictures.decode(trained.pictures.encode(
        decode_image(picture.read_bytes()), square))  # fmt: skip
    alone = np.clip((alone + 1) * 127.5, 0, 255)
    assert np.max(np.abs(pixels(pictures["seven", 0]) - alone)) < 2


def test_a_picture_for_each_prompt_or_one_of_either_for_all(digits_run, picture, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, mode in (("2.png", "L"), ("10.webp", "RGB"), ("3.png", "RGBA")):
        Image.open(picture).convert(mode).rotate(len(name) * 30).save(folder / name)
    files = find_starts(str(folder))
    assert [file.name for file in files] == ["2.png", "3.png", "10.webp"]
    assert find_starts(f"{picture},{folder / '*.png'}")[0] == picture
    assert pair(["a", "b"], files[:1]) == (["a", "b"], [files[0]] * 2)
    assert pair(["a"], files) == (["a"] * 3, files)
    assert pair(["a", "a", "a"], [files[0], files[1], files[0]]) == (["a"] * 2, files[:2])
    with pytest.raises(ValueError, match="3 pictures for 2 prompts: give one of either, or equa"):
        pair(["a", "b"], files)
    command(
        tmp_path / "out", "--prompt=seven", checkpoint=digits_run, num=1, image=folder, steps=1
    )  # fmt: skip
    names = [file.name for file in (tmp_path / "out").iterdir()]
    assert len(names) == 4 and sum(name.startswith("grid") for name in names) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 0.5}, "--strength=0.5 needs a picture: give --image=FILE, too"),
        ({"image": "{}", "strength": 0}, "strength is 0.0: use a number from above 0 to 1"),
        ({"image": "{}", "strength": 1.5}, "strength is 1.5: use a number from above 0 to 1"),
        ({"image": "{}", "strength": 0.1}, "strength is 0.1 and the student's lowest time is 0.25"),
        ({"image": "{}.gone"}, "no file .*start.png.gone"),
        ({"image": __file__}, "test_partial_noise.py: the bytes are not a JPEG, PNG"),
        ({"image": "{}", "geneval": "x"}, "leave --image out"),
    ],
)
def test_what_cannot_be_started_from_is_said_and_nothing_is_written(
    digits_run, picture, tmp_path, options, words
):
    given = {name: str(value).format(picture) for name, value in options.items()}
    prompt = {} if "geneval" in given else {"prompt": "seven"}
    with pytest.raises(ValueError, match=words):
        command(tmp_path / "out", checkpoint=digits_run, **prompt, **given)
    assert not (tmp_path / "out").exists()
    flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize(
    ("given", "strength", "sigmas"),
    [
        ([0.5, 0.25], 1.0, [0.5, 0.25]),
        ([0.75], 1.0, [0.75]),
        ([1.0, 0.75, 0.5, 0.25], 0.5, [0.5, 0.25]),
        # By their number, with the scheduler's end as the card has it.
        (None, 0.5, [0.5, 0.25]),
    ],
)
def test_diffusers_called_as_the_card_says_starts_from_a_picture_as_we_do(
    sd3_run, picture, tmp_path, monkeypatch, given, strength, sigmas
):
    import torch

    export(sd3_run, tmp_path / "turbo", dtype="float32")
    card = (tmp_path / "turbo" / "README.md").read_text()
    first, ending, second = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "StableDiffusion3Img2ImgPipeline" in second
    assert "sigmas=[0.5, 0.25]," in second and "with `strength=0.5` does the same" in card
    mesh = make_mesh({}, jax.devices()[:1])
    trained = open_trained(str(sd3_run), None, None, None, mesh)
    bucket = next(bucket for bucket in trained.buckets if bucket.height == bucket.width)
    cut = fit(decode_image(picture.read_bytes()), *bucket.image_size(trained.reduction))
    Image.fromarray(to_bytes(cut)).save(tmp_path / "cut.png")

    text = trained.encoder().encode(["a red cat", ""])
    cond, null = ({name: array[i] for name, array in text.items()} for i in ([0], 1))
    network = trained.family.backbone(trained.architecture)
    shape = (bucket.height, bucket.width, 16)
    start = trained.pictures.encode(decode_image((tmp_path / "cut.png").read_bytes()), bucket)
    key = seeds(0, 5)
    way = Sampling("consistency", (*sigmas, 0.0))
    expected = Sampler(network, null, mesh, 1)(
        trained.load(), key, cond, shape, way, x_0=start[None]
    )[0]

    def drawn(first):
        numbers = iter(range(first, 5))
        return lambda shape, **_: torch.from_numpy(
            np.array(sample_noise(key, next(numbers), (bucket.height, bucket.width, 16)))
            .transpose(0, 3, 1, 2)
            .copy()
        ).reshape(shape)

    for old, new in (
        ('"turbo"', f'"{tmp_path / "turbo"}"'), ('"cuda"', '"cpu"'),
        ('"start.png"', f'"{tmp_path / "cut.png"}"'),
        ('    "a red cat",\n    image', '    "a red cat", output_type="latent",\n    image'),
        ("sigmas=[0.5, 0.25]", f"sigmas={given}" if given else "num_inference_steps=4"),
        ("strength=1.0", f"strength={strength}"),
    ):  # fmt: skip
        assert old in first + second
        first, second = (code.replace(old, new) for code in (first, second))
    names = {}
    exec(first.partition("image = pipe")[0], names)
    if not given:
        exec(ending, names)
    place = "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img"
    monkeypatch.setattr(f"{place}.randn_tensor", drawn(0))
    scheduler = "diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor"
    monkeypatch.setattr(scheduler, drawn(1))
    # Theirs draws from the autoencoder's distribution; ours takes its middle.
    middle = "diffusers.models.autoencoders.vae.randn_tensor"
    monkeypatch.setattr(middle, lambda shape, **_: torch.zeros(shape))
    exec(second, names)
    theirs = names["image"].numpy().transpose(1, 2, 0)
    assert np.std(expected) > 0.1
    difference = np.max(np.abs(theirs - expected)) / np.max(np.abs(expected))
    assert difference < 1e-5
