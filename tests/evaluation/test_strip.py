"""Pictures from while a student trained are kept whole and found again."""

import io

import numpy as np
from PIL import Image

from ladd_jax.evaluation.strip import read_previews, save_preview


def test_previews_of_a_few_steps_are_found_with_the_first_and_the_last(tmp_path):
    for step in range(100, 1200, 100):
        for steps in (1, 4):
            save_preview(tmp_path, step, steps, "8x16", np.full((8, 16, 1), step / 1200))
    (tmp_path / "000100_1steps_8x16.partial").write_bytes(b"cut")
    (tmp_path / "mine.png").write_bytes(b"other")
    found = read_previews(tmp_path, count=3)
    assert [(p.step, p.steps, p.bucket) for p in found] == [
        (step, steps, "8x16") for step in (100, 600, 1100) for steps in (1, 4)
    ]
    pixels = np.asarray(Image.open(io.BytesIO(found[-1].png)))
    # Enlarged eleven times.
    assert pixels.shape == (88, 176) and (pixels == round((1100 / 1200 + 1) * 127.5)).all()


def test_a_step_that_is_done_again_replaces_its_picture(tmp_path):
    for value in (-1.0, 1.0):
        save_preview(tmp_path / "previews", 5, 2, "8x8", np.full((8, 8, 3), value))
    (only,) = read_previews(tmp_path / "previews")
    assert np.asarray(Image.open(io.BytesIO(only.png))).min() == 255


def test_a_run_without_previews_has_none(tmp_path):
    assert read_previews(tmp_path / "previews") == []
