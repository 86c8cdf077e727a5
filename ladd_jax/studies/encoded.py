"""Encoded data that several data generators of a study are trained on: they are encoded once."""

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

# The last one says that the data are there.
_SETS = ("held_out", "encoded")


def share_encoded(config: Config, data: Path) -> None:
    """Gives a directory of data that has none yet the encoded sets of one beside it, where that has
    them of the same fields, records and encoders. Their files are linked, or copied where the disk
    has no links.

    Of data that are not read at once the stage `encode` sees whether records are the same. Their
    buckets have to be named, since those that it chooses depend on the network, too.

    Args:
      config: the run's config.
      data: the directory, which need not be there.
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
    # What is wrong with the data is told where the run begins.
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
        # No job changes them meanwhile.
        with reading(other):
            data.mkdir(exist_ok=True)
            for name in _SETS:
                # Without the one the other is not taken, either: the stage makes both.
                if is_complete(other / name) and not _share(other / name, data / name):
                    break
        return


def _share(source: Path, target: Path) -> bool:
    """Links a set; whether it is there then."""
    try:
        with whole(target) as partial:
            shutil.copytree(source, partial, copy_function=_link)
    except OSError as error:
        # Another job that was as far as this one has made it meanwhile.
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return True
        # Of a file that is gone since, or a disk that is full: sharing is only a saving.
        if not isinstance(error, shutil.Error | FileNotFoundError):
            raise
        _LOG.info("study: %s cannot be read as a whole, and %s is encoded anew", source, target)
        return False
    return True


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
