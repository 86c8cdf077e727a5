"""Rows: their means, ratios, limits and form on disk."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladd_jax.errors import DamagedError
from ladd_jax.evaluation.rows import (
    BARS,
    Row,
    acceptance,
    aggregate,
    find,
    format_table,
    guidance_note,
    in_order,
    ratio,
    read_metrics,
    write_metrics,
)


def row(model: str, steps: int, fd: float, alignment: float = 0.9, bucket: str = "all") -> Row:
    values = {"fd": fd, "fd_real": 2 * fd, "alignment": alignment}
    return Row(model, steps, 1.0, bucket, values, {"fd": (fd - 0.1, fd + 0.1)})


GENERATOR, TEACHER = row("generator", 25, 0.1), row("teacher", 50, 0.5)
UNTRAINED, STUDENT = row("untrained", 4, 2.0, 0.5), row("student", 4, 0.2, 0.895)
ROWS = [GENERATOR, TEACHER, UNTRAINED, STUDENT]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=5))
@settings(deadline=None)
def test_aggregate_gives_the_mean_over_runs_inside_an_interval(values):
    (mean,) = aggregate([[row("student", 4, value)] for value in values])
    low, high = mean.intervals["fd"]
    assert mean.seeds == len(values)
    np.testing.assert_allclose(mean.values["fd"], np.mean(values))
    np.testing.assert_allclose((low + high) / 2, np.mean(values), atol=1e-9)


def test_the_interval_over_runs_is_students():
    (mean,) = aggregate([[row("student", 4, value)] for value in (1.0, 2.0, 3.0)])
    low, high = mean.intervals["fd"]
    # t = 4.3027 for two degrees of freedom, and a standard error of 1 / sqrt(3).
    assert (high - low) / 2 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def test_aggregate_of_one_run_is_that_run():
    assert aggregate([ROWS]) == ROWS


def test_a_metric_that_one_run_lacks_has_no_mean():
    without = dataclasses.replace(STUDENT, values={"fd": 0.4}, intervals={})
    (mean,) = aggregate([[STUDENT], [without]])
    assert mean.values == {"fd": pytest.approx(0.3)}


@pytest.mark.parametrize("runs", [[ROWS, ROWS[:2]], [[TEACHER, TEACHER]]])
def test_runs_of_different_rows_are_refused(runs):
    with pytest.raises(ValueError, match="the same rows"):
        aggregate(runs)


def test_rows_come_back_from_the_file_as_they_were(tmp_path):
    write_metrics(tmp_path / "metrics.json", ROWS, seconds=3.0)
    data = json.loads((tmp_path / "metrics.json").read_text())
    assert data["seconds"] == 3.0
    assert [Row.from_dict(fields) for fields in data["rows"]] == ROWS
    # And without the file, whose lists are tuples here.
    assert [Row.from_dict(dataclasses.asdict(row)) for row in ROWS] == ROWS


def test_metrics_that_are_read_again_are_those_that_were_written(tmp_path):
    write_metrics(tmp_path / "metrics.json", ROWS, step=4)
    assert read_metrics(tmp_path / "metrics.json") == (ROWS, {"step": 4})


@pytest.mark.parametrize(
    "change",
    [
        {"rows": None}, {"rows": [3]}, {"steps": "4"}, {"steps": -1}, {"guidance": 10**400},
        {"model": ["student"]}, {"values": []}, {"values": {"fd": "x"}}, {"values": {"fd": True}},
        {"intervals": {"fd": [1]}}, {"intervals": {"fd": None}}, {"seeds": math.inf}, {"other": 1},
    ],
)  # fmt: skip
def test_damaged_metrics_are_named(tmp_path, change):
    path = tmp_path / "metrics.json"
    fields = dataclasses.asdict(STUDENT) | change
    path.write_text(json.dumps({"rows": [fields]} | ({} if "rows" not in change else change)))
    with pytest.raises(DamagedError, match=r"metrics\.json is damaged .*remove it to"):
        read_metrics(path)


def test_a_number_that_is_not_finite_leaves_the_old_metrics_in_place(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, ROWS)
    before = path.read_text()
    with pytest.raises(ValueError, match="student 4 all"):
        write_metrics(path, [TEACHER, row("student", 4, math.nan)])
    assert path.read_text() == before


def test_a_student_is_compared_with_the_untrained_one_of_as_many_steps():
    rows = [*ROWS, row("untrained", 1, 9.0), row("student", 1, 0.9)]
    assert ratio(rows, STUDENT, "fd", "untrained") == pytest.approx(0.1)
    assert ratio(rows, rows[-1], "fd", "untrained") == pytest.approx(0.1)


def test_other_ratios_are_to_the_longest_sampling_in_the_same_bucket():
    rows = [*ROWS, row("teacher", 4, 0.05), row("teacher", 80, 7.0, bucket="8x8")]
    assert ratio(rows, STUDENT, "fd", "teacher") == pytest.approx(0.4)
    assert find(rows, "teacher", "8x8").steps == 80


def test_the_guidance_that_is_best_is_told_and_the_runs_own_is_what_others_are_compared_with():
    assert guidance_note(ROWS) == []
    tried = [
        dataclasses.replace(row("generator", 25, fd), guidance=scale)
        for scale, fd in ((3.0, 0.4), (1.0, 0.6), (2.0, 0.2))
    ]
    rows = in_order([STUDENT, *tried])
    assert ratio(rows, STUDENT, "fd", "generator") == pytest.approx(0.5)
    (note,) = guidance_note(rows)
    assert "Of guidance 1, 2, 3," in note and "(FD real) at 2" in note and note.endswith("is 3.")


@pytest.mark.parametrize("to", ["data", "untrained"])
def test_what_is_missing_or_zero_has_no_ratio(to):
    rows = [STUDENT, dataclasses.replace(UNTRAINED, values={"fd": 0.0})]
    assert ratio(rows, STUDENT, "fd", to) is None


def test_table_columns_are_aligned_and_hold_every_number():
    lines = format_table(ROWS).splitlines()
    assert len(lines) == len(ROWS) + 2
    for line, shown in zip(lines[2:], ROWS, strict=True):
        assert line.split()[:2] == ["all", shown.model]
        decimals = 3 if shown.values["fd"] < 1 else 2
        text = f"{shown.values['fd']:.{decimals}f} ± {0.1:.{decimals}f}"
        assert line[: lines[0].index("FD") + 2].endswith(text)
    assert "2.00x" in lines[-1], "the student's distance over the generator's own"


def test_a_metric_that_no_row_has_takes_no_column():
    assert "diversity" not in format_table(ROWS) and "FD real" in format_table(ROWS)


@pytest.mark.parametrize("bar", BARS)
def test_limits_are_met_at_the_limit_and_missed_beyond_it(bar):
    for limit, beyond in ((bar.low, -1e-6), (bar.high, 1e-6)):
        if limit is not None:
            assert bar.met(limit) and not bar.met(limit + beyond)


def test_acceptance_has_each_limit_that_there_are_numbers_for():
    reached = {(bar.metric, bar.to): value for _, bar, value in acceptance(ROWS)}
    assert reached == {
        ("fd", "untrained"): pytest.approx(0.1),
        ("fd", "generator"): pytest.approx(2.0),
        ("fd_real", "teacher"): pytest.approx(0.4),
        ("alignment", "teacher"): pytest.approx(-0.005),
    }


def test_more_steps_are_held_against_fewer():
    rows = [row("student", steps, fd) for steps, fd in ((1, 0.4), (2, 0.2), (4, 0.3))]
    reached = {bar.steps: (bar.met(value), value) for _, bar, value in acceptance(rows)}
    assert reached == {2: (True, pytest.approx(0.5)), 4: (False, pytest.approx(1.5))}


def test_scores_of_a_clip_are_not_held_against_a_limit_of_shares():
    rows = [row("teacher", 50, 0.5, 25.0), row("student", 4, 0.2, 24.0)]
    assert "alignment" not in {bar.metric for _, bar, _ in acceptance(rows)}


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123 ± 0.1000"), (12.345, "12.3 ± 0.1"), (0.0, "0.00 ± 0.10")]
)
def test_the_table_shows_three_significant_digits(value, text):
    assert text in format_table([row("generator", 25, value)])


def test_ratios_have_headings():
    heading = format_table([*ROWS, row("untrained", 1, 1.0)]).splitlines()[0]
    assert heading.split()[4:8] == ["FD", "/", "floor", "/"] and "/ teacher" in heading


def test_rows_of_a_bucket_stand_together_in_one_order_whatever_theirs():
    rows = [
        row(model, steps, 1.0, bucket=bucket)
        for bucket in ("all", "8x8")
        for model, steps in (("data", 0), ("student", 1), ("student", 4))
    ]
    assert in_order([rows[2], rows[5], rows[0], rows[4], rows[3], rows[1]]) == rows
