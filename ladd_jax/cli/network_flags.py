"""Defines flags that several commands share: those that open one trained network."""

from absl import flags

# So that `--help` lists them as flags of the command, not of this module.
flags.disclaim_key_flags()


def define_step(own: flags.FlagValues) -> flags.FlagHolder[int | None]:
    """Defines `--step`, of a run."""
    return flags.DEFINE_integer(
        "step", None, "Step of the run's checkpoint; default: the newest.", flag_values=own
    )


def define_loras(own: flags.FlagValues) -> flags.FlagHolder[list[str]]:
    """Defines `--lora`, which may be given several times."""
    return flags.DEFINE_multi_string(
        "lora",
        [],
        "PATH or PATH:SCALE of a LoRA that is added to the network; may be given several times.",
        flag_values=own,
    )


def define_conditions(own: flags.FlagValues) -> flags.FlagHolder[list[str]]:
    """Defines `--condition`, which may be given several times."""
    return flags.DEFINE_multi_string(
        "condition",
        [],
        "NAME=VALUE or NAME=FILE of what a network of another package reads beside the text; may "
        "be given several times, and for one name one value for all prompts, or one for each, or "
        "several for one prompt.",
        flag_values=own,
    )


def define_dtype(own: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """Defines `--dtype`, which a network computes in."""
    return flags.DEFINE_enum(
        "dtype",
        None,
        ("float32", "bfloat16"),
        "Dtype of computation; default: the config's.",
        flag_values=own,
    )
