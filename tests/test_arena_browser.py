"""The page in a real browser, opened from the disk: look, vote, reload, download, score."""

import json
import time

import numpy as np
import pytest

from benchmarks.browser import Browser, find_browser
from ladd_jax.evaluation.arena.page import Album, Contender, Sample, new_page, write_page
from ladd_jax.evaluation.arena.scores import Scores
from ladd_jax.evaluation.arena.votes import read_votes

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome is installed")

PROMPTS = ("</script><b>cat</b>", 'قطة "حمراء"', "赤い猫 👩‍🚀 & more")
NAMES = ("<i>A</i>", "ب 🦊")


def write(folder, shade=0, given=False):
    """Pictures of one colour each; the first model's are dark and the second's bright.

    What they are made of, where something is given, is half transparent.
    """
    with new_page(folder) as partial:
        album = Album(partial)

        def contender(level, steps, teacher=False):
            levels = [level + shade + 2 * i for i in range(len(PROMPTS))]
            shown = [album.add(np.full((64, 64, 3), value, np.uint8)) for value in levels]
            return Contender(steps, teacher, shown)

        models = {
            name: [contender(100 * i + steps, steps) for steps in (1, 4)]
            + [contender(60, 50, True)]
            for i, name in enumerate(NAMES)
        }
        samples, sources = [Sample(prompt, 0) for prompt in PROMPTS], []
        for i in range(len(PROMPTS) if given else 0):
            pixels = np.full((64, 64, 4), 250 - i, np.uint8)
            pixels[:, 32:] = 0
            sources.append(album.add(pixels))
        return write_page(partial, samples, models, sources)


@pytest.fixture
def browser(tmp_path):
    (tmp_path / "downloads").mkdir()
    with Browser(downloads=tmp_path / "downloads", offline=True) as found:
        yield found


def downloaded(folder):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        files = [file for file in folder.iterdir() if file.suffix == ".json"]
        if files:
            return files[0]
        time.sleep(0.05)
    raise AssertionError("nothing was downloaded")


def texts(browser, selector):
    return browser.value(f"[...document.querySelectorAll('{selector}')].map(e => e.textContent)")


def vote(browser, press):
    """A vote on the pair that is shown, by `press(left is the first model)`."""
    browser.wait("!at('left').disabled")
    left = browser.value("booth.current.left")
    count = browser.value("state.votes.length")
    browser.press(press(left))
    # The choice is seen for a moment before the next pair comes.
    browser.wait(f"state.votes.length === {count + 1} && !document.querySelector('.chosen')")


def test_a_person_looks_votes_reloads_and_hands_in_a_file(browser, tmp_path):
    data = write(tmp_path / "page")
    url = (tmp_path / "page" / "index.html").as_uri()
    browser.open(url)
    assert texts(browser, "h3") == list(PROMPTS)
    assert texts(browser, ".card:first-child b") == list(NAMES)
    assert texts(browser, "#stops button") == ["1", "4", "teacher 50"]
    source = "document.querySelector('.card img').getAttribute('src')"
    shown = set()
    for stop in range(3):
        browser.value(f"at('stops').children[{stop}].click()")
        shown.add(browser.value(source))
    assert len(shown) == 3
    browser.value("at('find').value = 'حمراء'; at('find').dispatchEvent(new Event('input'))")
    assert texts(browser, ".card:not([hidden]) h3") == [PROMPTS[1]]
    browser.value("document.querySelector('.card:not([hidden]) .picture').click()")
    browser.wait("at('zoom').open")
    first = browser.value("at('stage').firstChild.getAttribute('src')")
    browser.press("ArrowRight")
    # Both models have the same teacher.
    assert browser.value("at('stage').firstChild.getAttribute('src')") == first
    browser.press("z")
    assert not browser.value("at('zoom').open")

    browser.open(f"{url}#vote")
    assert browser.value("at('set').value") == "4 steps"
    # Nothing that is seen, or said to who does not see, tells a model.
    hidden = browser.value("at('part_vote').innerText + at('pair').innerHTML")
    assert not any(name in hidden for name in (*NAMES, "teacher of"))
    vote(browser, lambda left: "ArrowLeft" if left == 1 else "ArrowRight")
    vote(browser, lambda left: "ArrowDown")
    browser.wait("!at('left').disabled")
    pair = browser.value("booth.current.key")
    browser.open(f"{url}#vote")
    browser.wait("!at('left').disabled")
    assert browser.value("state.votes.length") == 2 and browser.value("booth.current.key") == pair
    browser.press("u")
    browser.wait("state.votes.length === 1")
    vote(browser, lambda left: "ArrowLeft" if left == 1 else "ArrowRight")
    assert browser.value("at('count').textContent") == "2 of 3"
    browser.value("location.hash = 'results'")
    browser.wait("!at('part_results').hidden")
    assert not texts(browser, "#table td") and "hidden" in texts(browser, "#tally")[0]
    browser.value("location.hash = 'vote'")
    browser.wait("!at('part_vote').hidden")
    vote(browser, lambda left: "ArrowLeft" if left == 1 else "ArrowRight")
    browser.wait("!at('done').hidden")
    browser.value("document.querySelector('#done .download').click()")
    file = downloaded(tmp_path / "downloads")
    browser.value("location.hash = 'results'")
    browser.wait("!!document.querySelector('#table td')")
    titles = [f"{name}, 4 steps" for name in NAMES]
    wanted = [titles[0], "3", "0", "0", "100.0%", titles[1], "0", "0", "3", "0.0%"]
    assert texts(browser, "#table td") == wanted
    assert file.name.startswith(f"votes_{data['id']}_")
    scores = Scores(read_votes([file], tmp_path / "page"), 100)
    ((better, worse, rate),) = scores.pairs
    assert [better, worse] == titles and (rate.wins, rate.ties, rate.losses) == (3, 0, 0)
    found = json.loads(file.read_text(encoding="utf-8"))["votes"]
    assert sorted(vote["prompt"] for vote in found) == sorted(PROMPTS)
    assert not browser.problems and browser.addresses
    assert all(url.startswith(("file:", "blob:", "about:")) for url in browser.addresses)


def test_what_was_given_stands_between_both_pictures_and_no_vote_is_for_it(browser, tmp_path):
    data = write(tmp_path / "page", given=True)
    url = (tmp_path / "page" / "index.html").as_uri()
    files = [f"pictures/{file}" for file, *_ in data["sources"]]
    source = "e => e.getAttribute('src')"
    browser.open(url)
    first = f"[...document.querySelectorAll('.cells :first-child > .picture img')].map({source})"
    assert browser.value(first) == files
    browser.value("document.querySelector('.card .picture').click()")
    assert browser.value(f"({source})(at('stage').firstChild)") == files[0]
    for _ in range(3):
        browser.press("ArrowRight")
    assert browser.value(f"({source})(at('stage').firstChild)") == files[0]

    browser.open(f"{url}#vote")
    browser.wait("!at('left').disabled")
    assert "the picture in the middle?" in " ".join(texts(browser, ".question")[0].split())
    sample = browser.value("booth.current.sample")
    shown = browser.value(f"[...document.querySelectorAll('#pair img')].map({source})")
    assert len(shown) == 3 and shown[1] == files[sample]
    # Through the hole the ground is seen.
    ground = "getComputedStyle(document.querySelectorAll('#pair img')[{}]).backgroundImage"
    assert "conic-gradient" in browser.value(ground.format(1))
    assert browser.value(ground.format(0)) == "none"
    vote(browser, lambda left: "ArrowLeft")
    browser.wait("!at('left').disabled")
    sample = browser.value("booth.current.sample")
    browser.press("z")
    browser.press("ArrowRight")
    assert browser.value(f"({source})(at('stage').firstChild)") == files[sample]
    # All three fit into the window, also a small one.
    for width in (1280, 400):
        browser.call("Emulation.setDeviceMetricsOverride",
                     width=width, height=720, deviceScaleFactor=1, mobile=False)  # fmt: skip
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    assert not browser.problems
    for file in files:
        (tmp_path / "page" / file).unlink()
    browser.open(f"{url}#vote")
    browser.wait("!at('missing').hidden")
    assert browser.value("at('left').disabled")


def test_pages_of_other_content_have_votes_of_their_own(browser, tmp_path):
    for shade in (0, 1):
        write(tmp_path / f"page{shade}", shade)
    urls = [(tmp_path / f"page{shade}" / "index.html").as_uri() for shade in (0, 1)]
    browser.open(f"{urls[0]}#vote")
    vote(browser, lambda left: "ArrowLeft")
    browser.open(f"{urls[1]}#vote")
    assert browser.value("state.votes.length") == 0
    browser.value("localStorage.setItem(STORE, '{damaged')")
    browser.open(f"{urls[1]}#vote")
    vote(browser, lambda left: "ArrowLeft")
    browser.open(f"{urls[0]}#vote")
    assert browser.value("state.votes.length") == 1
    # Without its picture a pair gets no vote.
    for picture in (tmp_path / "page1" / "pictures").iterdir():
        picture.unlink()
    browser.open(f"{urls[1]}#vote")
    browser.wait("!at('missing').hidden")
    assert browser.value("at('left').disabled")
