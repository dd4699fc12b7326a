"""Calls that write, of which one fails or all from one on, as on a full or broken disk."""

import builtins
import errno
import io
import os
import resource
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from unittest.mock import patch

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)
BY_PATH = ("mkdir", "replace", "rename", "unlink", "rmdir", "chmod", "utime", "truncate")
BY_DESCRIPTOR = ("fsync", "ftruncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Faults:
    """Counts the calls that change files below a folder; the `failing`th raises, with `forever` all later ones too."""

    def __init__(self, root, *, failing=None, error=errno.ENOSPC, forever=False):
        self.root, self.failing, self.error, self.forever = str(root), failing, error, forever
        self.count, self.hit = 0, []

    def see(self, name, path=None):
        if path is not None and not os.fspath(path).startswith(self.root):
            return
        self.count += 1
        if self.failing is not None and (self.count == self.failing or (self.forever and self.count > self.failing)):
            self.hit.append(name)
            raise OSError(self.error, os.strerror(self.error), None if path is None else os.fspath(path))

    @contextmanager
    def active(self):
        """Let calls fail within the block, of which nothing is printed."""
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
            for name in BY_PATH:
                stack.enter_context(patch.object(os, name, self._by_path(name, getattr(os, name))))
            for name in BY_DESCRIPTOR:
                stack.enter_context(patch.object(os, name, self._by_descriptor(name, getattr(os, name))))
            stack.enter_context(patch.object(os, "open", self._os_open(os.open)))
            opened = self._open(builtins.open)
            stack.enter_context(patch.object(builtins, "open", opened))
            stack.enter_context(patch.object(io, "open", opened))
            yield self

    def _by_path(self, name, real):
        def call(path, *arguments, **named):
            if isinstance(path, int):
                return real(path, *arguments, **named)
            self.see(name, path)
            return real(path, *arguments, **named)

        return call

    def _by_descriptor(self, name, real):
        def call(descriptor, *arguments):
            self.see(name)
            return real(descriptor, *arguments)

        return call

    def _os_open(self, real):
        def call(path, flags, *arguments, **named):
            if flags & WRITING:
                self.see("os.open", path)
            return real(path, flags, *arguments, **named)

        return call

    def _open(self, real):
        def call(file, mode="r", *arguments, **named):
            if not isinstance(file, int) and set(mode) & set("wax+"):
                self.see("open", file)
            return real(file, mode, *arguments, **named)

        return call


@contextmanager
def files_no_larger_than(size):
    """Limit the size of files, as a full disk does, without filling one; of what is printed nothing is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
