"""Flags that commands share, how they are parsed, and the config that they describe.

Parsing reads the config file, but no weights: their architecture is read later, by
`config.architectures.read_architectures`.
"""

from __future__ import annotations

import functools
import importlib
import operator
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

import ladd_jax
from ladd_jax.errors import UserError, UserErrors
from ladd_jax.names import listed, nearest
from ladd_jax.paths import expand
from ladd_jax.ranges import Range, refusal


def fail(message: object) -> NoReturn:
    """Prints one sentence, or a line for each of several problems, and exits with code 2."""
    problems = message.problems if isinstance(message, UserErrors) else (str(message),)
    lines = [" ".join(problem.split()) for problem in problems]
    if len(lines) == 1:
        print(f"error: {lines[0]}", file=sys.stderr)
    else:
        print("\n- ".join([f"error: {len(lines)} problems:", *lines]), file=sys.stderr)
    raise SystemExit(2)


# The library reads the files of --flagfile already when it defines this flag.
try:
    _CONFIG = config_flags.DEFINE_config_file(
        "config",
        None,
        "NAME or FILE.py, each with :name=value,... if it takes arguments: a config that comes "
        "with ladd_jax, such as digits, or a file.",
        lock_config=True,
    )
except (flags.Error, ValueError) as error:
    fail(f"--flagfile cannot be read ({str(error).removeprefix('ERROR:: ')}): check the path")
WORKDIR = flags.DEFINE_string("workdir", "", "Where data, checkpoints and reports go.")
DATA = flags.DEFINE_string(
    "data",
    "",
    "Folder of encoded, held-out and synthesized records and of the data generator, which are made "
    "there if they are missing. Several workdirs may share it; it may be another run's workdir. In "
    "a bucket (gs://...) it is only read. Default: the workdir, or what was given before.",
)
FROM = flags.DEFINE_string(
    "from",
    "",
    "Workdir of a run whose newest student `distil` starts from, with its heads, optimizers and "
    "steps, and on its data, unless --data names others.",
)
_ON_CHANGE = flags.DEFINE_string(
    "on_change",
    None,
    "Field on_change: redo makes results again that were made with other fields or data than this "
    "run's, and what depends on them; stop, the default, names them and stops.",
)
_WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "Field weights: a released pipeline's folder, a single file, or owner/name of the hub. Its "
    "network's depth replaces model.depth of the config.",
)
PROMPTS = flags.DEFINE_string(
    "prompts",
    None,
    "A txt, tsv, csv or jsonl file of prompts, a pattern, a list of them, or SET:FILE with one of "
    "parti, parti128, drawbench and coco: fields data.source and data.path.",
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "Fields data.source and data.path: an imagefolder, a folder of tars or tables, a pattern or a "
    "list of them, or owner/name of the hub.",
)
COLUMN = flags.DEFINE_string(
    "column",
    "",
    "Field data.column: the column of the prompts in their table; default: the only one with a "
    "usual name, such as prompt, text or caption.",
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "Field log.profile: START:STOP writes an xprof trace of those steps."
)
JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", 300.0, "Seconds to wait for the job's other processes."
)
TIMEOUT = Range(least=1, most=10**6)
"""Values that `join_timeout` may have, in seconds."""


SHARED = (
    "config",
    "workdir",
    "data",
    "from",
    "on_change",
    "weights",
    "prompts",
    "images",
    "column",
    "profile",
)
"""Flags of the commands on a run; other commands read some of them."""

READ = {
    **dict.fromkeys(("main", "encode", "synthesize", "evaluate"), SHARED),
    "plan": ("config", "weights", "prompts", "images", "column"),
    "sample": ("prompts", "column"),
    "serve": (),
    "export": ("workdir",),
    "study": ("config", "workdir"),
}
"""The commands, with the shared flags that they read."""

# A command names its run by one of these flags.
_PLACES = ("workdir", "checkpoint")


def parse(arguments: Sequence[str], read: Sequence[str] = SHARED) -> list[str]:
    """absl's parser, with errors of config files and overrides as one sentence.

    If a flag is given again, the last value counts; flags that take several values keep all.

    Args:
      arguments: the command line.
      read: names of the flags that the command reads, besides absl's own.
    """
    names: list[str] = []
    given = list(arguments)
    try:
        # Flags from --flagfile are treated like the rest.
        given = flags.FLAGS.read_flags_from_files(list(arguments[1:]), force_gnu=False)
        given = _last_ones(_with_config_files([arguments[0], *given]), read)
        if any(_name(argument).startswith("config") for argument in given[1:]):
            names = _valid_fields(given)
        rest = flags.FLAGS(given)
        # A config file that could not be loaded raises its error only when the value is read.
        getattr(_CONFIG.value, "is_locked", None)
        has_config = flags.FLAGS["config"].present
    # BaseException, since a config file may end the process. `fail` and --help end it as well: they
    # are raised again.
    except BaseException as error:
        file = _named_file(given)
        if _is_defect(error) or not (isinstance(error, Exception) or _line_in(file, error)):
            raise
        fail(_sentence(error, names, file))
    if has_config and not isinstance(_CONFIG.value, ConfigDict):
        fail(
            f"get_config() of the config file gives {type(_CONFIG.value).__name__}: let it "
            f"return what base_config() gave it"
        )
    return rest


def require(needed: Mapping[str, str]) -> None:
    """Fails if a flag is missing; `needed` has the flags, with what to show after their `=`."""
    if not all(flags.FLAGS[name].value for name in needed):
        words = [f"--{name}={value}" for name, value in needed.items()]
        fail(f"{listed(words)} {'are' if len(words) > 1 else 'is'} needed: --help shows examples")


def _name(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0] if argument.startswith("-") else ""


def _last_ones(arguments: Sequence[str], read: Sequence[str]) -> list[str]:
    """The command line without fields of the config that are given again later.

    Fails if this command does not have one of the flags.
    """
    found: list[list[str]] = []
    places: dict[str, int] = {}
    i = 1
    while i < len(arguments):
        word = arguments[i]
        if word == "--" or not word.startswith("-"):
            # absl stops here, too: no flags follow.
            found.append(list(arguments[i:]))
            break
        name = _name(word)
        field = name.removeprefix("no").startswith("config.")
        following = arguments[i + 1] if i + 1 < len(arguments) else "--"
        # The value may be the next word. Whether a field of the config takes one is not known yet.
        switch = following.startswith("--") if field else _is_switch(name, read)
        count = 1 if switch or "=" in word else 2
        if field or name == "config":
            if name in places:
                found[places[name]] = []
            places[name] = len(found)
        found.append(list(arguments[i : i + count]))
        i += count
    return [arguments[0], *(word for part in found for word in part)]


def _is_switch(name: str, read: Sequence[str]) -> bool:
    """Whether a flag has no value; fails if the command has no flag of this name."""
    bare = name.removeprefix("no")
    switches = [known for known in (name, bare) if _is_known(known, read)]
    if name in switches:
        return bool(flags.FLAGS[name].boolean)
    if switches and flags.FLAGS[bare].boolean:
        return True
    place = next((place for place in _PLACES if place in read), None)
    if name in _PLACES and place:
        fail(f"--{name} is a flag of other commands: here a run is named by --{place}=DIR")
    theirs = [command for command in READ if name in _own(command)]
    if theirs:
        fail(f"--{name} is a flag of {listed(theirs)} and not of this command: leave it out")
    fail(f"there is no flag --{name}{nearest(name, [*read, 'help'])}")


def _is_known(name: str, read: Sequence[str]) -> bool:
    return name in flags.FLAGS and (name in read or name not in SHARED)


def _own(command: str) -> list[str]:
    """Names of the flags of a command, from its module, whose import is fast."""
    module = importlib.import_module(f"ladd_jax.{command}")
    return [*READ[command], *getattr(module, "FLAGS", ())]


def _valid_fields(arguments: Sequence[str]) -> list[str]:
    """Names of the config's fields; fails if an argument names one that does not exist."""
    from ladd_jax.cli.extensions import load_extensions
    from ladd_jax.config.fields import base_config
    from ladd_jax.config.own import not_installed

    # Extensions have fields of their own, which a config file may set.
    load_extensions()
    names = _field_names(base_config())
    for argument in arguments[1:]:
        name = _name(argument).removeprefix("no")
        field = name.removeprefix("config.")
        if field != name and field not in names:
            if gone := not_installed(field):
                fail(f"unknown config field {gone}: install it, or leave the field out")
            fail(f"unknown config field {field}{nearest(field, names)}")
    return names


def config() -> ConfigDict:
    """The config of the command line, including fields that were set by flags of their own.

    Raises:
      UserError: two flags contradict each other.
    """
    config = _CONFIG.value
    if _WEIGHTS.value:
        config.weights = _WEIGHTS.value
        config.model.depth = 0
    if _PROFILE.value:
        config.log.profile = _PROFILE.value
    if _ON_CHANGE.value:
        config.on_change = _ON_CHANGE.value
    if PROMPTS.value and _IMAGES.value:
        raise UserError("--prompts and --images are both given: use one of them")
    for source, flag in (("prompts", PROMPTS), ("images", _IMAGES)):
        if flag.value:
            config.data.update(dict(source=source, path=flag.value))
    if COLUMN.value:
        config.data.column = COLUMN.value
    return config


def check_column(read: Sequence[str]) -> None:
    """Raises UserError where a column is named, but no file that could have columns.

    Args:
      read: names of the flags that the command reads. If it has a config, that may name the file.
    """
    if COLUMN.value and not PROMPTS.value and "config" not in read:
        raise UserError(
            f"--column={COLUMN.value} belongs to a file of prompts: name the file by "
            f"--prompts=FILE, or leave the column out"
        )


def check_ranges(given: flags.FlagValues, ranges: Mapping[str, Range]) -> None:
    """Raises UserError where a flag's number is outside of its range; a missing value is allowed.

    Args:
      given: the flags of a command.
      ranges: the allowed ranges, by the names of the flags.
    """
    for name, allowed in ranges.items():
        value = given[name].value
        if value is not None and (wrong := refusal(value, allowed)):
            raise UserError(f"--{name} is {value}: {wrong}")


def check_overrides(config: ConfigDict) -> None:
    """Raises UserError where a `--config.FIELD` of a network contradicts its weights, or `model` if
    the network is like that."""
    from ladd_jax.config.architectures import check_like_model

    for path, given in config_flags.get_override_values(flags.FLAGS["config"]).items():
        section, _, name = path.rpartition(".")
        widths = ("data.text_width", "data.pooled_width")
        networks = ("model", "student", "teacher", "dino", f"own.{config.model.family}")
        if section in networks or path in widths:
            found = functools.reduce(operator.getitem, path.split("."), config)
            # 0 stands for the weights' own depth, and for the width and the heads of `model`.
            if found != given and not (name in ("depth", "width", "num_heads") and given == 0):
                check_like_model(config, path, given)
                own = config.data.text if section == "data" else config.weights
                if section in ("teacher", "dino"):
                    own = config[section].weights
                weights = own or config.weights
                raise UserError(
                    f"--config.{path} is {given} and the weights {weights} have {found}: leave it "
                    f"out"
                )


def _with_config_files(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the path of a config of this package instead of its name."""
    found = list(arguments)
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in ("-config", "--config"):
            continue
        if equals:
            found[i] = f"{name}={_config_file(value)}"
        elif i + 1 < len(arguments):
            found[i + 1] = _config_file(arguments[i + 1])
    return found


def _config_file(value: str) -> str:
    name, colon, argument = value.partition(":")
    path = expand(name)
    if not name or name.endswith(".py") or path.is_file():
        return f"{path}{colon}{argument}" if name.startswith("~") else value
    package = Path(ladd_jax.__file__).parent
    # An installed package contains the configs; in a checkout they are beside it.
    files = {
        file.stem: file
        for folder in (package / "configs", package.parent / "configs")
        for file in folder.glob("*.py")
        if file.stem != "__init__"
    }
    if name not in files:
        fail(f"there is no config {name!r}{nearest(name, files)}; a file ends with .py")
    return f"{files[name]}{colon}{argument}"


def _field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        names.append(prefix + name)
        if isinstance(value, ConfigDict):
            names += _field_names(value, f"{prefix}{name}.")
    return names


def _is_defect(error: BaseException) -> bool:
    """Whether a config file's call into this package failed through a defect of the package."""
    if isinstance(error, UserError | flags.Error):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(ladd_jax.__file__).parent
    place = Path(frames[-1].filename)
    return package in place.parents and package / "configs" not in place.parents


def _named_file(arguments: Sequence[str]) -> Path:
    """The config file of a command line that went through `_with_config_files`."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("-config", "--config"):
            return Path((value if equals else "".join(arguments[i + 1 : i + 2])).partition(":")[0])
    return Path()


def _line_in(file: Path, error: BaseException) -> int:
    """The last line of a file that ran before an error; 0 if none did."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve()]
    return (lines[-1] if lines else None) or 0


def _of_package(error: BaseException, file: Path) -> str:
    """What to say of a section `own.NAME` that the config file named in vain; or empty."""
    from ladd_jax.config.own import not_installed

    if not isinstance(error, AttributeError | KeyError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [each.line or "" for each in frames if Path(each.filename).resolve() == file.resolve()]
    named = re.search(r"\bown\.\w+", lines[-1] if lines else "")
    return not_installed(named[0]) if named else ""


_KINDS = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "('Non-boolean argument": "true or false",
    "Failed to parse": "the fields of this section, such as --{name}.FIELD=VALUE",
}
"""What a value should have been, by the beginning of a library's message."""


def _wrong_kind(line: str) -> str:
    """The sentence for a flag's value of the wrong kind, from absl's own line; or empty."""
    found = re.fullmatch(r"flag --([\w.]+)=(.*?): (.*)", line)
    for words, wanted in _KINDS.items():
        if found and found[3].startswith(words):
            return f"--{found[1]} is {found[2]!r}: use {wanted.format(name=found[1])}"
    return ""


def _sentence(error: BaseException, names: Iterable[str], file: Path) -> object:
    """One sentence, or a UserError, for a library's error about a config file or the flags."""
    cause: BaseException | None = error
    while cause is not None:
        # ml_collections raises errors of a config file again, with a traceback as the message.
        again = str(cause).startswith("Error whilst parsing config file")
        if isinstance(cause, UserError) and not again:
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, flags.Error):
        # ml_collections gives a whole traceback in the message; its last line says what is wrong.
        line = _last_line(error)
        if "takes 0 positional arguments" in line:
            return "this config takes no arguments: leave out what follows the colon of --config"
        if "Error whilst parsing config file" in str(error):
            return f"the config file {file} is not valid: {line}"
        return _wrong_kind(line) or line
    if isinstance(error, SyntaxError):
        # For a file with null bytes Python reports no name and no line.
        where = f"{error.filename}, line {error.lineno}," if error.filename else str(file)
        return f"the config file {where} is not valid Python ({error.msg}): repair it"
    if isinstance(error, OSError):
        return f"no config file: {_last_line(error)}; name configs of ladd_jax without .py"
    if gone := _of_package(error, file):
        return f"unknown config field {gone}: install it, or leave the field out"
    # Raised when the config file sets a field that does not exist or has another type.
    unknown = re.search(r'Key "(\w+)" does not exist', str(error))
    if unknown:
        bare = {name.rpartition(".")[2] for name in names}
        return f"unknown config field {unknown[1]}{nearest(unknown[1], bare)}"
    if "has no attribute 'get_config'" in str(error):
        return "the config file has no function get_config(): write one, or name another file"
    line_number = _line_in(file, error)
    where = f", line {line_number}" if line_number else ""
    told = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"the config file {file} is not valid{where}: {told}"


def _last_line(text: object) -> str:
    return str(text).strip().splitlines()[-1].strip()
