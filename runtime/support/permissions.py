"""Whose files are trusted: ours (and root's, where that is enough), if nobody else may write them.

Folders or files that belong to somebody else, or that others may write, are refused. Whoever owns the folders above, or
may write there, could swap ours between check and use: those must be root's or ours and not open to all, but a group
may write there, since many systems give every user a group of their own. Windows has no such modes: there the user's
profile folder is what protects them.
"""

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UnetError

NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Flags to open a file: a link is refused, and a pipe is not waited for."""


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The rules for one kind of files, and the words of its errors.

    Attributes:
        error: raised for what is not trusted.
        owner: whose they are: "the engine cache".
        files: what they are, and why that matters: "engines", "are executable code".
        why: see `files`.
        elsewhere: advice to keep them in another place.
        roots: True if root's files are as good as ours; root may change ours anyway.
        readable: True if others may read our folders.
    """

    error: type[UnetError]
    owner: str
    files: str
    why: str
    elsewhere: str
    roots: bool = False
    readable: bool = False

    def check_own(self, path: Path, *, folder: bool = False, status: os.stat_result | None = None) -> None:
        """Refuse what is not a file (or `folder`) of ours, or what others may write.

        `status` is that of the open file, if it was opened already.

        Raises:
            UnetError: `error`: it is something else, somebody else's, or open to others.
            OSError: it is not there.
        """
        status = path.lstat() if status is None else status
        if stat.S_ISLNK(status.st_mode):
            raise self.error(f"{path}: is a link, expected {self.owner}'s own; remove it")
        if not (stat.S_ISDIR if folder else stat.S_ISREG)(status.st_mode):  # opening a pipe would wait for a writer
            raise self.error(f"{path}: is not a {'folder' if folder else 'regular file'}, expected one; remove it")
        if not hasattr(os, "getuid"):
            return
        if status.st_uid not in self._owners:
            raise self.error(
                f"{path}: belongs to user {status.st_uid}, expected {named(*self._owners)}, since {self.files} "
                f"{self.why}; {self.elsewhere}, or remove it"
            )
        if status.st_mode & (0o077 if folder and not self.readable else 0o022):
            expected = "700" if folder else "600"
            raise self.error(
                f"{path}: has mode {stat.S_IMODE(status.st_mode):o}, expected {expected}, since {self.files} "
                f"{self.why}; if nobody else wrote there: chmod {expected} {path}"
            )

    def check_parent(self, folder: Path) -> None:
        """Refuse a folder above where somebody else may put another in place of ours; /tmp's sticky bit forbids that.

        Raises:
            UnetError: `error`: it is a link, belongs to neither us nor root, or everybody may write there.
            OSError: it is not there.
        """
        status = folder.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise self.error(f"{folder}: has become a link, expected a folder; try again")
        if not hasattr(os, "getuid"):
            return
        if status.st_uid not in (0, os.getuid()):
            raise self.error(
                f"{folder}: belongs to user {status.st_uid}, expected {named(os.getuid(), 0)}, since {self.files} "
                f"below it {self.why}; {self.elsewhere}"
            )
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise self.error(
                f"{folder}: may be written by everybody, and {self.files} below it {self.why}; chmod o-w {folder}, or "
                f"{self.elsewhere}"
            )

    def open_own(self, path: Path, flags: int = os.O_RDONLY) -> int:
        """Open a file and return its descriptor; a new one can be read and written by us alone.

        Raises:
            UnetError: `error`: as `check_own`, of the path before and of the open file.
            OSError: it cannot be opened.
        """
        if flags & os.O_CREAT:
            with suppress(FileNotFoundError):
                self.check_own(path)
        else:
            self.check_own(path)
        try:
            descriptor = os.open(path, flags | NOT_FOLLOWED | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise self.error(f"{path}: is a link, expected {self.owner}'s own; remove it") from error
        try:
            self.check_own(path, status=os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @property
    def _owners(self) -> tuple[int, ...]:
        return (os.getuid(), 0) if self.roots else (os.getuid(),)


def named(*owners: int) -> str:
    """Return the users as an error names them: "1000 or root"."""
    return " or ".join(dict.fromkeys("root" if owner == 0 else str(owner) for owner in owners))
