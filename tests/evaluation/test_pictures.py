"""PNGs hold the samples that they were given."""

import io

import numpy as np
import pytest
from PIL import Image

from ladd_jax.evaluation.pictures import Grid, curves, png, save_grid_png


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_enlarges_each_pixel_without_smoothing(channels):
    image = np.linspace(-1, 1, 4 * 6 * channels).reshape(4, 6, channels)
    shown = pixels(png(image, 3))
    expected = np.round((image + 1) * 127.5).squeeze()
    np.testing.assert_array_equal(shown[1::3, 1::3], expected)
    np.testing.assert_array_equal(shown[::3, ::3], shown[2::3, 2::3])


def test_what_is_outside_the_range_or_no_number_is_clipped():
    shown = pixels(png(np.array([[[-5.0], [5.0], [np.nan]]]), 1))
    np.testing.assert_array_equal(shown, [[0, 255, 128]])


def test_a_picture_shows_black_samples_black_and_white_ones_white(tmp_path):
    black = Grid("teacher", "8x8", np.full((4, 2, 8, 8, 1), -1.0), list("abcd"))
    white = Grid("student", "8x8", np.full((4, 2, 8, 8, 1), 1.0), list("abcd"))
    save_grid_png(tmp_path / "a.png", [black, black])
    save_grid_png(tmp_path / "b.png", [black, white])
    save_grid_png(tmp_path / "c.png", [white, white])
    dark = [np.mean(np.asarray(Image.open(tmp_path / f"{n}.png").convert("L")) < 20) for n in "abc"]
    assert dark[0] > 1.8 * dark[1] > 0.2 and dark[2] < 0.05


def test_long_prompts_are_wrapped_above_their_columns_and_not_cut(tmp_path):
    prompts = ["a yellow three, a yellow seven and a yellow eight", "seven"]
    grid = Grid("a", "8x8", np.full((2, 1, 8, 8, 1), 1.0), prompts)
    save_grid_png(tmp_path / "a.png", [grid])
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    rows = np.flatnonzero((shown < 128).any(axis=1))
    assert rows[0] > 3 and len(rows) > 60


def test_a_picture_of_different_prompts_is_refused(tmp_path):
    images = np.zeros((1, 2, 8, 8, 1))
    with pytest.raises(ValueError, match="2 sets of prompts"):
        save_grid_png(
            tmp_path / "a.png", [Grid("a", "8x8", images, ["x"]), Grid("b", "8x8", images, ["y"])]
        )
    with pytest.raises(ValueError, match="0 sets"):
        save_grid_png(tmp_path / "a.png", [])


def test_a_grid_needs_a_prompt_for_each_row():
    with pytest.raises(ValueError, match="2 prompts"):
        Grid("a", "8x8", np.zeros((3, 2, 8, 8, 1)), ["x", "y"])


def test_curves_have_a_panel_for_each_metric_that_was_recorded():
    one = [{"step": s, "loss": 1.0} for s in range(3)]
    two = [{"step": s, "loss": 1.0, "gradient_norm": 2.0} for s in range(3)]
    assert pixels(curves("pretrain", two)).shape[1] == 2 * pixels(curves("pretrain", one)).shape[1]
    assert curves("pretrain", []) is None


def test_curves_of_the_student_have_a_panel_for_the_loss_of_each_term():
    def width(*terms):
        losses = {f"loss/{term}": 1.0 for term in ("generator", "discriminator", *terms)}
        return pixels(curves("distil", [{"step": s} | losses for s in range(3)])).shape[1]

    assert width("consistency", "term_of_a_package") == 3 * width()


def test_curves_of_previews_have_a_panel_for_each_metric_and_a_line_for_each_number_of_steps():
    def records(metrics, steps):
        names = [f"preview/{metric}/{n}" for metric in metrics for n in steps]
        return [{"step": s} | {name: 0.5 + s for name in names} for s in range(3)]

    one, many = (pixels(curves("distil", records(("fd",), steps))) for steps in ((1,), (1, 2, 4)))
    assert one.shape == many.shape

    def colours(picture):
        return len({tuple(c) for c in picture.reshape(-1, 4) if c[3] == 255 and np.ptp(c) > 60})

    assert colours(many) > colours(one)
    # Five panels stand in two rows of up to four.
    five = pixels(curves("distil", records("abcde", (1,))))
    assert five.shape[:2] == (2 * one.shape[0], 4 * one.shape[1])
