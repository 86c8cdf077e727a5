"""What a writer that was killed has left in a workdir."""

import logging
import shutil
from pathlib import Path

from ladd_jax.cli.ownership import READERS
from ladd_jax.config.identity import RESULTS
from ladd_jax.whole_files import REMOVED

_LOG = logging.getLogger(__name__)

# A file that was not whole yet, a checkpoint that Orbax had not finished, what was being removed.
_UNFINISHED = (".partial", ".orbax-checkpoint-tmp", REMOVED)


def remove_unfinished(workdir: Path) -> None:
    """Removes what was being written when a run of this workdir was killed.

    Only the owner of the workdir may do it, before anything writes there. Folders that another
    command may be writing to, such as those of pictures, are left alone.
    """
    folders = list(RESULTS)
    if not any((workdir / READERS).glob("*.json")):
        # Runs that read these data write there, too.
        folders.append("evaluation")
    # An export into the workdir has a folder of its own there.
    found = [path for path in workdir.iterdir() if path.is_file() or path.name.endswith(REMOVED)]
    for folder in folders:
        found += (workdir / folder).rglob("*")
    # A folder comes before what is in it, which is gone with it.
    for path in found:
        if not path.name.endswith(_UNFINISHED):
            continue
        _LOG.info("removes %s, which was not finished", path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
