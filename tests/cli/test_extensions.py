"""What other packages add to the tables is there before a command reads a config."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ladd_jax.cli.extensions import load_extensions
from ladd_jax.errors import UserError
from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from ladd_jax.objectives.ladd_settings import LADDSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package of one module, given its name and text, for one test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    named = []

    def install(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        about = tmp_path / f"{name}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[ladd_jax]\n{name} = {name}\n")
        named.append(name)

    yield install
    for name in named:
        sys.modules.pop(name, None)


LOSS = """
from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES
ADVERSARIAL_LOSSES["theirs"] = ADVERSARIAL_LOSSES["softplus"]
"""


def test_an_installed_package_adds_a_loss_that_settings_may_name(install):
    before = dict(ADVERSARIAL_LOSSES)
    install("theirs", LOSS)
    with pytest.raises(UserError, match="loss 'theirs' is not one of hinge"):
        LADDSettings(loss="theirs", warmup_steps=0)
    try:
        load_extensions()
        assert LADDSettings(loss="theirs", warmup_steps=0).loss == "theirs"
    finally:
        ADVERSARIAL_LOSSES.clear()
        ADVERSARIAL_LOSSES.update(before)


def test_a_package_that_cannot_be_imported_is_named(install):
    install("broken", "import nothing_of_this_name")
    with pytest.raises(
        UserError, match=r"extension broken \(broken\) cannot be imported .*nothing_of_this_name"
    ):
        load_extensions()


SECTION = """
import dataclasses
from ladd_jax.config.own import SECTIONS, Section
from ladd_jax.ranges import NOT_NEGATIVE, check_numbers

@dataclasses.dataclass(frozen=True)
class Theirs:
    weight: float = 0.0
    def __post_init__(self):
        check_numbers(self, {"weight": NOT_NEGATIVE})

SECTIONS["theirs"] = Section(Theirs(), beside="distil")
"""


def test_a_command_line_sets_fields_that_a_package_added(install, tmp_path):
    install("theirs", SECTION)
    command = [sys.executable, "-m", "ladd_jax.main", "--config=digits", "--workdir=run"]
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    for field, words in (
        ("theirs.weight=-1", "error: own.theirs.weight is -1.0: use 0 or more"),
        ("theirs.wait=1", "error: unknown config field own.theirs.wait: did you mean own.theirs."),
    ):
        result = subprocess.run(
            [*command, f"--config.own.{field}"],
            env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert result.returncode == 2
        assert result.stderr.startswith(words)


def test_fields_of_a_package_that_is_gone_name_it(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import digits\n\ndef get_config():\n    config = digits.get_config()\n"
        "    config.own.theirs.weight = 0.1\n    return config\n"
    )
    for given in (["--config=digits", "--config.own.theirs.weight=1"], ["--config=mine.py"]):
        result = subprocess.run(
            [sys.executable, "-m", "ladd_jax.main", "--workdir=run", *given],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 2
        assert result.stderr == (
            "error: unknown config field own.theirs, of a package that is not installed here: "
            "install it, or leave the field out\n"
        )


def test_commands_without_a_config_file_import_them_too(install, tmp_path):
    install("broken", "import nothing_of_this_name")
    command = [sys.executable, "-m", "ladd_jax.sample", "--checkpoint=run", "--out=pictures"]
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: the extension broken (broken) cannot be imported")
