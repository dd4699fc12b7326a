"""Locks on files: given back even if the process that holds one is killed."""

import stat
import sys
from contextlib import suppress
from pathlib import Path

from runtime.errors import OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def try_lock(descriptor: int) -> bool:
    """Lock an open file; return False if another process or thread holds it."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # Windows has the latter
        return False
    return True


def require_regular(path: Path) -> Path:
    """Return the path of a lock that will be opened, if there is a regular file or nothing.

    Raises:
        OutputError: it is a link, a pipe or a device: opening it would lead elsewhere, or wait.
        OSError: its folder cannot be looked into.
    """
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            found = "a link" if stat.S_ISLNK(mode) else "not a regular file"
            raise OutputError(f"{path}: is {found}, expected a regular file or nothing; remove it")
    return path
