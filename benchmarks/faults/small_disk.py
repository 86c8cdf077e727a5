"""A job on a disk that fills up, becomes read-only or vanishes, for `trials.on_disk`.

`python -m benchmarks.faults.small_disk HOW SECONDS WORKDIR ROOT` mounts a disk at WORKDIR/disk,
starts the job on it and breaks the disk after SECONDS. It prints, as JSON, how the job ended and
what the same command made once the disk was whole again. It has to run in a mount namespace.
"""

import contextlib
import errno
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.faults.job import Job, place
from benchmarks.faults.trials import Trials


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _fill(disk: Path) -> Path:
    """Writes a file that leaves no room on the disk, and returns its path."""
    filler = disk / "filler"
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(filler.open("wb", buffering=0))
        # Smaller pieces fit where larger ones do not.
        for size in (1 << 20, 1 << 12):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return filler


def main(how: str, seconds: str, workdir: str, root: str) -> None:
    """Mounts, runs, breaks, mends and runs again."""
    below, disk = Path(workdir) / "below", Path(workdir) / "disk"
    below.mkdir()
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", below)
    _mount("--bind", below, disk)
    trials = Trials(Path(root))
    # The run is a link, beside which its logs stay readable when the disk itself goes away.
    run = Path(workdir) / "run"
    run.symlink_to(disk / "run")
    (disk / "run").mkdir()
    job = Job(run, trials.programs)
    job.run_for(float(seconds))
    filler = None
    if how == "full":
        filler = _fill(below)
    else:
        # Files that are open stay open. Whatever is opened next finds a read-only disk or an empty
        # folder.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        if how == "read_only":
            _mount("--bind", below, disk)
            _mount("-o", "remount,bind,ro", disk)
    ended = job.wait()
    if filler:
        filler.unlink()
    else:
        if how == "read_only":
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
        _mount("--bind", below, disk)
    print(
        json.dumps(
            {
                "at": place(ended.told),
                "codes": ended.codes,
                "sentence": ended.sentence,
                "traceback": ended.traceback,
                "again": trials.ended(run, 1),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
