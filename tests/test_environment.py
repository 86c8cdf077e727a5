"""What variables, devices and pipes around a command do to it."""

import asyncio
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorstore

from ladd_jax.cli import environment
from ladd_jax.cli.run import _refusing

ROOT = Path(__file__).parents[1]


def run(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | variables,
    )  # fmt: skip


def imported(**variables):
    """Settings of JAX after a command has imported it, or what the command says instead."""
    code = (
        "from ladd_jax.cli.environment import import_jax\n"
        "from ladd_jax.cli.run import _refusing\n"
        "with _refusing(): config = import_jax().config\n"
        "print(config.jax_enable_x64, config.jax_default_prng_impl,"
        " config.jax_threefry_partitionable, config.jax_random_seed_offset)"
    )
    return run(code, **variables)


def test_what_is_drawn_does_not_depend_on_variables_of_the_shell():
    found = imported(
        JAX_ENABLE_X64="1",
        JAX_DEFAULT_PRNG_IMPL="unsafe_rbg",
        JAX_THREEFRY_PARTITIONABLE="0",
        JAX_RANDOM_SEED_OFFSET="3",
    )
    assert found.stdout == "False threefry2x32 True 0\n"


def test_a_variable_that_jax_refuses_is_a_sentence():
    found = imported(JAX_ENABLE_X64="maybe")
    assert found.returncode == 2
    assert found.stderr == (
        "error: JAX refuses a variable of the environment (invalid truth value 'maybe' for "
        "environment 'JAX_ENABLE_X64'): correct it, or unset it\n"
    )


@pytest.mark.parametrize(
    ("platforms", "words"),
    [
        ("cpux", "Unable to initialize backend 'cpux'"),
        ("cuda", "their plugin is not installed"),
    ],
)
def test_devices_that_are_not_to_be_had_are_a_sentence(platforms, words):
    code = (
        "from ladd_jax.cli.environment import import_jax\n"
        "from ladd_jax.cli.run import _refusing\n"
        "with _refusing(): import_jax().devices()"
    )
    found = run(code, JAX_PLATFORMS=platforms)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    said = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and said[0].startswith(
        f"error: there are no devices of JAX_PLATFORMS={platforms} to compute on ({words}"
    )


def test_another_assertion_keeps_its_traceback():
    with pytest.raises(AssertionError), _refusing():
        raise AssertionError


def test_writes_that_end_late_print_no_traceback(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))
    environment.drop_late_answers()
    promise, future = tensorstore.Promise.new()

    async def wait():
        await future

    async def stop_waiting():
        asyncio.get_running_loop().create_task(wait())
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    loop.run_until_complete(stop_waiting())
    loop.close()
    promise.set_result(None)
    assert told == []

    class Fails:
        def __del__(self):
            raise OSError

    Fails()
    assert [type(error) for error in told] == [OSError]


def test_letters_that_the_output_cannot_show_are_written_as_numbers(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
    environment.write_all_letters()
    print("\u732b")
    assert shown.getvalue() == b"\\u732b\n"


@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_nobody_reads_any_more_is_a_sentence(buffered, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    raw = os.fdopen(write, "wb", -1 if buffered else 0)
    with io.TextIOWrapper(raw, write_through=not buffered) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as ended, _refusing():
            print("a table", flush=True)
        print("the rest", flush=True)
    assert ended.value.code == 2
    assert "what reads this command's output has ended" in capsys.readouterr().err


def test_another_broken_pipe_keeps_its_traceback():
    with pytest.raises(BrokenPipeError), _refusing():
        raise BrokenPipeError
