"""The page without a browser and without a network: `ladd_jax.serving.page`."""

import asyncio
import io
import os
import types

import jax
import numpy as np
import pytest
from PIL import Image
from sampled import save_filling

from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.serving.engine import Engine
from ladd_jax.serving.ready import Ready
from ladd_jax.serving.student import Student
from ladd_jax.stages.trained import open_trained

gradio = pytest.importorskip("gradio", reason='needs gradio: the extra "serve"')


@pytest.fixture(scope="module")
def filling(tmp_path_factory):
    directory = save_filling(tmp_path_factory.mktemp("filling"))
    mesh = make_mesh({}, jax.devices()[:1])
    return open_trained(str(directory), None, None, None, mesh)


@pytest.fixture
def page(filling):
    """The page of a student that fills holes and is not compiled yet."""
    from ladd_jax.serving.page import Page

    student = types.SimpleNamespace(trained=filling, steps=len(filling.times))
    return Page(student, types.SimpleNamespace(largest=1, drop=lambda name: None), Ready())


def inputs(page, picture="a.png", prompt="seven"):
    """What the page's fields say."""
    given = dict(prompt=prompt, picture=picture, aspect=next(iter(page._buckets)), seed=0)
    page._names = tuple(given)
    return given.values()


async def ask(page, painting=None, tab="tab"):
    """What the page asks for after a stroke, in a tab."""
    request = types.SimpleNamespace(session_hash=tab)
    await page._painted(request, painting, *inputs(page))
    await page._paused(request, *inputs(page))


def wishes_of(page, monkeypatch):
    """(tab, steps, painting) of all that is asked of the student from here on."""
    asked = []

    async def make(name, session, wish):
        asked.append((name, wish.steps, wish.painting))
        return "pictures", "words"

    monkeypatch.setattr(page, "_make", make)
    return asked


def test_each_tab_has_its_own_paint_and_another_choice_of_a_picture_takes_it(page, monkeypatch):
    asked = wishes_of(page, monkeypatch)
    tabs = {tab: types.SimpleNamespace(session_hash=tab) for tab in ("one", "two")}
    for tab in tabs:
        asyncio.run(ask(page, tab.encode(), tab=tab))
    assert asked == [(tab, steps, tab.encode()) for tab in tabs for steps in (1, 4)]
    sessions = {tab: page._session(request)[1] for tab, request in tabs.items()}
    assert sessions["one"].painting("a.png") == b"one"
    assert sessions["one"].painting("b.png") is sessions["one"].painting(None) is None
    # The same picture, chosen again or cleared.
    page._canvas(tabs["one"], "a.png")
    assert sessions["one"].painting("a.png") is None
    assert sessions["two"].painting("a.png") == b"two"


def test_a_stroke_takes_the_place_of_all_steps_of_the_one_before(page, monkeypatch):
    asked = wishes_of(page, monkeypatch)

    async def strokes():
        before = asyncio.create_task(ask(page, b"one"))
        # It has its picture in one step, and pauses.
        while not asked:
            await asyncio.sleep(0)
        await asyncio.gather(before, ask(page, b"two"), ask(page, b"there", tab="other"))

    asyncio.run(strokes())
    own = [wish for wish in asked if wish[0] == "tab"]
    assert own == [("tab", 1, b"one"), ("tab", 1, b"two"), ("tab", 4, b"two")]
    # Another tab's stroke is not superseded by it.
    assert ("other", 4, b"there") in asked


def test_all_that_is_typed_and_chosen_goes_one_way_and_only_one_step_is_waited_for(page):
    blocks = page.blocks()
    events = {}
    for each in blocks.fns.values():
        # The page itself, which loads and closes, is not one of its blocks.
        known = [(blocks.blocks[i], event) for i, event in each.targets if i in blocks.blocks]
        triggers = {(block.elem_id, event) for block, event in known}
        events.setdefault(each.name, []).append((triggers, each.trigger_mode))
    wishes = {("prompt", "input"), ("aspect", "change"), ("seed", "change")}
    assert events["_first"] == [(wishes, "always_last")]
    assert [mode for _, mode in events["_paused"]] == ["multiple"] * 2
    assert wishes in [triggers for triggers, _ in events["_paused"]]
    assert events["_all"] == [({("prompt", "submit")}, "multiple")]


def test_enter_asks_for_all_steps_and_the_pause_before_it_for_nothing(page, monkeypatch):
    asked = wishes_of(page, monkeypatch)
    request = types.SimpleNamespace(session_hash="tab")

    async def typed():
        pause = asyncio.create_task(page._paused(request, *inputs(page)))
        await asyncio.sleep(0)
        await page._all(request, *inputs(page))
        # The key's own step comes too late.
        await page._first(request, *inputs(page))
        await pause

    asyncio.run(typed())
    assert asked == [("tab", 4, None)]


def test_a_tab_that_is_closed_in_its_pause_asks_for_nothing(page, monkeypatch):
    asked = wishes_of(page, monkeypatch)
    request = types.SimpleNamespace(session_hash="tab")

    async def closed():
        pause = asyncio.create_task(page._paused(request, *inputs(page)))
        await asyncio.sleep(0)
        page._left(request)
        await pause

    asyncio.run(closed())
    assert asked == []


def test_what_is_still_prepared_is_dropped_for_a_newer_wish(filling, tmp_path):
    from ladd_jax.serving.page import Page

    made = []

    def make(kind, rows):
        made.append([row.prompt for row in rows])
        return [np.zeros((64, 64, 1), np.uint8)] * len(rows)

    slow, picture, paint = tmp_path / "slow.png", tmp_path / "picture.png", io.BytesIO()
    os.mkfifo(slow)
    Image.new("RGB", (64, 64)).save(picture)
    Image.new("RGBA", (64, 64), "white").save(paint, "PNG")
    student = Student(filling, make_mesh({}, jax.devices()[:1]), 1)
    engine, ready = Engine(make, student.sizes, 4), Ready()
    ready.told(1, 1)
    page = Page(student, engine, ready)
    request = types.SimpleNamespace(session_hash="tab")

    def painted(file, prompt):
        return page._painted(request, paint.getvalue(), *inputs(page, str(file), prompt))

    async def strokes():
        old = asyncio.create_task(painted(slow, "one"))
        # Opened once the other end is read.
        stream = await asyncio.to_thread(open, slow, "wb")
        new = await painted(picture, "two")
        with stream:
            stream.write(picture.read_bytes())
        return await old, new

    old, new = asyncio.run(strokes())
    engine.close()
    assert made == [["two"]] and new[1].startswith("1 step in")
    assert old == (gradio.skip(), gradio.skip())


def test_without_a_picture_the_page_says_no_sooner_that_it_is_ready_than_it_is(page):
    request = types.SimpleNamespace(session_hash="tab")
    page._ready.told(1, 3)
    assert page._canvas(request, None) == (
        None,
        "Compiling: 1 of 3 programs are ready.",
    )
    page._ready.told(3, 3)
    assert page._canvas(request, None)[1].startswith("Ready: choose a picture")


def test_a_request_names_no_file_that_was_not_uploaded(page, tmp_path, monkeypatch):
    from fastapi.testclient import TestClient

    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    blocks = page.blocks()
    monkeypatch.setattr(page, "blocks", lambda: blocks)
    [number] = [i for i, each in blocks.fns.items() if each.name == "_canvas"]

    def canvas_over(client, path):
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        asked = {"fn_index": number, "data": [file], "session_hash": "tab"}
        return client.post("/gradio_api/run/predict", json=asked)

    with TestClient(page.app(), raise_server_exceptions=False) as client:
        with (tmp_path / "picture.png").open("rb") as stream:
            [uploaded] = client.post("/gradio_api/upload", files={"files": stream}).json()
        taken = canvas_over(client, uploaded)
        assert taken.status_code == 200, taken.text
        assert taken.json()["data"][1] == "Paint over the part to fill."
        refused = canvas_over(client, tmp_path / "picture.png")
        assert refused.status_code == 500
