"""What is served of a student: `ladd_jax.serving.student` and the command."""

import copy
import dataclasses
import io
import threading

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from runs import keeping_programs
from sampled import draw, pixels, save_digits, save_editing, save_filling

from ladd_jax import serve
from ladd_jax.errors import UserError
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.serving.engine import Engine
from ladd_jax.serving.painting import painted_mask
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
        ({"guidance": 3.0}, "guidance is 3 and this student has none"),
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


def opened(directory, size):
    """A student of a run in one step and in two, and all programs compiled."""
    mesh = make_mesh({}, jax.devices()[:1])
    trained = open_trained(str(directory), None, None, None, mesh)
    found = Student(dataclasses.replace(trained, times=(1.0, 0.5)), mesh, size)
    told = []
    found.warm_up(lambda *counts: told.append(counts))
    # One bucket and two numbers of steps; none starts from a picture.
    count = 2 * len(found.sizes)
    assert told == [(i, count) for i in range(count + 1)]
    assert not any(kind.starts for kind, _ in found.programs)
    return found


@pytest.fixture(scope="module")
def filling_run(tmp_path_factory):
    return save_filling(tmp_path_factory.mktemp("filling"))


@pytest.fixture(scope="module")
def filling(filling_run):
    return opened(filling_run, 2)


@pytest.fixture(scope="module")
def editing_run(tmp_path_factory):
    return save_editing(tmp_path_factory.mktemp("editing"), "knobs=1")


@pytest.fixture(scope="module")
def editing(editing_run):
    return opened(editing_run, 1)


@pytest.fixture
def picture(tmp_path):
    """A picture that has another aspect than any bucket, and colours."""
    colours = np.random.default_rng(0).integers(0, 256, (30, 48, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def painted(*boxes):
    """Boxes (left, top, right, bottom) that are painted over that picture, encoded."""
    painting, stream = Image.new("RGBA", (48, 30)), io.BytesIO()
    for box in boxes:
        painting.paste((40, 90, 250, 150), box)
    painting.save(stream, "png")
    return stream.getvalue()


def test_a_hole_is_filled_as_by_sample_and_known_pixels_have_their_bits(
    filling, filling_run, picture, tmp_path
):
    box = (20, 5, 30, 17)
    mask = Image.new("L", (48, 30))
    mask.paste(255, box)
    mask.save(tmp_path / "mask.png")
    before = compiled(filling)
    found = made(filling, picture=picture, painting=painted(box), steps=2, seed=3, count=2)
    expected, _ = draw(
        tmp_path / "out", "--prompt=seven", checkpoint=filling_run, image=picture,
        mask=tmp_path / "mask.png", steps=2, seed=3, num=2,
    )  # fmt: skip
    # All in which the pictures of two seeds differ is in the hole.
    hole = found[0][..., 0] != found[1][..., 0]
    assert 0.05 < hole.mean() < 0.4
    for i, one in enumerate(found):
        difference = pixels(one[..., 0]) - pixels(expected["seven", 3 + i])
        assert np.max(np.abs(difference)) <= 1 and not difference[~hole].any()
    assert compiled(filling) == before


def test_a_picture_is_edited_as_by_sample_at_both_scales(editing, editing_run, picture, tmp_path):
    before = compiled(editing)
    scales = dict(guidance=2.5, image_guidance=1.2)
    wish = dict(prompt="remove the seven", picture=picture, steps=2)
    [found] = made(editing, **wish, **scales)
    expected, _ = draw(
        tmp_path / "out", "--prompt=remove the seven", checkpoint=editing_run, image=picture,
        steps=2, num=1, **scales,
    )  # fmt: skip
    difference = pixels(found) - pixels(expected["remove the seven", 0])
    assert np.max(np.abs(difference)) <= 1
    for name, value in scales.items():
        [other] = made(editing, **wish, **scales | {name: value - 0.1})
        assert np.any(found != other)
    assert compiled(editing) == before


def test_holes_of_several_sessions_are_filled_in_one_batch(filling, picture, tmp_path):
    Image.new("RGB", (16, 10), "white").save(tmp_path / "other.png")
    bucket = filling.trained.buckets[0]
    wishes = [
        Wish("seven", bucket, 1, picture=picture, painting=painted((20, 5, 30, 17))),
        Wish("two", bucket, 1, seed=1, picture=tmp_path / "other.png",
             painting=painted((0, 0, 48, 12))),
    ]  # fmt: skip
    alone = [filling(kind, rows)[0] for kind, rows in map(filling.rows_of, wishes)]
    sizes, in_work, all_asked = [], threading.Event(), threading.Event()

    def make(kind, rows):
        in_work.set()
        assert all_asked.wait(60)
        sizes.append(len({id(row) for row in rows}))
        return filling(kind, rows)

    engine = Engine(make, filling.sizes, 4)
    try:
        # What is asked for in the middle of a batch waits, and goes together.
        futures = [engine.submit("first", *filling.rows_of(wishes[0]))]
        assert in_work.wait(60)
        futures += [engine.submit(str(i), *filling.rows_of(wish)) for i, wish in enumerate(wishes)]
        all_asked.set()
        together = [future.result(60)[0] for future in futures][1:]
    finally:
        engine.close()
    assert sizes == [1, 2]
    for one, other in zip(alone, together, strict=True):
        assert np.max(np.abs(pixels(one) - pixels(other))) <= 1


NOTHING = "nothing is painted in the part that is used: paint over the part to fill"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, "there is no picture: choose the one to fill"),
        ({"painting": painted((0, 0, 9, 9))}, "there is no picture: choose the one to fill"),
        ({"picture": "picture.png"}, NOTHING),
        ({"picture": "picture.png", "painting": painted()}, NOTHING),
        # The bucket is square: this is cut off.
        ({"picture": "picture.png", "painting": painted((0, 0, 6, 30))}, NOTHING),
        ({"picture": "picture.png", "painting": b"paint"}, "the bytes are not a JPEG, PNG"),
        ({"picture": "turned.png", "painting": painted()}, "has another shape than the picture"),
        ({"picture": "text", "painting": painted()}, "the bytes are not a JPEG, PNG"),
        ({"picture": "gone.png"}, r"the picture gone.png cannot be read \(No such .*: choose it"),
        ({"picture": "picture.png", "image_guidance": 2.0}, "the network fills holes"),
    ],
)
def test_what_a_student_that_fills_holes_lacks_is_said(filling, picture, wish, words):
    (picture.parent / "text").write_text("no picture")
    Image.new("RGB", (30, 48)).save(picture.parent / "turned.png")
    if "picture" in wish:
        wish = wish | {"picture": picture.parent / wish["picture"]}
    with pytest.raises(UserError, match=words):
        made(filling, steps=2, **wish)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, "there is no picture: choose the one to edit"),
        ({"picture": __file__}, "the bytes are not a JPEG, PNG"),
        ({"picture": "picture", "image_guidance": 9.0}, "image_guidance is 9 and the student was"),
        ({"picture": "picture", "guidance": 0.5}, "guidance is 0.5 and the student was trained"),
    ],
)
def test_what_a_student_that_edits_lacks_is_said(editing, picture, tmp_path, wish, words):
    (tmp_path / "text").write_text("no picture")
    if "picture" in wish:
        found = picture if wish["picture"] == "picture" else tmp_path / "text"
        wish = wish | {"picture": found}
    with pytest.raises(UserError, match=words):
        made(editing, steps=2, **wish)


def test_a_picture_is_read_once_for_all_that_is_asked_of_it(filling, picture, monkeypatch):
    read, masks = [], []
    monkeypatch.setattr(
        "ladd_jax.serving.student.read_picture",
        lambda file: read.append(file) or np.asarray(Image.open(file)),
    )
    monkeypatch.setattr(
        "ladd_jax.serving.student.painted_mask",
        lambda *given: masks.append(given[1:]) or painted_mask(*given),
    )
    with pytest.raises(UserError, match=NOTHING):
        made(filling, picture=picture, steps=1)
    one, other = painted((20, 5, 30, 16)), painted((12, 5, 30, 16))
    for painting, count in ((one, 1), (one, 1), (other, 2), (one, 2)):
        for steps in (1, 2):
            made(filling, picture=picture, painting=painting, steps=steps)
        assert len(read) == 1 and masks == [(30, 48)] * count


def test_a_student_that_euler_samples_is_served_by_it(filling, picture):
    other = copy.copy(filling)
    other.trained = dataclasses.replace(filling.trained, sampler="euler")
    wish = dict(picture=picture, painting=painted((20, 5, 30, 17)))
    # Both samplers are the same in one step.
    for steps, same in ((1, True), (2, False)):
        one, two = (pixels(made(each, steps=steps, **wish)[0]) for each in (filling, other))
        assert (np.max(np.abs(one - two)) <= 1) == same


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
        ({"host": "a..b"}, "a..b:7860 cannot be served at"),
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
