"""The trainings of the stage `pretrain` besides the data generator's: networks of other sizes.

A teacher or a student whose size the config says, and whose weights it does not name, is trained
from nothing like the data generator, with the settings of `pretrain`. It is the run's own: what
runs share with their data is the data generator alone.
"""

import dataclasses
from typing import Any

from ladd_jax.config.fields import Config, OtherNetwork

NETWORKS = {"pretrain_teacher": "teacher", "pretrain_student": "student"}
"""The section of the network that each of these trainings makes, by the training's name, which is
also that of its folder."""


def further_trainings(config: Config) -> tuple[str, ...]:
    """The trainings of `NETWORKS` that a config asks for, whichever stages are run now."""
    asked = trainings_of_sections(config).values()
    return tuple(name for name in NETWORKS if name in asked)


def trainings_of_sections(config: Config) -> dict[str, str]:
    """The training that makes the network of a section, for sections that have one of their own.

    A teacher and a student of the same fields are the same network, from the same seed, which is
    trained once, as the student's. With `weights` there are none: nothing is trained from nothing
    beside a released network.
    """
    if config.weights:
        return {}
    student, teacher, found = config.student, config.teacher, {}
    if teacher.depth > 0 and not teacher.weights:
        fields = [field.name for field in dataclasses.fields(OtherNetwork)]
        same = all(getattr(student, name) == getattr(teacher, name) for name in fields)
        found["teacher"] = "pretrain_student" if same else "pretrain_teacher"
    if student.depth > 0:
        found["student"] = "pretrain_student"
    return found


def stage_of(result: str) -> str:
    """The stage that runs a training, and whose section has its settings."""
    return "pretrain" if result in NETWORKS else result


def settings_of(config: Config, training: str) -> Any:
    """The section with a training's steps, batch and optimizer."""
    return getattr(config, stage_of(training))
