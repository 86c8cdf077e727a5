"""Encoded data that several data generators of a study are trained on: they are encoded once."""

import errno
import logging
import os
import shutil
from pathlib import Path

from ladd_jax.config.fields import Config
from ladd_jax.data.shard_sets import is_complete, read_identity
from ladd_jax.stages.changes import inputs_of
from ladd_jax.stages.sets import set_difference
from ladd_jax.whole_files import whole

_LOG = logging.getLogger(__name__)

# The last one says that the data are there.
_SETS = ("held_out", "encoded")


def share_encoded(config: Config, data: Path) -> None:
    """Gives a directory of data that has none yet the encoded sets of one beside it, where that has
    them of the same fields and the same encoders. Their files are linked, or copied where the disk
    has no links.

    Whether the records are those of the data now is seen when the stage `encode` begins, as it is
    for what a run has encoded itself.

    Args:
      config: the run's config.
      data: the directory, which need not be there.
    """
    if not data.parent.is_dir() or any((data / name).exists() for name in _SETS):
        return
    inputs = inputs_of(config, None)["encoded"]
    for other in sorted(data.parent.iterdir()):
        found = other / "encoded"
        known = read_identity(found)
        if not (known and is_complete(found)) or set_difference(
            config, found, "encoded", known, inputs
        ):
            continue
        _LOG.info("study: %s has the encoded data of %s", data.name, other.name)
        data.mkdir(exist_ok=True)
        for name in _SETS:
            if is_complete(other / name):
                _share(other / name, data / name)
        return


def _share(source: Path, target: Path) -> None:
    try:
        with whole(target) as partial:
            shutil.copytree(source, partial, copy_function=_link)
    except OSError as error:
        # Another job that was as far as this one has made it meanwhile.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
