"""The served page in a browser: `python -m ladd_jax.serve`."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from sampled import save_digits, save_editing, save_filling

from benchmarks.browser import Browser, find_browser
from ladd_jax.data.images import enlarged, fit, to_bytes
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.trained import open_trained

ROOT = Path(__file__).parent.parent
PATIENCE = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason='needs gradio: the extra "serve"'
    ),
    pytest.mark.skipif(find_browser() is None, reason="needs Chromium: apt-get install chromium"),
]

STATUS = "document.querySelector('#status').innerText"


def state(address):
    """The status code of `/ready`, and what it says; None while nobody answers."""
    try:
        with urllib.request.urlopen(f"{address}/ready") as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return None


@contextlib.contextmanager
def serving(directory, batch_size=4):
    """(address, states that `/ready` had until it was) of the student of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ladd_jax.serve", f"--checkpoint={directory}"]
    command += [f"--port={port}", f"--batch_size={batch_size}"]
    log = directory / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=stream, env=os.environ | {"XLA_FLAGS": ""}
        )
    try:
        address, states, start = f"http://127.0.0.1:{port}", [], time.monotonic()
        while not states or states[-1][0] != 200:
            assert process.poll() is None and time.monotonic() < start + 240, log.read_text()
            if found := state(address):
                states.append(found)
            time.sleep(0.1)
        yield address, states
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert "serve: ready at" in log.read_text() and "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(save_digits(tmp_path_factory.mktemp("digits"))) as found:
        yield found


@contextlib.contextmanager
def opened(address, **options):
    """The page of a student that is ready, with the focus on the prompt."""
    with Browser(patience=PATIENCE, **options) as browser:
        browser.open(address)
        browser.wait(f"document.querySelector('#status') && {STATUS}.includes('Ready')")
        browser.value("document.querySelector('#prompt textarea').focus()")
        yield browser


@pytest.fixture
def page(served):
    with opened(served[0]) as browser:
        yield browser


def sources(page):
    """Addresses of the pictures that are shown."""
    return page.value("[...document.querySelectorAll('#pictures img')].map(i => i.src)")


def test_it_says_that_it_is_ready_once_all_programs_are_compiled(served):
    states = served[1]
    assert {code for code, _ in states[:-1]} <= {503}
    assert states[-1] == (200, {"ready": True, "compiled": 24, "programs": 24})


def test_one_step_is_shown_while_typing_and_all_after_a_pause(page, served):
    page.type("sev")
    page.wait(f"{STATUS}.includes('1 step in')")
    first = sources(page)
    page.wait(f"{STATUS}.includes('4 steps in')")
    whole = sources(page)
    assert len(first) == len(whole) == 1 and first != whole
    page.type("en")
    page.press("Enter")
    page.wait(f"JSON.stringify({json.dumps(whole)}) != JSON.stringify([...document"
              f".querySelectorAll('#pictures img')].map(i => i.src)) && {STATUS}"
              ".includes('4 steps in')")  # fmt: skip
    size = "(i => i.complete && [i.naturalWidth, i.naturalHeight])"
    assert page.wait(f"{size}(document.querySelector('#pictures img'))") == [64, 64]
    # The page talks to nobody else.
    asked = {url.split(":", 1)[0] for url in page.addresses if not url.startswith(served[0])}
    assert asked <= {"data", "blob", "about"}


def test_aspect_and_number_change_the_pictures_at_once(page):
    page.type("seven")
    page.wait(f"{STATUS}.includes('4 steps in')")
    page.value(
        "[...document.querySelectorAll('#aspect label')].find(l => l.innerText.includes('2:1'))"
        ".querySelector('input').click()"
    )
    size = "(i => i && i.complete && i.naturalWidth)"
    page.wait(f"{size}(document.querySelector('#pictures img')) == 128")
    fill(page, "#count input[type=number]", "3")
    page.wait("document.querySelectorAll('#pictures img').length == 3")
    assert "seeds 0 to 2" in page.wait(f"{STATUS}.includes('seeds') && {STATUS}")


def fill(page, selector, text):
    """Writes into a field and leaves it."""
    page.value(
        f"(i => {{ i.value = '{text}'; i.dispatchEvent(new Event('input', {{bubbles: true}}));"
        f"i.dispatchEvent(new Event('change', {{bubbles: true}})); i.blur() }})"
        f"(document.querySelector('{selector}'))"
    )


def test_what_cannot_be_made_is_one_sentence_on_the_page(page, tmp_path):
    page.type("seven and seven and seven")
    page.wait(f"{STATUS}.includes('more than data.text_length reads: shorten it')")
    fill(page, "#seed input", "-1")
    page.wait(f"{STATUS}.includes('seed is -1: use a number from 0 to')")


def test_a_picture_that_is_given_is_started_from_and_what_is_none_is_said(page, tmp_path):
    page.value("[...document.querySelectorAll('button')].find(b => "
               "b.innerText.includes('Start from')).click()")  # fmt: skip
    Image.radial_gradient("L").save(tmp_path / "start.png")
    (tmp_path / "text.png").write_text("no picture")
    page.type("seven")
    page.wait(f"{STATUS}.includes('4 steps in')")
    page.wait("!!document.querySelector('#picture input[type=file]')")
    page.upload("#picture input[type=file]", tmp_path / "start.png")
    page.wait(f"{STATUS}.includes('2 steps in') && {STATUS}.includes('from t = 0.5')")
    take_away(page)
    page.wait(f"{STATUS}.includes('4 steps in')")
    choose(page, tmp_path / "text.png")
    page.wait(f"{STATUS}.includes('the bytes are not a JPEG, PNG')")


def choose(page, file):
    """Gives the page a picture."""
    page.wait("!!document.querySelector('#picture input[type=file]')")
    page.upload("#picture input[type=file]", file)


def take_away(page):
    """Takes the picture away again."""
    page.value("document.querySelector('#picture button[aria-label*=emove],"
               "#picture button[aria-label*=lear]').click()")  # fmt: skip


def shown(page, served):
    """Pixels of the picture that is shown."""
    place = sources(page)[0]
    assert place.startswith(served[0])
    with urllib.request.urlopen(place) as answer, Image.open(io.BytesIO(answer.read())) as image:
        return np.asarray(image)


def paint(page, *points):
    """Paints over the picture once it lies on the canvas, from point to point, in shares of the
    canvas' sides."""
    page.wait("[...document.querySelectorAll('#painting button')]"
              ".some(b => b.ariaLabel == 'Undo' && !b.disabled)")  # fmt: skip
    left, top, width, height = page.value(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('#painting canvas').getBoundingClientRect())"
    )
    page.drag(*((left + x * width, top + y * height) for x, y in points))


def another(page, before):
    """Waits for a picture in all steps that is not the one before."""
    shows = "[...document.querySelectorAll('#pictures img')].map(i => i.src).join()"
    page.wait(f"{STATUS}.includes('4 steps in') && {shows} != {json.dumps(','.join(before))}")


def test_what_is_painted_over_a_picture_is_filled_and_the_rest_has_its_bits(
    tmp_path_factory, tmp_path
):
    picture = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    (tmp_path / "text.png").write_text("no picture")
    known = enlarged(to_bytes(fit(picture, 8, 8, 1)[..., 0]), 8)
    directory = save_filling(tmp_path_factory.mktemp("filling"))
    with serving(directory, 1) as served, opened(served[0], height=1100) as page:
        page.type("sev")
        page.wait(f"{STATUS}.includes('there is no picture: choose the one to fill')")
        choose(page, tmp_path / "text.png")
        page.wait(f"{STATUS}.includes('the bytes are not a JPEG, PNG')")
        take_away(page)
        choose(page, tmp_path / "picture.png")
        page.wait(f"{STATUS}.includes('Paint over the part to fill')")
        page.value("document.querySelector('#prompt textarea').focus()")
        page.type("en")
        page.wait(f"{STATUS}.includes('nothing is painted in the part that is used')")

        # An eighth of a side, a pixel of the model, is filled if more than half of it is painted.
        paint(page, (0.4, 0.45), (0.6, 0.45), (0.6, 0.55), (0.4, 0.55))
        another(page, [])
        first, before = shown(page, served), sources(page)
        changed = first != known
        # The middle is filled, and nothing beside the stroke and the brush's radius.
        assert changed[28:36, 28:36].all() and not changed[:16].any() and not changed[48:].any()

        paint(page, (0.4, 0.8), (0.6, 0.8), (0.6, 0.86), (0.4, 0.86))
        another(page, before)
        second, before = shown(page, served), sources(page)
        assert (second != known)[48:].any() and not (second != known)[:16].any()

        # A key asks for the same hole without its being sent again.
        page.value("document.querySelector('#prompt textarea').focus()")
        page.type(" and two")
        another(page, before)
        before = sources(page)
        third = shown(page, served)
        np.testing.assert_array_equal((third != known)[:16], False)

        page.value("[...document.querySelectorAll('#painting button')]"
                   ".find(b => b.ariaLabel == 'Clear canvas').click()")  # fmt: skip
        page.wait(f"{STATUS}.includes('nothing is painted') || {STATUS}.includes('Paint over')")
        paint(page, (0.4, 0.3), (0.6, 0.3))
        another(page, before)
        last = shown(page, served)
        assert (last != known)[:24].any() and not (last != known)[40:].any()
        asked = {url.split(":", 1)[0] for url in page.addresses if not url.startswith(served[0])}
        assert asked <= {"data", "blob", "about"}


def test_a_picture_is_edited_while_the_instruction_is_typed(tmp_path_factory, tmp_path):
    Image.radial_gradient("L").save(tmp_path / "picture.png")
    directory = save_editing(tmp_path_factory.mktemp("editing"), "knobs=1")
    with serving(directory, 1) as served, opened(served[0]) as page:
        assert page.value("document.querySelector('#prompt').innerText").startswith("Instruction")
        page.type("remove")
        page.wait(f"{STATUS}.includes('there is no picture: choose the one to edit')")
        choose(page, tmp_path / "picture.png")
        page.wait(f"{STATUS}.includes('4 steps in')")
        first, before = shown(page, served), sources(page)
        assert first.shape == (192, 192, 3)
        page.value("document.querySelector('#prompt textarea').focus()")
        page.type(" the seven")
        another(page, before)
        for knob in ("guidance", "image_guidance"):
            assert page.value(f"!!document.querySelector('#{knob} input[type=range]')")
        take_away(page)
        page.wait(f"{STATUS}.includes('there is no picture')")


def test_what_cannot_be_chosen_is_not_on_the_page(tmp_path):
    import gradio

    from ladd_jax.serving.fields import fields_of

    mesh = make_mesh({}, jax.devices()[:1])
    trained = open_trained(str(save_digits(tmp_path)), None, None, None, mesh)
    always, buckets = {"prompt", "aspect", "seed"}, {"1:1": trained.buckets[0]}
    for times, most, further in (
        (trained.times, 4, {"count", "picture", "strength"}),
        (trained.times, 1, {"picture", "strength"}),
        # Nothing of a picture would be left.
        ((1.0,), 1, set()),
    ):
        with gradio.Blocks():
            own = fields_of(dataclasses.replace(trained, times=times), buckets, most)
        assert own.inputs.keys() == always | further and own.editor is None


def test_a_painting_comes_as_bytes_or_as_a_file_and_those_that_nobody_asks_for_go(tmp_path):
    from gradio.components.image_editor import EditorData, EditorDataBlobs
    from gradio.data_classes import FileData

    from ladd_jax.serving.fields import _editor

    editor = _editor()
    (tmp_path / "layer.png").write_bytes(b"of a file")
    file = FileData(path=str(tmp_path / "layer.png"))
    assert editor.preprocess(EditorData(layers=[file])) == b"of a file"
    for number in range(300):
        layers = [str(number).encode()]
        editor.blob_storage[str(number)] = EditorDataBlobs(
            background=None, layers=layers, composite=None
        )
    assert editor.preprocess(EditorData(id="3")) == b"3"
    assert len(editor.blob_storage) == 256 and "299" in editor.blob_storage
    for nothing in (None, EditorData(), EditorData(id="3")):
        assert editor.preprocess(nothing) is None
