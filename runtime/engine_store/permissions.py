"""Whose files are trusted: those of the engine cache, which are executable code, and of the folders above it.

Folders or files that belong to somebody else, or that others may write, are refused. Whoever owns the folders above, or
may write there, could swap ours between check and use: those must be root's or ours and not open to all, but a group
may write there, since many systems give every user a group of their own. Windows has no such modes: there the user's
profile folder is what protects them.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import DeviceError


def check_own(path: Path, *, private: bool = False) -> None:
    """Refuse what is not a file of ours, or what others may write (`private`: a folder, that others may not read).

    Raises:
        DeviceError: it is something else, somebody else's, or open to others.
        OSError: it is not there.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise DeviceError(f"{path}: is a link, expected the engine cache's own; remove it")
    if not (stat.S_ISDIR if private else stat.S_ISREG)(status.st_mode):  # opening a pipe would wait for a writer
        raise DeviceError(f"{path}: is not a {'folder' if private else 'regular file'}, expected one; remove it")
    if not hasattr(os, "getuid"):
        return
    if status.st_uid != os.getuid():
        raise DeviceError(
            f"{path}: belongs to user {status.st_uid}, expected {os.getuid()}, since engines are executable code; "
            "remove it, or give ProviderOptions(engine_folder=...)"
        )
    if status.st_mode & (0o077 if private else 0o022):
        raise DeviceError(
            f"{path}: has mode {stat.S_IMODE(status.st_mode):o}, expected {'700' if private else '600'}, since engines "
            f"are executable code; if nobody else wrote there: chmod {'700' if private else '600'} {path}"
        )


def check_parent(folder: Path) -> None:
    """Refuse a folder above where somebody else may put another in place of ours; /tmp's sticky bit forbids that.

    Raises:
        DeviceError: it is a link, belongs to neither us nor root, or everybody may write there.
        OSError: it is not there.
    """
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise DeviceError(f"{folder}: has become a link, expected a folder; try again")
    if not hasattr(os, "getuid"):
        return
    if status.st_uid not in (0, os.getuid()):
        raise DeviceError(
            f"{folder}: belongs to user {status.st_uid}, expected {os.getuid()} or root, since engines below it are "
            "executable code; give ProviderOptions(engine_folder=...)"
        )
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise DeviceError(
            f"{folder}: may be written by everybody, and engines below it are executable code; chmod o-w {folder}, or "
            "give ProviderOptions(engine_folder=...)"
        )


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an OSError in the block into a `DeviceError` about the engines' folder."""
    try:
        yield
    except OSError as error:
        raise DeviceError(
            f"{folder}: cannot keep engines here ({(error.strerror or str(error)).lower()}); give "
            "ProviderOptions(engine_folder=...), or engine_cache=False to build one at every start"
        ) from error
