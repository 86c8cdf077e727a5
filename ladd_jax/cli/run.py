"""Runs a command: its processes meet, and errors for the user become one sentence and exit code 2.

A command's heavy imports come after its flags are known to be valid: JAX and what is built on it
take seconds, and a mistake should be reported at once.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import absl.flags
from absl import app
from absl import logging as absl_logging

from ladd_jax.cli import environment, flags
from ladd_jax.errors import UserError, brief
from ladd_jax.parallel import stopping

if TYPE_CHECKING:
    from ladd_jax.config.fields import Config
    from ladd_jax.errors import Problems

    Command = Callable[[Config, Path], Any]

_LOG = logging.getLogger(__name__)


def run(command: Command, others: absl.flags.FlagValues | None = None, *, stage: str = "") -> None:
    """Runs a command on the config and workdir of the command line.

    Args:
      command: the command.
      others: flags that make it another command, without a config; `--help` lists them.
      stage: the stage that the command runs, which is checked even if `stages` leaves it out; empty
        for a command that runs them all.
    """

    def body() -> None:
        from ladd_jax.cli.begin import begun
        from ladd_jax.errors import Problems
        from ladd_jax.object_store import is_address, place_of
        from ladd_jax.paths import expand, expand_local

        # All errors are reported together, and before anything is written.
        shared = "name a folder, for several hosts on a share or in a bucket that all have mounted"
        workdir = expand_local(flags.WORKDIR.value, "workdir", shared)
        given, problems = flags.DATA.value, Problems()
        data = given and str(place_of(given) if is_address(given) else expand(given))
        origin = flags.FROM.value and str(expand_local(flags.FROM.value, "from", shared))
        config, refused = _config(problems)
        with begun(
            config,
            workdir,
            data=data,
            origin=origin,
            stage=stage,
            problems=problems,
            refused=refused,
        ):
            if stage:
                _LOG.info("stage %s", stage)
            command(config, workdir)

    names = list(flags.SHARED)
    if others is not None:
        absl.flags.FLAGS.append_flag_values(others)
        names += others
    _start(body, names, needed={"config": "NAME", "workdir": "DIR"})


def run_without_config(
    body: Callable[[], None],
    own: absl.flags.FlagValues,
    *others: str,
    needed: dict[str, str],
    complete: Callable[[Sequence[str]], Sequence[str]] = lambda arguments: arguments,
) -> None:
    """Runs a command that has flags of its own, and no config to check beforehand.

    Args:
      body: the command.
      own: the command's flags. They are added to absl's only here, so that modules of several
        commands, whose flags may share names, can be imported together.
      *others: names of the shared flags that it reads, too.
      needed: flags that must be given, with what to show after their `=`.
      complete: function that completes the command line before it is parsed.
    """
    absl.flags.FLAGS.append_flag_values(own)
    _start(body, [*own, *others], own, needed, complete)


def run_without_workdir(
    body: Callable[[Config], None], own: absl.flags.FlagValues, needed: dict[str, str]
) -> None:
    """Runs a command on a config and flags of its own; nothing is checked against this machine.

    Args:
      body: the command.
      own: the command's flags.
      needed: those of its flags that must be given, with what to show after their `=`.
    """
    others = ("config", "weights", "prompts", "images", "column")
    absl.flags.FLAGS.append_flag_values(own)
    needed = {"config": "NAME"} | needed

    def with_config() -> None:
        from ladd_jax.errors import Problems

        problems = Problems()
        config, _ = _config(problems)
        problems.tell()
        body(config)

    _start(with_config, [*own, *others], own, needed)


def _config(problems: Problems) -> tuple[Config, set[str]]:
    """The config of the command line, with the sizes of networks from their weights.

    Errors are added to the problems. The second value names what they are in: sections, and fields
    that belong to no section.
    """
    from ladd_jax.config.architectures import read_architectures
    from ladd_jax.config.fields import partly_typed
    from ladd_jax.parallel import processes

    config = flags.config()
    refused: set[str] = set()
    with problems.found():
        # These count as invalid, unless the block comes to its end.
        refused.update(("weights", "model", "student", "teacher", "dino"))
        # Weights from the hub are fetched once for each host.
        with processes.one_of_each_host_first("weights"):
            read_architectures(config)
        flags.check_overrides(config)
        refused.clear()
    found, errors = partly_typed(config)
    for section, sentences in errors.items():
        # Without the weights' sizes, errors in these sections mean nothing.
        if section not in refused:
            for error in sentences:
                problems.add(error)
    if "" in errors:
        # There is no config to check further.
        problems.tell()
    return found, refused | set(errors)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turns errors for the user, and those of disks and memory, into a sentence and exit code 2."""
    from ladd_jax.cli.disk_errors import disk_error

    try:
        yield
    except UserError as error:
        flags.fail(error)
    except MemoryError as error:
        flags.fail(
            f"there is no free memory ({brief(error)}): end what else uses it, or take a machine "
            f"that has more"
        )
    except BrokenPipeError:
        if not environment.is_unread():
            raise
        flags.fail(
            "what reads this command's output has ended: let it read to the end, or write to a file"
        )
    except Exception as error:
        sentence = disk_error(error) or environment.no_devices(error)
        if not sentence:
            raise
        flags.fail(sentence)


def _start(
    body: Callable[[], None],
    read: Sequence[str],
    own: absl.flags.FlagValues | None = None,
    needed: dict[str, str] | None = None,
    complete: Callable[[Sequence[str]], Sequence[str]] = lambda arguments: arguments,
) -> None:
    """Runs a command; `--help` lists the flags that it reads, and `join_timeout`."""
    stopping.end_at_once()
    environment.write_all_letters()
    environment.drop_late_answers()
    for name in (*read, "join_timeout"):
        absl.flags.FLAGS.register_key_flag_for_module(sys.argv[0], absl.flags.FLAGS[name])

    def parse(arguments: Sequence[str]) -> list[str]:
        with _refusing():
            arguments = complete(arguments)
        return flags.parse(arguments, read)

    def main(arguments: Sequence[str]) -> None:
        if len(arguments) > 1:
            flags.fail(f"unexpected argument {arguments[1]!r}: flags look like --workdir=DIR")
        if own is not None:
            own.mark_as_parsed()
        flags.require(needed or {})
        with _refusing():
            flags.check_ranges(absl.flags.FLAGS, {"join_timeout": flags.TIMEOUT})
            flags.check_column(read)
            jax = environment.import_jax()
        from tqdm.contrib.logging import logging_redirect_tqdm

        from ladd_jax.cli.extensions import load_extensions
        from ladd_jax.parallel import processes

        # Orbax logs each of its steps through absl, of which only errors are of interest.
        absl_logging.set_verbosity(absl_logging.ERROR)
        absl_logging.get_absl_logger().addFilter(_is_news)
        log = logging.getLogger("ladd_jax")

        def work() -> None:
            with _refusing(), processes.together(flags.JOIN_TIMEOUT.value), _refusing():
                log.addHandler(_handler())
                # absl's handler, on the root logger, would print each line a second time.
                log.propagate = False
                log.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
                # Prints lines above a progress bar, and not into the middle of it.
                with logging_redirect_tqdm([log]):
                    load_extensions()
                    body()
                # What is kept for a pipe or a disk is written here, where errors are sentences.
                print(end="", flush=True)

        stopping.run(work)

    app.run(main, flags_parser=parse)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record says what is not said elsewhere.

    Orbax logs the errors of its threads with their tracebacks, and raises them once more where a
    checkpoint is waited for, where they become sentences.
    """
    return not (record.exc_info and "orbax" in Path(record.pathname).parts)


def _handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler
