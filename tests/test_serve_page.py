"""The served page in a browser: `python -m ladd_jax.serve`."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from sampled import save_digits

from benchmarks.browser import Browser, find_browser

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


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, states that `/ready` had until it was) of a small student."""
    directory = save_digits(tmp_path_factory.mktemp("digits"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ladd_jax.serve", f"--checkpoint={directory}"]
    command += [f"--port={port}", "--batch_size=4"]
    log = directory / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=stream, env=os.environ | {"XLA_FLAGS": ""}
        )
    address, states, start = f"http://127.0.0.1:{port}", [], time.monotonic()
    while not states or states[-1][0] != 200:
        assert process.poll() is None and time.monotonic() < start + 240, log.read_text()
        if found := state(address):
            states.append(found)
        time.sleep(0.1)
    yield address, states
    process.terminate()
    process.wait(PATIENCE)
    assert "serve: ready at" in log.read_text() and "Traceback" not in log.read_text()


@pytest.fixture
def page(served):
    with Browser(patience=PATIENCE) as browser:
        browser.open(served[0])
        browser.wait(f"document.querySelector('#status') && {STATUS}.includes('Ready')")
        browser.value("document.querySelector('#prompt textarea').focus()")
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
    page.value("document.querySelector('#picture button[aria-label*=emove],"
               "#picture button[aria-label*=lear]').click()")  # fmt: skip
    page.wait(f"{STATUS}.includes('4 steps in')")
    page.wait("!!document.querySelector('#picture input[type=file]')")
    page.upload("#picture input[type=file]", tmp_path / "text.png")
    page.wait(f"{STATUS}.includes('the bytes are not a JPEG, PNG')")
