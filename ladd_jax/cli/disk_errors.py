"""What a system says of a path that it does not read or write, in one sentence."""

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
    errno.EIO: "look at the disk, and at what the system logs of it",
    errno.ESTALE: "mount the share again",
    errno.ELOOP: "look at the links of the path",
}
# Of these no path needs to be known: they are of disks alone.
_OF_DISKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ESTALE})


def disk_error(error: BaseException) -> str:
    """One sentence about an error that is of a path or a disk; empty where it is of something else.

    Args:
      error: what was raised, or that of another library with one as its cause.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _REMEDIES:
            # Of a copy the second is what is written, which a disk may have no room for.
            written = found.filename2 if found.errno in _OF_DISKS else None
            named = found.filename if written is None else written
            if named is not None:
                place = os.fsdecode(named)
                return f"{place}: {os.strerror(found.errno)}: {_REMEDIES[found.errno]}"
            if found.errno in _OF_DISKS:
                return f"a disk says {os.strerror(found.errno)!r}: {_REMEDIES[found.errno]}"
        found = found.__cause__
    return ""
