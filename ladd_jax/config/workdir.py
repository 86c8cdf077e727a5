"""The config that a workdir keeps, and what may differ when its run is resumed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladd_jax.config.fields import Config, base_config, compare, to_dict, typed
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.whole_files import read_json, write_text_whole

_FILE = "config.json"

# Fields that do not change what a run computes: they may differ when it is resumed.
FREE_FIELDS = ("mesh", "log", "checkpoint", "watch", "stages", "evaluate", "compilation_cache")
# And these of the other sections.
_FREE_PATHS = ("data.on_corrupt", "data.max_unreadable", "data.unreadable")
_IGNORED = (*FREE_FIELDS, *_FREE_PATHS)

# What a training that is not done may go on with: it is what one lowers when it diverges.
_RATES = tuple(
    f"{optimizer}.{name}"
    for optimizer in (
        "pretrain.optimizer", "finetune.optimizer", "distil.optimizer", "distil.heads_optimizer",
    )
    for name in ("learning_rate", "clip_norm")
)  # fmt: skip

_NETWORK_FIELDS = ("seed", "weights", "data", "model", "pretrain")
_STUDENT_FIELDS = (*_NETWORK_FIELDS, "synthesize", "finetune")
STAGE_FIELDS = {
    "pretrain": _NETWORK_FIELDS,
    "finetune": _STUDENT_FIELDS,
    "distil": (*_STUDENT_FIELDS, "teacher", "heads", "distil"),
}
"""What the result of a training depends on: its checkpoints serve all configs alike in these."""

SET_FIELDS = {
    "encoded": ("seed", "weights", "data"),
    "held_out": ("seed", "weights", "data"),
    "synthesized": (*_NETWORK_FIELDS, "synthesize"),
}
"""What the records of a set of shards depend on."""

# How a set is made, and which buckets it has, which its folders say.
_HOW_SETS_ARE_MADE = {
    "data": (
        "buckets", "bucket_weights", "small_buckets", "examples", "held_out_examples",
        "records_per_shard", "text_batch_size", "image_batch_size", "text_dtype",
        "max_unreadable", "on_corrupt",
    ),
    "model": ("remat", "unroll"),
    "synthesize": ("samples", "batch_size", "records_per_shard"),
}  # fmt: skip


def settled(workdir: Path) -> bool:
    """Whether a workdir has its config."""
    return (workdir / _FILE).exists()


def check_directory(workdir: Path) -> None:
    """Raises UserError where a workdir is a file."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file: name a directory")


def settle(workdir: Path, config: dict[str, Any]) -> None:
    """Writes the config into a new workdir, or checks that a used one is of the same config.

    Learning rates and clipping may be others, which a training that is not done goes on with: it
    writes them by `keep_rates`, and one that is done refuses them.

    Raises:
      UserError: the workdir holds the work of another config; names the first field that differs.
    """
    check_directory(workdir)
    path = workdir / _FILE
    if path.exists():
        old = read_json(path, "use another --workdir")
        difference = first_difference(old, config, rates=False)
        if difference:
            raise UserError(
                f"{workdir} holds the work of another config ({difference}): "
                f"use another --workdir, or set the field back"
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    _write(path, config)


def keep_rates(workdir: Path, config: dict[str, Any]) -> None:
    """Writes the config of a training that goes on, where its rates are others than before."""
    path = workdir / _FILE
    if path.exists() and first_difference(read_json(path, "use another --workdir"), config):
        _write(path, config)


def _write(path: Path, config: dict[str, Any]) -> None:
    write_text_whole(path, json.dumps(config, indent=2) + "\n")


def read(workdir: Path) -> Config:
    """The config of a used workdir.

    Raises:
      NotFoundError: it was never used.
      UserError: its config is damaged, or of another version of this package.
    """
    path = workdir / _FILE
    if not path.is_file():
        raise NotFoundError(f"{workdir} has no config.json: name the --workdir of a run")
    config = base_config()
    defaults = to_dict(Config())
    old = _without_gone(read_json(path, "use another --workdir"), defaults)
    values = _as_tuples(_filled(old, defaults), config.to_dict())
    try:
        compare(config.to_dict(), values, "")
    except UserError as error:
        raise UserError(f"{path} is of another version of ladd_jax: {error}") from error
    config.update(values)
    return typed(config)


def _without_gone(old: Any, defaults: dict[str, Any]) -> Any:
    """A config without what an older version had and what changes no result."""
    if not isinstance(old, dict):
        return old
    kept = dict(old)
    for section in FREE_FIELDS:
        fields, known = old.get(section), defaults[section]
        if isinstance(fields, dict) and isinstance(known, dict):
            kept[section] = {name: value for name, value in fields.items() if name in known}
    for section, _, name in (path.partition(".") for path in _FREE_PATHS):
        if isinstance(kept.get(section), dict) and name not in defaults[section]:
            kept[section] = {n: value for n, value in kept[section].items() if n != name}
    return kept


def _as_tuples(values: Any, base: Any) -> Any:
    """The inverse of what JSON does to tuples, where the default is one."""
    if isinstance(values, dict) and isinstance(base, dict):
        return {name: _as_tuples(value, base.get(name)) for name, value in values.items()}
    return tuple(values) if isinstance(values, list) and isinstance(base, tuple) else values


def identity(config: dict[str, Any], name: str) -> dict[str, Any]:
    """What says of a set of shards what it holds.

    Args:
      config: the config of the run that makes or reads it.
      name: the set, one of `SET_FIELDS`.
    """
    fields = {}
    for section in SET_FIELDS[name]:
        values = config[section]
        if isinstance(values, dict):
            left_out = _HOW_SETS_ARE_MADE.get(section, ())
            values = {field: value for field, value in values.items() if field not in left_out}
        fields[section] = values
    if config["weights"]:
        # Then there is no training of a data generator.
        fields.pop("pretrain", None)
    return {"set": name, "config": fields}


def set_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In what two sets of shards differ by their `identity`, in words; empty where in nothing."""
    if old.get("set") != new["set"]:
        return f"it is the set {old.get('set')!r} and not {new['set']!r}"
    defaults = identity(to_dict(Config()), new["set"])["config"]
    defaults = {name: value for name, value in defaults.items() if name in new["config"]}
    return _first_difference(_filled(old.get("config"), defaults), new["config"], "", _IGNORED)


def first_difference(old: dict[str, Any], new: dict[str, Any], *, rates: bool = True) -> str:
    """The first field, by name, that changes what a run computes; empty where there is none.

    A field that an older version of this package did not have counts as at its default, at which
    the run is the same as before.

    Args:
      old: config that a work was made with.
      new: config to go on with.
      rates: whether other learning rates and clipping are a difference.
    """
    defaults = {name: value for name, value in to_dict(Config()).items() if name in new}
    ignored = _IGNORED if rates else (*_IGNORED, *_RATES)
    return _first_difference(_filled(old, defaults), new, "", ignored)


def _filled(old: Any, defaults: Any) -> Any:
    if isinstance(old, dict) and isinstance(defaults, dict):
        missing = {name: value for name, value in defaults.items() if name not in old}
        return {name: _filled(value, defaults.get(name)) for name, value in old.items()} | missing
    return old


def _first_difference(old: Any, new: Any, path: str, ignored: Sequence[str]) -> str:
    if path in ignored:
        return ""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            inner = _first_difference(
                old.get(name, "absent"),
                new.get(name, "absent"),
                f"{path}.{name}".lstrip("."),
                ignored,
            )
            if inner:
                return inner
        return ""
    return "" if old == new else f"{path} was {old!r} and is {new!r}"
