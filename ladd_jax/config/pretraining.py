"""The trainings of the stage `pretrain` besides the data generator's: networks of other sizes.

A teacher or a student whose size the config says, and whose weights it does not name, is trained
from nothing as the data generator is, by the settings of `pretrain`. It is the run's own: the data
that runs share have the data generator alone.
"""

from typing import Any

from ladd_jax.config.fields import Config

NETWORKS = {"pretrain_teacher": "teacher", "pretrain_student": "student"}
"""The section of the network of each of these trainings, by the training's name and folder."""


def further_trainings(config: Config) -> tuple[str, ...]:
    """The trainings of `NETWORKS` that a config asks for, whichever stages are run now.

    With `weights` there are none: nothing is trained from nothing beside a released network.
    """
    if config.weights:
        return ()
    asked = {
        "pretrain_teacher": config.teacher.depth > 0 and not config.teacher.weights,
        "pretrain_student": config.student.depth > 0,
    }
    return tuple(name for name in NETWORKS if asked[name])


def stage_of(result: str) -> str:
    """The stage that makes a training, whose section has its settings."""
    return "pretrain" if result in NETWORKS else result


def settings_of(config: Config, training: str) -> Any:
    """The section with a training's steps, batch and optimizer."""
    return getattr(config, stage_of(training))
