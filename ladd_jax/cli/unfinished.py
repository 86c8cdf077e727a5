"""Removes what a writer that was killed has left in a workdir."""

import logging
import shutil
from pathlib import Path

from ladd_jax.cli.ownership import READERS
from ladd_jax.config.identity import RESULTS
from ladd_jax.whole_files import REMOVED

_LOG = logging.getLogger(__name__)

# Suffixes of files that were being written, checkpoints that Orbax had not finished, and folders
# that were being removed.
_UNFINISHED = (".partial", ".orbax-checkpoint-tmp", REMOVED)


def remove_unfinished(workdir: Path) -> None:
    """Removes what was being written when a run of this workdir was killed.

    Only the owner of the workdir may call this, before anything writes there. Folders that another
    command may be writing to, such as folders of pictures, are left alone.
    """
    folders = list(RESULTS)
    if not any((workdir / READERS).glob("*.json")):
        # Runs that read these data may be writing there.
        folders.append("evaluation")
    # An export into the workdir has a folder of its own there.
    found = [path for path in workdir.iterdir() if path.is_file() or path.name.endswith(REMOVED)]
    for folder in folders:
        found += (workdir / folder).rglob("*")
    # A folder comes before its contents, which are then gone with it.
    for path in found:
        if not path.name.endswith(_UNFINISHED):
            continue
        _LOG.info("removing %s, which was not finished", path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
