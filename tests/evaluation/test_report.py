"""The page opens offline and holds everything it was given."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ladd_jax.evaluation.guidance import guidance_plot
from ladd_jax.evaluation.pictures import Grid, png
from ladd_jax.evaluation.report import write_report
from ladd_jax.evaluation.rows import Row
from ladd_jax.evaluation.strip import Preview


def row(model: str, steps: int, fd: float, alignment: float, diversity: float) -> Row:
    values = {"fd": fd, "alignment": alignment, "diversity": diversity}
    return Row(model, steps, 1.0, "8x8", values, {"fd": (fd - 0.02, fd + 0.02)})


ROWS = [
    row("generator", 25, 0.211, 0.953, 2.013),
    row("teacher", 50, 0.511, 0.951, 2.011),
    row("untrained", 4, 6.017, 0.713, 1.817),
    row("student", 4, 0.617, 0.909, 1.513),
]
HISTORIES = {
    "pretrain": [{"step": s, "loss": 1 / s, "gradient_norm": 1.0} for s in range(1, 9)],
    "distil": [{"step": s, "loss/generator": 0.1, "logit/real": [0.1, 0.3]} for s in range(1, 9)],
    "edit": [{"step": 1, "loss": 2.0}],
}


def grid(title: str, prompts: tuple[str, ...] = ("seven", "<b>nine & co")) -> Grid:
    images = np.random.default_rng(0).uniform(-1, 1, (len(prompts), 3, 8, 8, 1))
    return Grid(title, "8x8", images, prompts)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    grids = [grid("teacher 50"), grid("student 4")]
    write_report(path, ROWS, grids, HISTORIES, {"distil.steps": 600}, ["a < b"])
    return path.read_text(encoding="utf-8")


def test_a_student_at_several_scales_is_drawn_over_guidance(tmp_path):
    def at(model, guidance):
        return dataclasses.replace(row(model, 4, 0.5, 0.9, 2.0), guidance=guidance, bucket="all")

    for scales, drawn in (((4.0,), False), ((4.0, 1.0, 2.0), True)):
        rows = [at(model, scale) for model in ("generator", "student") for scale in scales]
        write_report(tmp_path / "report.html", rows, [], {})
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert ("metrics over guidance" in text) == drawn
    # Where the student has one scale only the data generator was sampled at several.
    assert guidance_plot([at("generator", 1.0), at("generator", 2.0), at("student", 1.0)]) is None


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in Tags(page).found:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "data", "action", "background"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png")
    assert not re.search(r"@import|url\(|https?://", page)


def test_every_row_is_in_the_table(page):
    for row in ROWS:
        for value in row.values.values():
            assert f"{value:#.3g}" in page
    assert "0.617 ± 0.020" in page


def test_the_student_is_held_against_its_limits(page):
    assert "✓ 0.10x" in page and "untrained student&#x27;s: at most 0.12x" in page
    assert "✓ 2.92x" in page and "at most 3x" in page
    assert "✗ -0.042" in page and "at least -0.01" in page
    assert "✗ 0.75x" in page and "0.9 to 1.1x" in page


def test_there_is_a_picture_for_each_sample_and_a_plot_for_each_stage(page):
    images = [attributes for tag, attributes in Tags(page).found if tag == "img"]
    assert len(images) == 2 * 2 * 3 + len(HISTORIES)
    assert all(attributes["alt"] for attributes in images)


def test_text_is_escaped(page):
    assert "&lt;b&gt;nine &amp; co" in page and "a &lt; b" in page and "<b>" not in page


def test_settings_and_metrics_are_explained(page):
    assert "distil.steps" in page and "held-out samples of the data generator" in page


def test_a_run_without_student_grids_or_history_still_has_a_page(tmp_path):
    write_report(tmp_path / "r.html", ROWS[:1], [], {"pretrain": []})
    assert "0.211" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_grids_of_different_prompts_are_not_put_side_by_side(tmp_path):
    with pytest.raises(ValueError, match="different prompts"):
        write_report(tmp_path / "r.html", ROWS, [grid("a"), grid("b", ("one", "two"))], {})


def test_a_strip_shows_the_student_while_it_trained(tmp_path):
    image = png(np.zeros((8, 8, 1)), 2)
    shown = [Preview(step, n, "8x8", image) for step in (100, 200) for n in (1, 4)]
    write_report(tmp_path / "r.html", ROWS[:1], [], {}, previews=shown[:-1])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "during training" in page and "<th>step 200</th>" in page
    images = [attributes for tag, attributes in Tags(page).found if tag == "img"]
    assert [image["alt"] for image in images] == [
        "1 step, 8x8, at step 100", "1 step, 8x8, at step 200", "4 steps, 8x8, at step 100",
    ]  # fmt: skip
    assert {image["width"] for image in images} == {"16"}
