"""The page's folder: whole or not at all, and no text of a prompt or a name breaks it."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ladd_jax.errors import ExistsError, UserError
from ladd_jax.evaluation.arena.entries import Entry, read_entries
from ladd_jax.evaluation.arena.page import (
    Album,
    Contender,
    Sample,
    check_free,
    new_page,
    read_page,
    write_page,
)

TEXTS = (
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "\"quotes\" & 'quotes' &lt;b&gt; \\u003c \u2028 line",
    "قطة حمراء",
    "赤い猫 👩‍🚀 красный кот",
)
NAMES = ("</script><img src=x onerror=alert(1)>", "قطة & «b»")


def picture(number, size=(8, 6)):
    return np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)


SAMPLES = tuple(Sample(text, 3) for text in TEXTS)


def write(folder, samples=SAMPLES, names=NAMES, steps=(1, 4)):
    """A page whose models have one teacher."""
    with new_page(folder) as partial:
        album = Album(partial)

        def contender(first, number, teacher=False):
            pictures = [album.add(picture(first + i)) for i in range(len(samples))]
            return Contender(number, teacher, pictures)

        models = {}
        for place, name in enumerate(names):
            own = [contender(100 * place + 10 * (number or 0), number) for number in steps]
            models[name] = [*own, contender(1000, 50, teacher=True)]
        return write_page(partial, samples, models)


class Scripts(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self.inside = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.data.setdefault(self.inside, []).append(data)


def test_every_text_arrives_as_it_is_and_is_never_html(tmp_path):
    data = write(tmp_path / "page")
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    found = Scripts(text)
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert len(scripts) == 2 and scripts[0]["id"] == "arena"
    shown = json.loads(found.data["script"][0])
    assert [sample["prompt"] for sample in shown["samples"]] == list(TEXTS)
    assert [model["name"] for model in shown["models"]] == list(NAMES)
    assert shown == json.loads(json.dumps(data)) == read_page(tmp_path / "page")
    assert not any(attributes.get("onerror") for _, attributes in found.tags)
    assert found.data["title"] == [f"{NAMES[0]} and {NAMES[1]}, side by side"]
    # Texts become nodes of text alone.
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    write(tmp_path / "page")
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for tag, attributes in Scripts(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert (attributes.get("href") or "#").startswith("#") and not attributes.get("src")
    assert not re.search(r"@import|url\(|https?:|fetch\(|XMLHttpRequest|WebSocket|import\(", text)


def test_pictures_are_files_that_equal_ones_share_and_a_teacher_is_shown_once(tmp_path):
    data = write(tmp_path / "page")
    titles = [contender["title"] for contender in data["contenders"]]
    assert titles == [
        f"{NAMES[0]}, 1 step", f"{NAMES[0]}, 4 steps",
        f"teacher of {NAMES[0]} and {NAMES[1]}, 50 steps",
        f"{NAMES[1]}, 1 step", f"{NAMES[1]}, 4 steps",
    ]  # fmt: skip
    assert [model["shown"] for model in data["models"]] == [[0, 1, 2], [3, 4, 2]]
    assert [stop["title"] for stop in data["stops"]] == ["1 step", "4 steps", "teacher, 50 steps"]
    files = list((tmp_path / "page" / "pictures").iterdir())
    assert len(files) == 5 * len(TEXTS)
    name, width, height = data["contenders"][4]["pictures"][2]
    with Image.open(tmp_path / "page" / "pictures" / name) as image:
        assert (image.format, image.size) == ("PNG", (width, height)) == ("PNG", (6, 8))
        np.testing.assert_array_equal(np.asarray(image), picture(142))


def test_sources_stand_beside_samples_and_their_holes_are_transparent(tmp_path):
    assert write(tmp_path / "alone")["sources"] == []
    hole = np.full((8, 6, 1), 255, np.uint8)
    hole[2:4] = 0
    pixels = np.concatenate([picture(0), hole], axis=-1)
    with new_page(tmp_path / "page") as partial:
        album = Album(partial)
        source, shown = album.add(pixels), album.add(picture(1))
        models = {"a": [Contender(1, False, [shown])]}
        data = write_page(partial, [Sample("x", 0)], models, [source])
    assert data["sources"] == [source] and data["samples"] == [{"prompt": "x", "seed": 0}]
    with Image.open(tmp_path / "page" / "pictures" / source.file) as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_model_shows_the_nearest_of_its_steps_at_each_stop(tmp_path):
    with new_page(tmp_path / "page") as partial:
        album = Album(partial)
        shown = [album.add(picture(i)) for i in range(4)]
        models = {
            "a": [Contender(1, False, shown[:1]), Contender(4, False, shown[1:2])],
            "b": [Contender(2, False, shown[2:3])],
            "photos": [Contender(None, False, shown[3:])],
        }
        data = write_page(partial, [Sample("x", 0)], models)
    assert [stop["steps"] for stop in data["stops"]] == [1, 2, 4]
    assert [model["shown"] for model in data["models"]] == [[0, 0, 1], [2, 2, 2], [3, 3, 3]]
    assert data["contenders"][3]["title"] == "photos"


def test_a_student_in_as_many_steps_as_its_teacher_is_what_its_model_shows(tmp_path):
    with new_page(tmp_path / "page") as partial:
        album = Album(partial)
        shown = [album.add(picture(i)) for i in range(3)]
        models = {
            name: [Contender(4, False, shown[i : i + 1]), Contender(4, True, shown[2:])]
            for i, name in enumerate("ab")
        }
        data = write_page(partial, [Sample("x", 0)], models)
    titles = [data["contenders"][model["shown"][0]]["title"] for model in data["models"]]
    assert titles == ["a, 4 steps", "b, 4 steps"]


def test_no_two_contenders_have_one_title(tmp_path):
    with pytest.raises(UserError, match="two contenders would be called 'a, 4 steps'"):
        write(tmp_path / "page", names=("a", "teacher of b", "a, 4 steps"), steps=(4, None))
    assert not list(tmp_path.iterdir())


def test_the_id_is_of_the_content(tmp_path):
    ids = {
        write(tmp_path / str(i), **changes)["id"]
        for i, changes in enumerate(({}, {"names": ("a", "b")}, {"steps": (1, 2)}, {}))
    }
    assert len(ids) == 3


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    check_free(folder)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ExistsError, match="page exists and is not empty: remove it, or choose"):
        write(folder)
    with pytest.raises(ExistsError, match="mine.txt exists"):
        write(folder / "mine.txt")
    assert [file.name for file in tmp_path.rglob("*")] == ["page", "mine.txt"]


def test_a_page_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_page(tmp_path / "new" / "page") as partial:
        Album(partial).add(picture(0))
        raise RuntimeError("lost")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert sorted(file.name for file in (tmp_path / "empty").iterdir()) == [
        "arena.json", "index.html", "pictures",
    ]  # fmt: skip


def test_places_are_named_by_their_last_part_or_as_one_wants(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x=y, z").mkdir()
    entries = read_entries(["runs/a, best=runs/b/", "x=y, z", "mine=x=y, z", "."])
    assert entries == [
        Entry("a", "runs/a"), Entry("best", "runs/b/"), Entry("x=y, z", "x=y, z"),
        Entry("mine", "x=y, z"), Entry(tmp_path.name, "."),
    ]  # fmt: skip
    # What is before a comma is no part of the next one's name.
    assert read_entries(["runs/a,mine=x=y, z"]) == [
        Entry("a", "runs/a"), Entry("mine", "x=y"), Entry("z", "z"),
    ]  # fmt: skip
    with pytest.raises(
        UserError, match="two models 'a', runs/a and old/a: give one of them another"
    ):
        read_entries(["runs/a", "old/a"])
    for given in ("=runs/a", "name=", "x" * 61):
        with pytest.raises(UserError, match="has a name of .* characters: write NAME=PATH"):
            read_entries([given])
