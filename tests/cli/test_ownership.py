"""A workdir has one job at a time, and a dead one does not keep it."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ladd_jax.cli.ownership import OWNER, READERS, Owner, check_unread, owned, reading
from ladd_jax.errors import ExistsError

ROOT = Path(__file__).parents[2]

# Owns a workdir, says so, and stays.
STAYS = """
import sys, time
from pathlib import Path
from ladd_jax.cli.ownership import owned
with owned(Path(sys.argv[1]), beat_seconds=0.1):
    print("owns", flush=True)
    time.sleep(60)
"""


def staying(workdir):
    process = subprocess.Popen(
        [sys.executable, "-c", STAYS, workdir],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "owns\n"
    return process


def write(workdir, age=0.0, **changes):
    """The file of an owner that differs from this process, touched some seconds ago."""
    owner = dataclasses.replace(Owner.here(), **changes)
    path = workdir / OWNER
    path.write_text(json.dumps(dataclasses.asdict(owner)))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_second_job_is_refused_and_told_whose_the_workdir_is(tmp_path):
    with owned(tmp_path / "run"):
        with pytest.raises(ValueError, match=rf"belongs to process {os.getpid()} on .*--workdir"):
            with owned(tmp_path / "run"):
                pass
        assert (tmp_path / "run" / OWNER).exists()
    assert not list((tmp_path / "run").iterdir())


def test_a_job_that_fails_leaves_its_workdir(tmp_path):
    with pytest.raises(KeyError), owned(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reaped", [True, False])
def test_a_job_that_was_killed_is_taken_over_from_at_once(tmp_path, reaped):
    with staying(tmp_path) as process:
        with pytest.raises(ValueError, match=f"process {process.pid} on"), owned(tmp_path):
            pass
        process.kill()
        # A process that its parent has not asked for keeps its number.
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with owned(tmp_path):
            assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    write(tmp_path, started="1")
    with owned(tmp_path):
        pass


def test_an_owner_on_another_machine_is_dead_when_its_file_was_not_touched_for_long(tmp_path):
    write(tmp_path, age=100, machine="another")
    with owned(tmp_path, dead_seconds=60):
        pass


def test_whether_an_owner_on_another_machine_lives_is_waited_for(tmp_path):
    write(tmp_path, machine="another", host="far")
    begun = time.monotonic()
    with owned(tmp_path, dead_seconds=0.5):
        assert time.monotonic() - begun > 0.5
    path = write(tmp_path, machine="another", host="far")
    beat = threading.Timer(0.3, os.utime, [path])
    beat.start()
    with pytest.raises(ValueError, match="on far, which is running"), owned(tmp_path):
        pass
    assert path.exists()


def test_a_copy_of_a_workdir_does_not_belong_to_the_owner_of_the_first(tmp_path):
    with owned(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with owned(tmp_path / "copy", dead_seconds=0.1):
            pass
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(ExistsError, match="which is running"), owned(tmp_path / "moved"):
            pass


def test_data_that_were_copied_while_a_job_read_them_may_change(tmp_path):
    (tmp_path / "data").mkdir()
    with reading(tmp_path / "data"):
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
        check_unread(tmp_path / "copy", dead_seconds=0.1)
        with pytest.raises(ExistsError, match="is read by"):
            check_unread(tmp_path / "data")


def test_a_damaged_file_is_that_of_an_owner_elsewhere(tmp_path):
    (tmp_path / OWNER).write_text('{"host": "x"')
    with owned(tmp_path, dead_seconds=0.1):
        assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()


def test_a_link_to_nothing_is_told_and_not_waited_for(tmp_path):
    (tmp_path / OWNER).symlink_to("nowhere")
    with pytest.raises(ExistsError, match="is a link to nothing: remove it"), owned(tmp_path):
        pass


class Stale:
    """A file of a mounted bucket that another host writes before this one has closed it."""

    def __init__(self, before_close):
        self._before_close = before_close

    def __enter__(self):
        return self

    def write(self, text):
        pass

    def __exit__(self, *raised):
        self._before_close()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_of_two_hosts_that_make_the_file_of_a_bucket_at_once_the_later_is_refused(
    tmp_path, monkeypatch
):
    opened = Path.open

    def open_(path, mode="r", **options):
        if mode == "x":
            return Stale(lambda: write(tmp_path, machine="another", host="far"))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_)
    beat = threading.Timer(0.3, os.utime, [tmp_path / OWNER])
    beat.start()
    with pytest.raises(ExistsError, match="on far, which is running"), owned(tmp_path):
        pass


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    write(tmp_path, age=100, machine="another")
    loads = [OSError(errno.ESTALE, os.strerror(errno.ESTALE))]
    load = json.load

    def load_(file):
        if loads:
            raise loads.pop()
        return load(file)

    monkeypatch.setattr(json, "load", load_)
    with owned(tmp_path, dead_seconds=60):
        assert not loads


def test_a_job_that_stood_still_and_was_taken_over_from_ends(tmp_path):
    with staying(tmp_path) as process:
        write(tmp_path)
        assert process.wait(20) == 1
        assert "taken over by another job" in process.stderr.read()
    assert (tmp_path / OWNER).exists()


def test_many_jobs_read_data_and_none_changes_them_meanwhile(tmp_path):
    with reading(tmp_path):
        with reading(tmp_path), owned(tmp_path, "data"):
            words = rf"is read by process {os.getpid()} on .*, which is running: .* another --data"
            with pytest.raises(ValueError, match=words):
                check_unread(tmp_path)
        assert len(list((tmp_path / READERS).iterdir())) == 1
    assert not list(tmp_path.iterdir())
    check_unread(tmp_path)


def test_a_reader_that_died_is_in_nobodys_way(tmp_path):
    (tmp_path / READERS).mkdir()
    write(tmp_path, started="1").rename(tmp_path / READERS / "0f.json")
    check_unread(tmp_path)
    assert not list((tmp_path / READERS).iterdir())
