"""Turns a system's errors about paths and disks into one sentence with a remedy."""

import errno
import os

_SPACE = "free space there, or name a path on another disk"
_ACCESS = "name a path where you may write, or change its permissions"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EROFS: _ACCESS,
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.ENOTDIR: "a part of the path is a file: name another path, or move that file",
    errno.EEXIST: "a file has the name of a folder: name another path, or move that file",
    errno.EISDIR: "a folder has the name of a file: name another path, or move that folder",
    errno.ENAMETOOLONG: "use shorter names",
    errno.ENOENT: "check the path",
    errno.EIO: "check the disk, and what the system logs about it",
    errno.ESTALE: "mount the share again",
    errno.ELOOP: "check the links in the path",
}
# These concern a disk as a whole, and are reported even if the path is not known.
_OF_DISKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ESTALE})


def disk_error(error: BaseException) -> str:
    """One sentence about an error that concerns a path or a disk; empty for any other error.

    Args:
      error: the error, which may be another library's with a system's error as its cause.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _REMEDIES:
            # A copy has two paths. The second is written: the full or read-only disk is that one's.
            written = found.filename2 if found.errno in _OF_DISKS else None
            named = found.filename if written is None else written
            if named is not None:
                place = os.fsdecode(named)
                return f"{place}: {os.strerror(found.errno)}: {_REMEDIES[found.errno]}"
            if found.errno in _OF_DISKS:
                return f"a disk says {os.strerror(found.errno)!r}: {_REMEDIES[found.errno]}"
            if not _has_current_folder():
                return "the current folder was moved or removed: change to one that exists"
        found = found.__cause__
    return ""


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
