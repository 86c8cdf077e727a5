"""What a command finds around it: variables that JAX reads, devices, and what reads its output."""

import io
import os
import select
import sys
import traceback
from pathlib import Path
from types import ModuleType

from ladd_jax.errors import UserError, brief

_SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
}
"""Settings of JAX that results depend on. They are the same for every command, whatever variables
such as `JAX_ENABLE_X64` say: else a run that goes on in another shell would be another run."""


def import_jax() -> ModuleType:
    """Imports JAX, with settings on which results depend at their defaults.

    Raises:
      UserError: a variable has a value that JAX does not accept.
    """
    try:
        import jax
    except ValueError as error:
        # JAX reads its variables when it is imported.
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
        places = traceback.extract_tb(error.__traceback__)
        if not places or Path(places[-1].filename).name != "xla_bridge.py":
            return ""
        reason = "what drives them is not installed"
    elif not (isinstance(error, RuntimeError) and reason.startswith("Unable to initialize")):
        return ""
    platforms = os.environ.get("JAX_PLATFORMS")
    asked = f" of JAX_PLATFORMS={platforms}" if platforms else ""
    return (
        f"there are no devices{asked} to compute on ({reason}): end the job that uses them, "
        f"install what drives them, or name others by the variable JAX_PLATFORMS, such as cpu"
    )


def write_all_letters() -> None:
    """Makes the output show letters that its encoding does not have as their numbers."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def is_unread() -> bool:
    """Whether what read this process's output has ended; all further output is dropped then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    unread = any(event & select.POLLERR for _, event in poll.poll(0))
    if unread:
        # Python writes what is left once more when it ends, and would report the same error.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return unread
