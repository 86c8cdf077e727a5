"""What the documentation of extending shows runs."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def test_a_step_in_a_program_runs_as_it_is_shown():
    section = PAGE.read_text().split("## In a program\n")[1].split("\n## ")[0]
    (shown,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(shown, names)
    assert int(names["state"].step) == 1
    assert all(np.isfinite(names["metrics"][name]).all() for name in ("loss/generator", "r1"))
