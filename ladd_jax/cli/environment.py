"""What a command finds around it: variables that JAX reads, devices, and what reads its output."""

import io
import os
import select
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ladd_jax.errors import UserError, brief

_SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}
"""Settings of JAX that decide dtypes and what is drawn. They are the same for every command,
whatever variables such as `JAX_ENABLE_X64` say: else a run that goes on in another shell would be
another run."""


def import_jax() -> ModuleType:
    """Imports JAX, with the settings that decide dtypes and what is drawn at their defaults.

    Raises:
      UserError: a variable has a value that JAX does not accept.
    """
    try:
        import jax
    except ValueError as error:
        # JAX reads its variables when it is imported.
        if not _is_raised_by(error, "config.py"):
            raise
        raise UserError(
            f"JAX refuses a variable of the environment ({brief(error)}): correct it, or unset it"
        ) from error
    for name, value in _SETTINGS.items():
        jax.config.update(name, value)
    return jax


def no_devices(error: BaseException) -> str:
    """One sentence for a user about the devices that JAX did not get; empty for another error.

    JAX looks for devices at their first use.
    """
    reason = brief(error).rstrip(".")
    if isinstance(error, AssertionError):
        # Fails in JAX where a platform is known, but its plugin is not installed.
        if not _is_raised_by(error, "xla_bridge.py"):
            return ""
        reason = "their plugin is not installed"
    elif not (isinstance(error, RuntimeError) and reason.startswith("Unable to initialize")):
        return ""
    platforms = os.environ.get("JAX_PLATFORMS")
    asked = f" of JAX_PLATFORMS={platforms}" if platforms else ""
    return (
        f"there are no devices{asked} to compute on ({reason}): end the job that uses them, "
        f"install their plugin or driver, or name others by the variable JAX_PLATFORMS, such as cpu"
    )


def _is_raised_by(error: BaseException, name: str) -> bool:
    """Whether an error comes from the file of this name in JAX."""
    places = traceback.extract_tb(error.__traceback__)
    return bool(places) and Path(places[-1].filename).parts[-3:] == ("jax", "_src", name)


def drop_late_answers() -> None:
    """Leaves out the tracebacks of writes that end after Orbax has stopped waiting for them.

    It stops at the first write of a checkpoint that fails, and raises its error. TensorStore's
    threads report the others to an event loop that is closed by then.
    """
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        found = unraisable.exc_value
        if not (isinstance(found, RuntimeError) and str(found) == "Event loop is closed"):
            hook(unraisable)

    sys.unraisablehook = quiet


def write_all_letters() -> None:
    """Makes the output show letters that its encoding does not have as their numbers."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def is_unread() -> bool:
    """Whether what read this process's output has ended; all further output is dropped then."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError):
        return False  # There is no output, or a stand-in for it.
    poll = select.poll()
    poll.register(number, 0)
    # A pipe tells an error, and a socket that the other end hung up.
    unread = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if unread:
        # Python writes what is left once more when it ends, and would report the same error.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return unread
