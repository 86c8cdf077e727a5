"""What the result of a stage depends on, and how two results differ.

The identity of a result is the fields of the config that change it, and digests of what else went
into it. A set of shards keeps it in `identity.json`, with digests of its records beside it, and a
checkpoint has the config and the digests. A stage goes on with a result of the same identity, and
reads results of the same fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.own import own_beside
from ladd_jax.config.pretraining import NETWORKS, stage_of
from ladd_jax.data.joined import makes_generator
from ladd_jax.methods import METHODS, Method

# Sections that do not change what a run computes: they may differ when it is resumed.
FREE_FIELDS = (
    "mesh", "log", "checkpoint", "watch", "stages", "evaluate", "compilation_cache", "on_change",
)  # fmt: skip
# And these fields of other sections: how something is computed, and how much of it at once.
FREE_PATHS = (
    "data.on_corrupt", "data.max_unreadable", "data.unreadable", "data.text_batch_size",
    "data.image_batch_size", "model.remat", "model.unroll", "synthesize.batch_size",
)  # fmt: skip
_IGNORED = (*FREE_FIELDS, *FREE_PATHS)

# Sources whose records are all compared at each start, so that their path does not matter.
_COMPARED = ("prompts",)

SETS = ("encoded", "held_out", "synthesized")
"""Results that are sets of shards."""

TRAININGS = ("pretrain", *NETWORKS, "prefer", "finetune", "distil")
"""Results that are checkpoints."""

_DATA = ("seed", "weights", "data")
_NETWORK = (*_DATA, "loras", "model", "pretrain")
_GENERATOR = (*_NETWORK, "prefer")
_STUDENT = (*_GENERATOR, "student", "synthesize", "finetune")
_SECTIONS = {
    "encoded": _DATA,
    "held_out": _DATA,
    "pretrain": _NETWORK,
    **{name: (*_DATA, "model", "pretrain", section) for name, section in NETWORKS.items()},
    "prefer": _GENERATOR,
    "synthesized": (*_GENERATOR, "synthesize"),
    "finetune": _STUDENT,
    "distil": (*_STUDENT, "teacher", "heads", "dino", "distil"),
}

RESULTS = tuple(_SECTIONS)
"""Folders of all results, in the order in which they are made."""

# Fields that networks of other sizes take from `model`.
_COMMON = ("family", "channels", "joined_channels", "dtype", "param_dtype")

# Fields that sets of shards did not name in older versions.
_NAMED_LATER = (
    "data.buckets", "data.bucket_weights", "data.small_buckets", "data.examples",
    "data.held_out_examples", "data.records_per_shard", "data.text_dtype", "synthesize.samples",
    "synthesize.records_per_shard",
)  # fmt: skip


def identity(
    config: dict[str, Any], name: str, inputs: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The identity of the result of a stage.

    Args:
      config: a config, or as much as is known of an old one.
      name: a set of shards or a training, one of `SETS` or `TRAININGS`.
      inputs: digests of what else it was made from, by its name; default: none is known.
    """
    fields = {section: config[section] for section in _SECTIONS[name] if section in config}
    if not _pretrains(config):
        fields.pop("pretrain", None)
    if name in NETWORKS:
        own = fields.get("model", {})
        fields["model"] = {field: own[field] for field in _COMMON if field in own}
    if not config.get("student", {}).get("depth"):
        # As in a version that did not have the section.
        fields.pop("student", None)
    if not _in_pixels(config.get("distil", {})):
        fields.pop("dino", None)
    if "prefer" in _SECTIONS[name]:
        fields["prefer"] = _preference(fields.get("prefer", {}), name)
    if name in ("finetune", "distil"):
        stage = config.get("distil", {})
        source = stage.get("data")
        if source == "encoded" and not (name == "distil" and _reads_guidance(stage)):
            fields.pop("synthesize", None)
        fields.setdefault("distil", {"data": source})
    if name == "distil" and not config.get("finetune", {}).get("steps"):
        # As in a version that did not have the stage.
        fields["finetune"] = {"steps": 0}
    if own := own_beside(config, [section for section in _SECTIONS[name] if section in fields]):
        fields["own"] = own
    return {"set": name, "config": _without(fields, _IGNORED), "inputs": dict(inputs or {})}


def _pretrains(config: Mapping[str, Any]) -> bool:
    """`pretrains` of `data.joined`, for a config that may be of an older version's fields."""
    joined = config.get("data", {}).get("joined", "")
    own = config.get("model", {}).get("joined_channels", 0)
    return makes_generator(config.get("weights", ""), joined, own)


def _preference(stage: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The part of the section `prefer` that a result depends on."""
    if name != "prefer" and not (stage.get("steps") and "before" in stage.get("applied", ())):
        # As in a version that did not have the stage.
        return {"steps": 0}
    # Where the LoRA is added does not change it, and after the distillation it changes nothing.
    return {field: value for field, value in stage.items() if field != "applied"}


def _method(stage: Mapping[str, Any]) -> Method | None:
    """The method of a distillation; None for one that this version of the package does not know."""
    return METHODS.get(stage.get("objective", "ladd"))


def _in_pixels(stage: Mapping[str, Any]) -> bool:
    """Whether the heads of a distillation stand on DINOv2."""
    method = _method(stage)
    return method is not None and method.in_pixels


def _reads_guidance(stage: Mapping[str, Any]) -> bool:
    """Whether a distillation itself guides the data generator, whatever its data are."""
    method = _method(stage)
    without = method is None or not method.has_heads
    return without or bool(stage.get("consistency_weight"))


def difference(old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str] = ()) -> str:
    """How two results differ by their `identity`, in words; empty if they do not.

    A field that an older version of this package did not have counts with its value in `absent`,
    which gives the same result. Inputs that only one of the two knows are not a difference.

    Args:
      old: identity of what is there.
      new: identity of what a config asks for.
      free: paths of further fields that may differ.
    """
    if old.get("set") != new["set"]:
        return f"it is the set {old.get('set')!r} and not {new['set']!r}"
    found = old.get("config")
    for path in _NAMED_LATER:
        section, _, field = path.partition(".")
        if isinstance(found, dict) and isinstance(found.get(section), dict):
            given = new["config"].get(section, {})
            if field in given:
                found = {**found, section: {field: given[field], **found[section]}}
    defaults = _named(absent(), new["config"])
    if new["config"].get("data", {}).get("source") in _COMPARED:
        free = (*free, "data.path")
    wanted = new["config"]
    if isinstance(found, dict) and "student" in found and "student" not in wanted:
        wanted = {**wanted, "student": absent()["student"]}
    words = _first_difference(filled(found, defaults), wanted, "", (*_IGNORED, *free))
    if words:
        return words
    known = old.get("inputs", {})
    others = [name for name, digest in new["inputs"].items() if known.get(name, digest) != digest]
    return f"{others[0]} had other content" if others else ""


def config_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first field, by name, in which two configs ask for other results; empty for none."""
    return _first_difference(filled(old, _named(absent(), new)), new, "", _IGNORED)


def absent() -> dict[str, Any]:
    """The values, by section, that older versions used before there was a field for them: mostly
    the defaults of the fields, but defaults change."""
    defaults = to_dict(Config())
    defaults["synthesize"]["sampler"] = "euler"
    return defaults


def own_fields(training: str) -> tuple[str, ...]:
    """Fields of a training that may change before it is done, which then goes on with them.

    Rates and clipping are what one lowers when it diverges; more steps train on.
    """
    optimizers = ("optimizer", "heads_optimizer") if training == "distil" else ("optimizer",)
    section = stage_of(training)
    rates = (
        f"{section}.{optimizer}.{field}"
        for optimizer in optimizers
        for field in ("learning_rate", "clip_norm")
    )
    return (f"{section}.steps", *rates)


def filled(old: Any, defaults: Any) -> Any:
    """An older config, with what it did not have at its default."""
    if isinstance(old, dict) and isinstance(defaults, dict):
        missing = {name: value for name, value in defaults.items() if name not in old}
        return {name: filled(value, defaults.get(name)) for name, value in old.items()} | missing
    return old


def _named(defaults: Any, fields: Any) -> Any:
    """Defaults of the fields that are named, and no others."""
    if isinstance(defaults, dict) and isinstance(fields, dict):
        return {n: _named(value, fields[n]) for n, value in defaults.items() if n in fields}
    return defaults


def _without(fields: Any, paths: Sequence[str], prefix: str = "") -> Any:
    """Fields except those of some paths."""
    if not isinstance(fields, dict):
        return fields
    return {
        name: _without(value, paths, f"{prefix}{name}.")
        for name, value in fields.items()
        if f"{prefix}{name}" not in paths
    }


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
