"""What every command shares: config flags, and errors as one sentence with exit code 2."""

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from ladd_jax.cli.compilation_cache import keep_programs
from ladd_jax.cli.preflight import check
from ladd_jax.config.architectures import use_teacher_weights, use_weights
from ladd_jax.config.fields import base_config, nearest, to_dict, validate
from ladd_jax.config.workdir import settle, settled
from ladd_jax.errors import UserError
from ladd_jax.parallel import processes

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, such as configs/digits.py[:argument].", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where data, checkpoints and reports go.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Field weights: a released pipeline's folder, or owner/name of the hub."
)
PROMPTS = flags.DEFINE_string(
    "prompts", None, "A txt, tsv, csv or jsonl of prompts: fields data.source and data.path."
)
_IMAGES = flags.DEFINE_string(
    "images", None, "Fields data.source and data.path: an imagefolder, or a folder of tars."
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "Field log.profile: START:STOP writes an xprof trace of those steps."
)
_JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", 300.0, "Seconds to wait for the job's other processes.", lower_bound=1.0
)

Command = Callable[[ConfigDict, Path], Any]


def fail(message: object) -> NoReturn:
    """Prints one sentence and exits with code 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Turns errors for the user into one sentence and exit code 2."""
    try:
        yield
    except UserError as error:
        fail(error)


def _handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


def _field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        names.append(prefix + name)
        if isinstance(value, ConfigDict):
            names += _field_names(value, f"{prefix}{name}.")
    return names


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    """absl's parser, with the errors of config files and overrides in one sentence."""
    names = _field_names(base_config())
    for argument in arguments[1:]:
        name = argument.split("=")[0].lstrip("-")
        if name.startswith("config.") and name.removeprefix("config.") not in names:
            field = name.removeprefix("config.")
            fail(f"unknown config field {field}{nearest(field, names)}")
    try:
        rest = flags.FLAGS(list(arguments))
        # A config file that could not be loaded is an object that tells so when it is read.
        getattr(_CONFIG.value, "is_locked", None)
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(_sentence(error, names))
    return rest


def _sentence(error: Exception, names: Sequence[str]) -> object:
    """What is wrong with a config file or the flags, of which libraries told in their own way."""
    cause: BaseException | None = error
    while cause is not None:
        # ml_collections raises errors of a config file again, with a traceback as the message.
        again = str(cause).startswith("Error whilst parsing config file")
        if isinstance(cause, UserError) and not again:
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, flags.Error):
        # ml_collections gives a whole traceback in the message; its last line says what is wrong.
        return _last_line(error)
    if isinstance(error, OSError):
        return f"no config file: {_last_line(error)}; configs/ holds those that come with ladd_jax"
    # Raised by the config file as it sets a field that does not exist or has another type.
    unknown = re.search(r'Key "(\w+)" does not exist', str(error))
    if unknown:
        bare = {name.rpartition(".")[2] for name in names}
        return f"unknown config field {unknown[1]}{nearest(unknown[1], bare)}"
    return f"the config file is not valid: {error}"


def _last_line(text: object) -> str:
    return str(text).strip().splitlines()[-1].strip()


def _apply_flags(config: ConfigDict) -> None:
    """Sets the fields that have a flag of their own."""
    if _WEIGHTS.value:
        use_weights(config, _WEIGHTS.value)
    if config.teacher.weights and not config.teacher.depth:
        use_teacher_weights(config, config.teacher.weights)
    if _PROFILE.value:
        config.log.profile = _PROFILE.value
    if PROMPTS.value and _IMAGES.value:
        raise UserError("--prompts and --images are both given: use one of them")
    for source, flag in (("prompts", PROMPTS), ("images", _IMAGES)):
        if flag.value:
            config.data.update(dict(source=source, path=flag.value))


def run(command: Command) -> None:
    """Runs a command on the config and workdir of the command line."""

    def body() -> None:
        named = WORKDIR.value
        if _CONFIG.value is None or not named:
            fail("--config=FILE and --workdir=DIR are needed, such as --config=configs/digits.py")
        workdir = Path(named)
        _apply_flags(_CONFIG.value)
        validate(_CONFIG.value)
        check(_CONFIG.value)
        settings = to_dict(_CONFIG.value)
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
        keep_programs(_CONFIG.value.compilation_cache, workdir)
        command(_CONFIG.value, workdir)

    _start(body)


def run_without_config(body: Callable[[], None], own: flags.FlagValues, *read: str) -> None:
    """Runs a command that has flags of its own, and no config on the command line.

    Args:
      body: the command.
      own: its flags. They join absl's here, so that modules of several commands, which may have
        flags of one name, can be imported together.
      *read: names of flags of this module that it reads, too.
    """
    flags.FLAGS.append_flag_values(own)

    def main() -> None:
        own.mark_as_parsed()
        for flag in (_CONFIG, WORKDIR, _PROFILE, _WEIGHTS, PROMPTS, _IMAGES):
            if flag.value is not None and flag.name not in read:
                fail(f"--{flag.name} means nothing to this command: leave it out")
        body()

    _start(main)


def run_without_workdir(body: Callable[[ConfigDict], None], own: flags.FlagValues) -> None:
    """Runs a command on a config and flags of its own; nothing is checked against this machine."""
    flags.FLAGS.append_flag_values(own)

    def main() -> None:
        own.mark_as_parsed()
        if _CONFIG.value is None:
            fail("--config=FILE is needed, such as --config=configs/sd3_turbo.py:size=medium")
        for flag in (WORKDIR, _PROFILE):
            if flag.value is not None:
                fail(f"--{flag.name} means nothing to this command: leave it out")
        _apply_flags(_CONFIG.value)
        validate(_CONFIG.value)
        body(_CONFIG.value)

    _start(main)


def _start(body: Callable[[], None]) -> None:
    def main(arguments: Sequence[str]) -> None:
        if len(arguments) > 1:
            fail(f"unexpected argument {arguments[1]!r}: flags look like --workdir=DIR")
        # Orbax tells of each of its steps through absl; here its warnings are enough.
        absl_logging.set_verbosity(absl_logging.ERROR)
        with _failing(), processes.together(_JOIN_TIMEOUT.value), _failing():
            first = jax.process_index() == 0
            logging.getLogger("ladd_jax").addHandler(_handler())
            logging.getLogger("ladd_jax").setLevel(logging.INFO if first else logging.WARNING)
            body()

    app.run(main, flags_parser=_parse_flags)
