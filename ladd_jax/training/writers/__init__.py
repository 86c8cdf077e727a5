"""Writers: where a training's numbers and pictures are shown, by the names that `log.writers` has.

A writer is a module here with `open_writer(directory, config) -> Writer`, and a line in the table.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ladd_jax.errors import UserError
from ladd_jax.ranges import check_choice
from ladd_jax.training.writers.base import Writer


class Entry(NamedTuple):
    """A writer of the table.

    Attributes:
      module: module with its `open_writer`, imported when it is asked for.
      client: the package that it writes with.
      extra: the extra of this package that installs the client; empty where it is there anyway.
    """

    module: str
    client: str
    extra: str


WRITERS = {
    "tensorboard": Entry("ladd_jax.training.writers.tensorboard", "tensorboardX", ""),
    "wandb": Entry("ladd_jax.training.writers.wandb", "wandb", "wandb"),
    "mlflow": Entry("ladd_jax.training.writers.mlflow", "mlflow", "mlflow"),
}
"""By name."""


def check_writers(names: Sequence[str]) -> None:
    """Whether all of these writers can be opened here; no client is imported.

    Raises:
      UserError: there is no such writer, or its client is not installed.
    """
    for name in names:
        check_choice(name, "log.writers", *WRITERS)
        entry = WRITERS[name]
        if importlib.util.find_spec(entry.client) is None:
            wanted = f"ladd_jax[{entry.extra}]" if entry.extra else entry.client
            raise UserError(
                f"log.writers names {name!r} and the package {entry.client} is not installed: run "
                f"`pip install {wanted}`, or leave it out"
            )


def open_writers(
    names: Sequence[str], directory: Path, config: Mapping[str, Any]
) -> dict[str, Writer]:
    """Writers by name. One that kept the number of its run in the directory goes on with that run.

    Args:
      names: keys of `WRITERS`.
      directory: an existing folder of one training.
      config: the run's config, to be shown beside its numbers.

    Raises:
      UserError: see `check_writers`.
    """
    check_writers(names)
    return {
        name: importlib.import_module(WRITERS[name].module).open_writer(directory, config)
        for name in names
    }
