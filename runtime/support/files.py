"""Atomic writes: a reader sees the old file or the new one, never half of one.

A file is written under another name beside its target (`.STEM.`, 8 hex digits, suffix) and then renamed. Where the
system has `flock`, its writer holds a lock on it. So what a killed process left is known by a lock that nobody holds,
on every machine that sees the file, and `remove_leftovers` removes it. Linux's files without names (`O_TMPFILE`) would
leave nothing, but most writers need a name, such a file cannot take another one's place, and network disks lack them.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import OutputError
from runtime.support.locks import try_lock

NAME_LENGTH = 40
"""Maximum number of characters of a target's stem in the name of its temporary file."""

TEMPORARY = re.compile(rf"\.(.{{1,{NAME_LENGTH}}})\.[0-9a-f]{{8}}(\.[^.]*)?", re.DOTALL)
"""Names of temporary files: the first characters of the target's stem, and its suffix."""


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents unless they exist.

    Raises:
        OutputError: a file has this name, or a folder above is not writable.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot create this folder ({reason_of(error)}); choose another one") from error
    return folder


def make_inner_folder(outer: Path, inner: str) -> Path:
    """Create a folder in the folder `outer` that a user named, unless it exists, and return its path.

    Raises:
        OutputError: as `refuse_inner_links` and `make_folder`.
    """
    refuse_inner_links(outer, Path(inner))
    return make_folder(outer / inner)


def refuse_inner_links(outer: Path, inner: Path) -> None:
    """Refuse the folder `inner` of the folder `outer` if it, or a folder between, is a link: it may lead anywhere.

    Raises:
        OutputError: it is one. `outer` itself may be one, since a user named it.
    """
    for length in range(1, len(inner.parts) + 1):
        folder = outer.joinpath(*inner.parts[:length])
        if folder.is_symlink():
            raise OutputError(
                f"{folder}: is a link, expected a folder or nothing, since links in {outer} are not followed; remove it"
            )


def require_temporary_folder(needed_by: str) -> None:
    """Refuse to begin work that needs the system's folder for temporary files where there is none with room.

    Raises:
        OutputError: no such folder can be written; the message names those that were tried.
    """
    import tempfile  # loads random and hashlib, which most commands do without

    try:
        tempfile.gettempdir()
    except OSError as error:
        raise OutputError(
            f"no temporary folder can be written, and {needed_by} needs one ({reason_of(error)}); free some space, or "
            "set TMPDIR to another folder"
        ) from error


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder before a block of long checks; if the block fails, remove the folder unless it existed before."""
    folder = Path(path)
    existed = os.path.isdir(folder)  # noqa: PTH112 - unlike Path.is_dir it takes any name
    make_folder(folder)
    try:
        yield folder
    except BaseException:
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise


def prepare_target(path: str | os.PathLike[str], *, follow: bool = False) -> Path:
    """Make the folder of a file that will be written, so that a wrong name shows before the work and not after it.

    Returns the path, or with `follow` the target of a link, for a path that a user named.

    Raises:
        OutputError: the folder cannot be made or written to, or the path is a folder.
    """
    target = Path(path)
    try:
        is_link = target.is_symlink()
        if is_link and follow:
            target = Path(os.path.realpath(target))
        is_folder = target.is_dir() and (follow or not is_link)
    except OSError as error:
        raise OutputError(f"{target}: is not a file name ({reason_of(error)}); choose another one") from error
    if "\0" in str(target):
        raise OutputError(f"{str(target)!r}: is not a file name (embedded null byte); choose another one")
    if is_folder:
        raise OutputError(f"{target}: is a folder, expected a file name; add one")
    make_folder(target.parent)
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: its folder cannot be written to; choose another place")
    return target


@contextmanager
def replacing(path: str | os.PathLike[str], *, follow: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; after the block, flush the file to disk and rename it to `path`.

    A link at `path` is replaced; with `follow`, for a path that a user named, the file that it leads to is replaced
    instead. The temporary file has the suffix of `path`, for writers that choose a format by suffix. If the block
    raises, the temporary file is removed and the old file at `path` stays.

    Raises:
        OutputError: the folder or file cannot be written, the disk is full, or the block wrote nothing.
    """
    target = prepare_target(path, follow=follow)
    temporary, descriptor = target, None
    try:
        temporary, descriptor = new_temporary(target)
        yield temporary
        with open(temporary, "rb+") as file:
            if not os.fstat(file.fileno()).st_size:
                raise OSError(None, "nothing was written")
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        advice = "free some space" if error.errno in (errno.ENOSPC, None) else "choose another place"
        raise OutputError(f"{target}: cannot be written ({reason_of(error)}); {advice}") from error
    finally:
        if temporary != target:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def new_temporary(target: Path) -> tuple[Path, int | None]:
    """Return a new path beside a target; where there is `flock`, with an empty file, and the descriptor that locks it.

    Windows neither renames nor removes a file that is open, so there it is not made.
    """
    while True:
        temporary = target.with_name(f".{target.stem[:NAME_LENGTH]}.{os.urandom(4).hex()}{target.suffix}")
        if sys.platform == "win32":
            return temporary, None
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        is_ours = True
        with suppress(OSError):  # a file system without locks
            is_ours = try_lock(descriptor)
        if is_ours and os.path.lexists(temporary):
            return temporary, descriptor
        os.close(descriptor)  # `remove_leftovers` of another process came between the two calls


def remove_leftovers_of(targets: Iterable[Path]) -> None:
    """Remove the temporary files that killed processes left beside these targets; see `remove_leftovers`."""
    wanted: dict[Path, set[tuple[str, str]]] = {}
    for target in targets:
        wanted.setdefault(target.parent, set()).add((target.stem[:NAME_LENGTH], target.suffix))
    for folder, names in wanted.items():
        remove_leftovers(folder, lambda stem, suffix, names=names: (stem, suffix) in names)  # type: ignore[misc]


def remove_leftovers(folder: Path, is_wanted: Callable[[str, str], bool]) -> None:
    """Remove the temporary files that killed processes left in a folder; those of living ones stay.

    `is_wanted` gets the stem of a target, cut to `NAME_LENGTH`, and its suffix: the caller has to say which it writes.
    On Windows nothing is removed, since nothing tells who lives.
    """
    if sys.platform == "win32":
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = TEMPORARY.fullmatch(entry.name)
            if found and is_wanted(found[1], found[2] or "") and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    remove_if_unlocked(entry.path)


def remove_if_unlocked(path: str) -> None:
    """Remove a file that no process holds locked; raises OSError if that cannot be found out."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if try_lock(descriptor):
            os.unlink(path)  # noqa: PTH108 - a name from `os.scandir`
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], content: bytes, *, follow: bool = False) -> None:
    """Write a file atomically, as `replacing`; raises `OutputError` and keeps the old file if that fails."""
    with replacing(path, follow=follow) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str, *, follow: bool = False) -> None:
    """Write a UTF-8 text file atomically; see `write_bytes`."""
    write_bytes(path, content.encode(), follow=follow)


def reason_of(error: OSError) -> str:
    """The system's words for an error, in lower case."""
    return (error.strerror or str(error)).lower()


def is_formula(cell: str) -> bool:
    """Return True for text that a spreadsheet takes for a formula when it opens a CSV file."""
    return cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def formula_note(path: str | os.PathLike[str], names: Iterable[str]) -> str:
    """Return a note on names in a table that spreadsheets take for formulas; "" if there are none.

    Such tables are read by programs that look for just these names, so they stay as they are.
    """
    found = [name for name in names if is_formula(name)]
    if not found:
        return ""
    names = f"{len(found)} names ({found[0]}, ...)" if len(found) > 1 else f"1 name ({found[0]})"
    return f"{os.fspath(path)}: a spreadsheet would take {names} for a formula; import the first column as text"
