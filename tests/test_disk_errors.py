"""What a disk or a path refuses is one sentence at the command line, with exit code 2."""

import errno
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ladd_jax.cli.disk_errors import disk_error
from ladd_jax.cli.run import _refusing
from ladd_jax.config.workdir import settle
from ladd_jax.data.images import memory_for
from ladd_jax.whole_files import write_text_whole

ROOT = Path(__file__).parents[1]


def shown(body, capsys):
    with pytest.raises(SystemExit) as ended, _refusing():
        body()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_too_little_memory_is_a_sentence_that_names_what_it_was_for(capsys):
    def body():
        with memory_for("picture b.png"):
            np.empty(2**60, np.uint8)

    line = shown(body, capsys)
    assert line.startswith("error: there is no free memory (Unable to allocate 1.00 EiB for an arr")
    assert ", for picture b.png): end what else uses it, or take a machine that has more" in line


def test_a_workdir_that_cannot_be_made_is_a_sentence_with_the_path(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place, words in (
        (tmp_path / "file" / "run", "Not a directory: a part of the path is a file"),
        (tmp_path / ("x" * 300), "File name too long: use shorter names"),
    ):
        line = shown(lambda place=place: settle(place, {}), capsys)
        assert line.startswith(f"error: {place}") and words in line


def test_a_full_disk_is_a_sentence_and_leaves_no_part_of_a_file(tmp_path, capsys):
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, most))
    try:
        line = shown(lambda: write_text_whole(tmp_path / "a.json", "x" * 100), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert "File too large" in line and "free space" in line
    assert list(tmp_path.iterdir()) == []


def test_of_a_copy_that_does_not_fit_the_copy_is_named(tmp_path, capsys):
    (tmp_path / "a").write_text("x" * 100)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, most))
    try:
        line = shown(lambda: shutil.copyfile(tmp_path / "a", tmp_path / "copy"), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert line.startswith(f"error: {tmp_path / 'copy'}: File too large: free space there")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_the_disk_is_named_behind_another_librarys_error(number):
    error = RuntimeError("cannot write")
    error.__cause__ = OSError(number, "no", "/data/run")
    assert disk_error(error).startswith("/data/run: ")


def test_a_current_folder_that_is_gone_is_a_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    line = shown(lambda: settle(Path("run").absolute(), {}), capsys)
    assert line == "error: the current folder was moved or removed: change to one that exists"


def test_what_is_no_fault_of_a_path_keeps_its_traceback():
    for error in (
        ValueError("x"),
        OSError("without a number"),
        ConnectionResetError(errno.ECONNRESET, "gone"),
        FileNotFoundError(errno.ENOENT, "of no path"),
    ):
        assert disk_error(error) == ""
        with pytest.raises(type(error)), _refusing():
            raise error


@pytest.mark.parametrize(("file", "shown"), [("orbax/checkpoint/future.py", 0), ("other.py", 1)])
def test_tracebacks_of_orbaxs_threads_are_not_shown(file, shown):
    # A command prints the sentence of the same error, which Orbax raises where it is waited for.
    code = (
        "from absl import logging\n"
        "try:\n"
        "    raise OSError('no space left')\n"
        "except OSError:\n"
        "    logging.exception('a thread raised an exception')\n"
    )
    script = (
        "from absl.flags import FlagValues\n"
        "from ladd_jax.cli.run import run_without_config\n"
        "def main():\n"
        f"    exec(compile({code!r}, '/lib/{file}', 'exec'), dict(__name__='{file}'))\n"
        "run_without_config(main, FlagValues(), needed={})\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("a thread raised an exception") == shown
    assert found.stderr.count("Traceback") == shown
