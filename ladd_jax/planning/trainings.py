"""The trainings of a run, by the names that `--stage` takes, and why a config may not have one.

A stage is a training of the same name, but for `pretrain`, which may train networks of other sizes
beside the data generator.
"""

from ladd_jax.config.fields import Config
from ladd_jax.config.identity import TRAININGS
from ladd_jax.config.pretraining import (
    NETWORKS,
    further_trainings,
    settings_of,
    stage_of,
    trainings_of_sections,
)
from ladd_jax.data.joined import pretrains
from ladd_jax.errors import UserError


def trainings_run(config: Config) -> list[str]:
    """The trainings that a config runs, in order; `distil` is always among them."""
    return [training for training in TRAININGS if not _why_not(config, training)]


def check_training(config: Config, training: str) -> None:
    """Checks that a config runs a training, so that there is a step to plan.

    Raises:
      UserError: it does not; the field that leaves it out is named.
    """
    reason = _why_not(config, training)
    if reason:
        raise UserError(
            f"--stage={training} is not one of this config's trainings "
            f"({', '.join(trainings_run(config))}), since {reason}"
        )


def _why_not(config: Config, training: str) -> str:
    """Which field leaves a training out, and what to do about it; empty where it is run."""
    stage = stage_of(training)
    if training == "distil":
        return ""
    if stage not in config.stages:
        return f"stages is {', '.join(config.stages) or '()'}: name {stage!r} among them"
    if not settings_of(config, training).steps:
        return f"{stage}.steps is 0: use more, such as --config.{stage}.steps=1000"
    if training == "pretrain" and not pretrains(config):
        return (
            f"the data generator is the network of the weights {config.weights}: leave weights out"
        )
    if training in NETWORKS and training not in further_trainings(config):
        return _why_no_network(config, training)
    return ""


def _why_no_network(config: Config, training: str) -> str:
    """The same for a training of `NETWORKS`."""
    section = NETWORKS[training]
    if config.weights:
        return (
            f"weights is {config.weights}, beside which no network is trained from nothing: leave "
            f"weights out"
        )
    if trainings_of_sections(config).get(section):
        return "teacher and student are one network: use --stage=pretrain_student"
    if section == "teacher" and config.teacher.weights:
        return f"teacher.weights is {config.teacher.weights}: leave it out, and give teacher.depth"
    return f"{section}.depth is 0: give that network a size, such as --config.{section}.depth=12"
