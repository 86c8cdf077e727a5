"""Flags of the commands that open one trained network, which each has among its own."""

from absl import flags

# `--help` lists them as the command's.
flags.disclaim_key_flags()


def define_step(own: flags.FlagValues) -> flags.FlagHolder[int | None]:
    """`--step` of a run."""
    return flags.DEFINE_integer(
        "step", None, "Step of the run's checkpoint; default: the newest.", flag_values=own
    )


def define_loras(own: flags.FlagValues) -> flags.FlagHolder[list[str]]:
    """`--lora`, as often as there are some."""
    return flags.DEFINE_multi_string(
        "lora",
        [],
        "PATH or PATH:SCALE of a LoRA that is added to the network; may be given several times.",
        flag_values=own,
    )


def define_dtype(own: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """`--dtype` that a network computes in."""
    return flags.DEFINE_enum(
        "dtype",
        None,
        ("float32", "bfloat16"),
        "Dtype of computation; default: the config's.",
        flag_values=own,
    )
