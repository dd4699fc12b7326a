"""Atomic writes: a reader sees the old file or the new one, never half of one."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import OutputError


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


def prepare_target(path: str | os.PathLike[str]) -> Path:
    """Make the folder of a file that will be written, so that a wrong name shows before the work and not after it.

    Returns the path, or the target of a link.

    Raises:
        OutputError: the folder cannot be made or written to, or the path is a folder.
    """
    target = Path(path)
    try:
        if target.is_symlink():
            target = Path(os.path.realpath(target))
        is_folder = target.is_dir()
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
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; after the block, flush the file to disk and rename it to `path`.

    The temporary file has the suffix of `path`, for writers that choose a format by suffix. If the block raises, the
    temporary file is removed and the old file at `path` stays.

    Raises:
        OutputError: the folder or file cannot be written, or the disk is full.
    """
    target = prepare_target(path)
    temporary = target.with_name(f".{target.stem[:40]}.{os.urandom(4).hex()}{target.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        advice = "free some space" if error.errno in (errno.ENOSPC, None) else "choose another place"
        raise OutputError(f"{target}: cannot be written ({reason_of(error)}); {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically; raises `OutputError` and keeps the old file if that fails."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write a UTF-8 text file atomically; see `write_bytes`."""
    write_bytes(path, content.encode())


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
