"""Flags that commands share, how they are parsed, and the config that they describe.

Parsing reads the config file and nothing of the network: what weights say of their architecture is
read later, by `config.architectures.read_architectures`.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

import ladd_jax
from ladd_jax.config.arguments import nearest
from ladd_jax.config.fields import base_config
from ladd_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "NAME or FILE.py, each with :name=value,... if it takes arguments: a config that comes with "
    "ladd_jax, such as digits, or a file.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where data, checkpoints and reports go.")
_WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "Field weights: a released pipeline's folder, or owner/name of the hub. Its network's depth "
    "replaces model.depth of the config.",
)
PROMPTS = flags.DEFINE_string(
    "prompts",
    None,
    "A txt, tsv, csv or jsonl of prompts, or SET:FILE with one of parti, parti128, drawbench and "
    "coco: fields data.source and data.path.",
)
_IMAGES = flags.DEFINE_string(
    "images", None, "Fields data.source and data.path: an imagefolder, or a folder of tars."
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "Field log.profile: START:STOP writes an xprof trace of those steps."
)
JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", 300.0, "Seconds to wait for the job's other processes.", lower_bound=1.0
)


def fail(message: object) -> NoReturn:
    """Prints one sentence and exits with code 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2)


def parse(arguments: Sequence[str]) -> list[str]:
    """absl's parser, with the errors of config files and overrides in one sentence."""
    names = _field_names(base_config())
    for argument in arguments[1:]:
        name = argument.split("=")[0].lstrip("-")
        if name.startswith("config.") and name.removeprefix("config.") not in names:
            field = name.removeprefix("config.")
            fail(f"unknown config field {field}{nearest(field, names)}")
    try:
        rest = flags.FLAGS(_with_config_files(arguments))
        # A config file that could not be loaded is an object that tells so when it is read.
        getattr(_CONFIG.value, "is_locked", None)
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(_sentence(error, names))
    return rest


def refuse(*others: str) -> None:
    """Fails where a flag is given that the command does not read: all of config, workdir, profile,
    weights, prompts and images but `others`."""
    for flag in (_CONFIG, WORKDIR, _PROFILE, _WEIGHTS, PROMPTS, _IMAGES):
        if flag.value is not None and flag.name not in others:
            fail(f"--{flag.name} means nothing to this command: leave it out")


def config() -> ConfigDict | None:
    """The config of the command line, with the fields that have a flag of their own.

    Raises:
      UserError: two flags contradict each other.
    """
    config = _CONFIG.value
    if config is None:
        return None
    if _WEIGHTS.value:
        config.weights = _WEIGHTS.value
        config.model.depth = 0
    if _PROFILE.value:
        config.log.profile = _PROFILE.value
    if PROMPTS.value and _IMAGES.value:
        raise UserError("--prompts and --images are both given: use one of them")
    for source, flag in (("prompts", PROMPTS), ("images", _IMAGES)):
        if flag.value:
            config.data.update(dict(source=source, path=flag.value))
    return config


def check_overrides(config: ConfigDict) -> None:
    """Raises UserError where weights say something else than a `--config.FIELD` of theirs."""
    for path, given in config_flags.get_override_values(flags.FLAGS["config"]).items():
        section, _, name = path.rpartition(".")
        if section in ("model", "teacher") or path in ("data.text_width", "data.pooled_width"):
            found = config[section][name]
            # A depth of 0 asks for the weights' own.
            if found != given and not (name == "depth" and given == 0):
                own = config.data.text if section == "data" else config.weights
                weights = config.teacher.weights if section == "teacher" else own or config.weights
                raise UserError(
                    f"--config.{path} is {given} and the weights {weights} have {found}: leave it "
                    f"out"
                )


def _with_config_files(arguments: Sequence[str]) -> list[str]:
    """Arguments in which a config of this package has its path in the place of its name."""
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
    if not name or name.endswith(".py") or Path(name).is_file():
        return value
    package = Path(ladd_jax.__file__).parent
    # An installed package holds the configs, a checkout has them beside it.
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


def _sentence(error: Exception, names: Iterable[str]) -> object:
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
        return f"no config file: {_last_line(error)}; those of ladd_jax are named without .py"
    # Raised by the config file as it sets a field that does not exist or has another type.
    unknown = re.search(r'Key "(\w+)" does not exist', str(error))
    if unknown:
        bare = {name.rpartition(".")[2] for name in names}
        return f"unknown config field {unknown[1]}{nearest(unknown[1], bare)}"
    return f"the config file is not valid: {error}"


def _last_line(text: object) -> str:
    return str(text).strip().splitlines()[-1].strip()
