"""What the documentation of extending shows runs."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ladd_jax.config.fields import base_config, typed
from ladd_jax.config.own import SECTIONS
from ladd_jax.data.conditions import CONDITIONS, Wanted
from ladd_jax.data.joined import JOINED
from ladd_jax.errors import UserError
from ladd_jax.objectives.terms.own import OWN_TERMS, own_terms
from ladd_jax.objectives.terms.reconstruction import Reconstruction

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def test_a_package_adds_settings_and_a_term_as_it_is_shown(monkeypatch):
    for table in (SECTIONS, OWN_TERMS):
        monkeypatch.setitem(table, "near", None)
    section = PAGE.read_text().split("### Settings of its own\n")[1].split("\n## ")[0]
    (shown,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(shown, {})
    config = base_config()
    assert own_terms(typed(config)) == ()
    config.own.near.weight = 0.1
    assert own_terms(typed(config)) == (Reconstruction(0.1, 5.0, "near"),)


def test_a_package_makes_conditions_of_values_as_it_is_shown(monkeypatch):
    for table, name in ((CONDITIONS, "label"), (CONDITIONS, "depth"), (JOINED, "depth")):
        monkeypatch.setitem(table, name, None)
    section = PAGE.read_text().split("### What a user gives besides the text\n")[1]
    (shown,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    exec(shown, {})
    label = Wanted((3,), encode=None, fit=None)
    np.testing.assert_array_equal(CONDITIONS["label"].read("1", label), [0, 1, 0])
    with pytest.raises(UserError, match="the class is '3': use a number below 3"):
        CONDITIONS["label"].read("3", label)
    file = io.BytesIO()
    Image.new("RGB", (4, 2)).save(file, "png")
    depth = Wanted((1, 2, 3), encode=lambda picture: picture[::2, ::2], fit=None)
    assert CONDITIONS["depth"].read(file.getvalue(), depth).shape == (1, 2, 3)
    assert JOINED["depth"].channels(16) == 16


def test_a_step_in_a_program_runs_as_it_is_shown():
    section = PAGE.read_text().split("## In a program\n")[1].split("\n## ")[0]
    (shown,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(shown, names)
    assert int(names["state"].step) == 1
    assert all(np.isfinite(names["metrics"][name]).all() for name in ("loss/generator", "r1"))
