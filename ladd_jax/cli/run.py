"""A command: its processes meet, and errors for the user become one sentence and exit code 2."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import absl.flags
import jax
from absl import app
from absl import logging as absl_logging

from ladd_jax.cli import flags
from ladd_jax.cli.compilation_cache import keep_programs
from ladd_jax.cli.disk_errors import disk_error
from ladd_jax.cli.preflight import check
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import Config, to_dict, typed
from ladd_jax.config.workdir import settle, settled
from ladd_jax.errors import UserError
from ladd_jax.parallel import processes

Command = Callable[[Config, Path], Any]


def run(command: Command, others: absl.flags.FlagValues | None = None) -> None:
    """Runs a command on the config and workdir of the command line.

    Args:
      command: the command.
      others: flags by which it is another command, without config; `--help` lists them.
    """

    def body() -> None:
        if not flags.WORKDIR.value:
            flags.fail("--config=NAME and --workdir=DIR are needed, such as --config=digits")
        workdir, config = Path(flags.WORKDIR.value), _config()
        check(config)
        settings = to_dict(config)
        processes.check_same("config", settings)
        if jax.process_index() == 0:
            settle(workdir, settings)
        # The others do not look before: a network disk would remember that there was nothing.
        processes.barrier("settled")
        if not settled(workdir):
            raise UserError(
                f"process {jax.process_index()} does not see the {workdir} that process 0 "
                f"made: give a --workdir on a disk that all processes share"
            )
        keep_programs(config.compilation_cache, workdir)
        command(config, workdir)

    names = ["config", "workdir", "weights", "prompts", "images", "profile"]
    if others is not None:
        absl.flags.FLAGS.append_flag_values(others)
        names += others
    _start(body, *names)


def run_without_config(body: Callable[[], None], own: absl.flags.FlagValues, *others: str) -> None:
    """Runs a command that has flags of its own, and no config on the command line.

    Args:
      body: the command.
      own: its flags. They join absl's here, so that modules of several commands, which may have
        flags of one name, can be imported together.
      *others: names of the shared flags that it reads, too.
    """
    absl.flags.FLAGS.append_flag_values(own)

    def main() -> None:
        own.mark_as_parsed()
        flags.refuse(*others)
        body()

    _start(main, *own, *others)


def run_without_workdir(body: Callable[[Config], None], own: absl.flags.FlagValues) -> None:
    """Runs a command on a config and flags of its own; nothing is checked against this machine."""
    others = ("config", "weights", "prompts", "images")
    absl.flags.FLAGS.append_flag_values(own)

    def main() -> None:
        own.mark_as_parsed()
        flags.refuse(*others)
        body(_config())

    _start(main, *own, *others)


def _config() -> Config:
    """The config of the command line, with what its weights say of their networks."""
    config = flags.config()
    if config is None:
        flags.fail("--config=NAME is needed, such as --config=digits or --config=my/config.py")
    # Weights that are named by their place on the hub are fetched once for a host.
    with processes.one_of_each_host_first("weights"):
        read_architectures(config)
    flags.check_overrides(config)
    return typed(config)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Turns errors for the user, of disks and paths too, into one sentence and exit code 2."""
    try:
        yield
    except UserError as error:
        flags.fail(error)
    except Exception as error:
        sentence = disk_error(error)
        if not sentence:
            raise
        flags.fail(sentence)


def _start(body: Callable[[], None], *read: str) -> None:
    """Runs a command; `--help` lists the flags that it reads, and `join_timeout`."""
    for name in (*read, "join_timeout"):
        absl.flags.FLAGS.register_key_flag_for_module(sys.argv[0], absl.flags.FLAGS[name])

    def main(arguments: Sequence[str]) -> None:
        if len(arguments) > 1:
            flags.fail(f"unexpected argument {arguments[1]!r}: flags look like --workdir=DIR")
        # Orbax tells of each of its steps through absl; here its warnings are enough.
        absl_logging.set_verbosity(absl_logging.ERROR)
        with _failing(), processes.together(flags.JOIN_TIMEOUT.value), _failing():
            first = jax.process_index() == 0
            logging.getLogger("ladd_jax").addHandler(_handler())
            logging.getLogger("ladd_jax").setLevel(logging.INFO if first else logging.WARNING)
            body()

    app.run(main, flags_parser=flags.parse)


def _handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler
