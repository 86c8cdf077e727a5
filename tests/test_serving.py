"""What is served of a student: `ladd_jax.serving.student` and the command."""

import dataclasses

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from runs import keeping_programs
from sampled import draw, pixels, save_digits

from ladd_jax import serve
from ladd_jax.errors import UserError
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.serving.student import Kind, Row, Student, Wish
from ladd_jax.stages.trained import open_trained


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    return save_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def student(digits_run):
    mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    trained = open_trained(str(digits_run), None, None, None, mesh)
    wide = tuple(bucket for bucket in trained.buckets if bucket.width > bucket.height)
    found = Student(dataclasses.replace(trained, buckets=wide), mesh, 3)
    told = []
    found.warm_up(lambda *counts: told.append(counts))
    # One bucket, four numbers of steps, two sizes.
    assert told == [(i, 8) for i in range(9)]
    return found


def compiled(student):
    return [sampler.program_count for sampler in student._samplers.values()]


def made(student, **wish):
    """What is made of a wish, padded as the engine does it."""
    wish = Wish(**dict(prompt="seven", bucket=student.trained.buckets[0], steps=4) | wish)
    kind, rows = student.rows_of(wish)
    size = min(size for size in student.sizes if size >= len(rows))
    return student(kind, [rows[i % len(rows)] for i in range(size)])[: len(rows)]


def test_what_is_served_is_what_sample_makes_and_nothing_is_compiled_for_it(
    student, digits_run, tmp_path, tmp_path_factory
):
    file = tmp_path / "start.png"
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(file)
    before = compiled(student)
    assert before == [4, 4] and student.sizes == (1, 3)
    options = dict(checkpoint=digits_run, prompt="seven", aspect="2:1", num=2, seed=3)
    for number, (steps, strength) in enumerate([(4, None), (1, None), (4, 0.8), (1, 0.3)]):
        wish = dict(seed=3, count=2, steps=steps)
        given = dict(steps=steps)
        if strength is not None:
            wish |= dict(picture=file, strength=strength)
            given |= dict(image=file, strength=strength)
        found = made(student, **wish)
        with keeping_programs(tmp_path_factory.mktemp("kept")):
            expected, _ = draw(tmp_path / str(number), **options, **given)
        for i, picture in enumerate(found):
            difference = pixels(picture[..., 0]) - pixels(expected["seven", 3 + i])
            assert picture.dtype == np.uint8 and np.max(np.abs(difference)) <= 1
    # One picture, another prompt: programs of the smaller size, and the same.
    made(student, prompt="three and two")
    assert compiled(student) == before


def test_a_prompt_that_is_cut_is_refused_and_those_beside_it_are_made(student):
    kind = Kind(student.trained.buckets[0], (1.0, 0.0), True)
    long = "seven and seven and seven"
    found = student(kind, [Row("seven", 0), Row(long, 0), Row("two", 0)])
    assert str(found[1]) == (
        "the prompt has 25 characters, more than data.text_length reads: shorten it"
    )
    alone = student(kind, [Row("seven", 0)] * 3)
    np.testing.assert_array_equal(found[0], alone[0])
    assert found[2].shape == (64, 128, 1)
    # Told again though its text is kept.
    assert isinstance(student(kind, [Row(long, 0)])[0], UserError)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"prompt": " "}, "the page is empty: write a prompt"),
        ({"prompt": "x" * 10_001}, "10001 characters and the limit is 10000"),
        ({"seed": -1}, "seed is -1: use a number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296: use a number from 0 to"),
        ({"guidance": 3.0}, "guidance is 3 and a student has none"),
        ({"picture": __file__}, "the bytes are not a JPEG, PNG"),
        ({"picture": "start", "strength": 0.1}, "no step is left: use 0.25 or more"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_made_is_said(student, tmp_path, wish, words):
    if "picture" in wish:
        file = tmp_path / "start.png"
        Image.new("RGB", (9, 9)).save(file)
        wish = wish | {"picture": file if wish["picture"] == "start" else tmp_path / "text"}
        (tmp_path / "text").write_text("no picture")
    with pytest.raises(UserError, match=words):
        made(student, **wish)


def test_rows_of_one_batch_may_have_guidance_of_their_own(tmp_path):
    mesh = make_mesh({}, jax.devices()[:1])
    save_digits(tmp_path, guidance=3.0, guidance_range=(1.0, 6.0))
    told = Student(open_trained(str(tmp_path), None, None, None, mesh), mesh, 2)
    bucket = told.trained.buckets[0]
    wishes = [Wish("seven", bucket, 1, guidance=scale) for scale in (None, 5.0)]
    (kind, usual), (_, high) = map(told.rows_of, wishes)
    assert (usual[0].guidance, high[0].guidance) == (3.0, 5.0)
    both = told(kind, [*usual, *high])
    assert np.any(both[0] != both[1])
    np.testing.assert_array_equal(told(kind, high * 2)[0], both[1])
    with pytest.raises(UserError, match="guidance is 7 and the student was trained for 1 to 6"):
        told.rows_of(Wish("seven", bucket, 1, guidance=7.0))


def test_a_data_generator_is_not_served(student):
    trained = dataclasses.replace(student.trained, times=())
    with pytest.raises(UserError, match="is a data generator, which needs many steps: serve a st"):
        Student(trained, make_mesh({}, jax.devices()[:1]), 1)


def test_a_student_whose_times_are_below_1_starts_from_noise_alone_without_a_picture(student):
    late = Student.__new__(Student)
    late.trained = dataclasses.replace(student.trained, times=(0.9, 0.5))
    late.sizes = (1,)
    assert [(kind.sigmas, kind.starts) for kind, _ in late.programs] == [
        ((0.9, 0.0), False), ((0.9, 0.0), True),
        ((0.9, 0.5, 0.0), False), ((0.9, 0.5, 0.0), True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 0}, "port is 0: use a number from 1 to 65535"),
        ({"queue": 0}, "queue is 0: use 1 or more"),
        ({"batch_size": -1}, "batch_size is -1: use 1 or more"),
        ({"host": "203.0.113.7"}, "203.0.113.7:7860 cannot be served at"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_read(monkeypatch, options, words):
    flags.FLAGS.mark_as_parsed()
    serve.FLAGS.unparse_flags()
    for name in serve.FLAGS:
        serve.FLAGS[name].unparse()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    serve.FLAGS(["serve", "--checkpoint=nowhere", *(f"--{k}={v}" for k, v in options.items())])
    with pytest.raises(UserError, match=words):
        serve.main()


def test_without_gradio_the_extra_is_named(monkeypatch):
    flags.FLAGS.mark_as_parsed()
    serve.FLAGS.unparse_flags()
    serve.FLAGS(["serve", "--checkpoint=nowhere"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r'gradio is not installed: pip install "ladd_jax\[serve\]"'
    ):
        serve.main()
