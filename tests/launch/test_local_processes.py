"""`launch/local_processes.sh`: several processes that begin and end as one."""

import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "local_processes.sh"


def run(*arguments, **options):
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=60, **options
    )


def told_to_stop(folder, script):
    """The exit code after SIGTERM, once both processes of a job have written into a folder."""
    with subprocess.Popen([SCRIPT, "2", "bash", "-c", script]) as process:
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.05)
        process.terminate()
        return process.wait()


def test_every_process_learns_its_place_and_the_first_one_is_shown(tmp_path):
    variables = "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES"
    script = f'echo "{variables} $XLA_FLAGS" >{tmp_path}/$JAX_PROCESS_ID; echo I am $JAX_PROCESS_ID'
    result = run("-d", "2", "3", "bash", "-c", script)
    assert (result.returncode, result.stdout, result.stderr) == (0, "I am 0\n", "")
    said = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    assert sorted(said) == ["0", "1", "2"]
    assert len({address for address, *_ in said.values()}) == 1
    for address, count, *flags in said.values():
        assert address.startswith("127.0.0.1:") and count == "3"
        assert flags[-1] == "--xla_force_host_platform_device_count=2"


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_ends_all_with_its_code_and_its_last_lines(tmp_path, failing):
    script = (
        f"if [ $JAX_PROCESS_ID = {failing} ]; then echo what went wrong; exit 7; fi; "
        # What a process has started ends too.
        f"(sleep 1; touch {tmp_path}/alive) & sleep 30"
    )
    result = run("3", "bash", "-c", script)
    assert result.returncode == 7
    assert f"error: process {failing} of 3 ended with exit code 7" in result.stderr
    assert "what went wrong" in (result.stderr if failing else result.stdout)
    time.sleep(1.2)
    assert not (tmp_path / "alive").exists()


def test_ended_from_outside_it_leaves_no_process(tmp_path):
    script = f"touch {tmp_path}/$JAX_PROCESS_ID; sleep 1; touch {tmp_path}/alive"
    assert told_to_stop(tmp_path, script) == 143
    time.sleep(1.2)
    assert not (tmp_path / "alive").exists()


def test_told_to_stop_it_says_whether_the_processes_go_on_when_they_are_started_again(tmp_path):
    script = f"trap 'sleep 1; exit 75' TERM; touch {tmp_path}/$JAX_PROCESS_ID; sleep 30 & wait"
    assert told_to_stop(tmp_path, script) == 75


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage:"),
        (["2"], "usage:"),
        (["none", "true"], "PROCESSES is none"),
        (["-d", "0", "2", "true"], "-d is 0"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, words):
    result = run(*arguments)
    assert result.returncode == 2 and words in result.stderr
