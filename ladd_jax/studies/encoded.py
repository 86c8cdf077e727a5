"""Encodes data once that several data generators of a study are trained on."""

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path

from ladd_jax.cli.ownership import reading
from ladd_jax.config.fields import Config
from ladd_jax.data.contents import Contents, contents_of
from ladd_jax.data.shard_sets import is_complete, read_identity
from ladd_jax.errors import UserError
from ladd_jax.stages.changes import SetPlan, inputs_of, set_change
from ladd_jax.stages.made import source_of
from ladd_jax.whole_files import whole

_LOG = logging.getLogger(__name__)

# "encoded" is last because its presence means that the data are complete.
_SETS = ("held_out", "encoded")


def share_encoded(config: Config, data: Path) -> None:
    """Links the encoded sets of a sibling directory into one that has none yet.

    The sibling's sets must have the same fields, records and encoders. Files are copied where the
    disk does not support links.

    For data that cannot be looked at in advance, whether records are the same is left to the stage
    `encode`. The config has to name their buckets, since buckets that the stage chooses depend on
    the network, too.

    Args:
      config: the run's config.
      data: directory of the run's data, which need not exist.
    """
    if not data.parent.is_dir() or any((data / name).exists() for name in _SETS):
        return
    others = [
        place
        for place in sorted(data.parent.iterdir())
        if read_identity(place / "encoded") and is_complete(place / "encoded")
    ]
    if not others:
        return
    contents: Contents | None = None
    # Errors in the data are reported when the run begins.
    with contextlib.suppress(UserError, OSError):
        source = source_of(config, data)
        contents = None if source is None else contents_of(source)
    if contents is None and not config.data.buckets:
        return
    inputs = inputs_of(config, None)["encoded"]
    for other in others:
        if set_change(config, SetPlan(other / "encoded", "encoded", contents, inputs)).writes:
            continue
        _LOG.info("study: %s has the encoded data of %s", data.name, other.name)
        # Keeps other jobs from changing the files meanwhile.
        with reading(other):
            data.mkdir(exist_ok=True)
            for name in _SETS:
                # If one set cannot be shared, the other is left out too: the stage makes both.
                if is_complete(other / name) and not _share(other / name, data / name):
                    break
        return


def _share(source: Path, target: Path) -> bool:
    """Links a set; returns whether it exists afterwards."""
    try:
        with whole(target) as partial:
            shutil.copytree(source, partial, copy_function=_link)
    except OSError as error:
        # Another job has made it in the meantime.
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return True
        # A file has gone or the disk is full; the run can go on, since sharing only saves time.
        if not isinstance(error, shutil.Error | FileNotFoundError):
            raise
        _LOG.info("study: %s cannot be read as a whole, so %s is encoded again", source, target)
        return False
    return True


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
