"""What the command line tools share: errors as one line, exit codes, Ctrl-C, progress only where a person watches."""

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from runtime.commands.entry import INTERRUPTED
from runtime.errors import DeviceWarning, UnetError, one_line

DISTRIBUTION = "unet-deploy"

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A `click.Command` that prints a `UnetError` as one line on stderr and exits with its `exit_code`."""

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        with _told():  # --help and --version are printed here
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: click.Context) -> Any:
        with _told(), warnings.catch_warnings():
            warnings.showwarning = _show_warning(warnings.showwarning)
            return super().invoke(ctx)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what is no bug into a line on stderr and an exit code."""
    try:
        yield
    except UnetError as error:
        _end(f"error: {one_line(str(error))}", error.exit_code)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            _end("error: standard output: cannot be written (no space left on device)", UnetError.exit_code)
        if error.filename is None or error.errno == errno.EPIPE:
            raise
        name, reason = one_line(os.fsdecode(error.filename)), (error.strerror or "").lower()
        _end(f"error: {name}: {reason}", UnetError.exit_code)
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if not _was_interrupted(error):
            raise
        _end("interrupted", INTERRUPTED)


def _end(line: str, code: int) -> NoReturn:
    with suppress(OSError):  # stderr may be full or gone, too
        click.echo(line, err=True)
    raise click.exceptions.Exit(code)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an error only hands on a Ctrl-C, as classes do that are being made while a package is imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _show_warning(default: Callable[..., None]) -> Callable[..., None]:
    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, DeviceWarning):
            click.echo(f"note: {one_line(str(message))}", err=True)
        else:
            default(message, category, *rest, **named)

    return show


def version_option(command: F) -> F:
    """Give a command the option `--version`: the version of the installed distribution."""
    return click.version_option(installed_version(), message="%(prog)s %(version)s")(command)


def installed_version() -> str:
    """The version of this library; "(not installed)" where it runs from a folder alone."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "(not installed)"


def progress_hidden() -> bool:
    """True where stderr is no terminal, or closed: progress bars would only fill a log."""
    return sys.stderr is None or not sys.stderr.isatty()


class Named(click.ParamType[Path]):
    """A path that is not empty, as those of unset shell variables are: to `Path`, "" is the folder at hand.

    `no_pipe` says what to do instead where "-" is given, if that is not a file's name like others.
    """

    name = "path"

    def __init__(self, no_pipe: str = "") -> None:
        self.no_pipe = no_pipe

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if value == "":
            self.fail("is empty; name a file or folder (is a variable of the shell unset?)", param, ctx)
        if value == "-" and self.no_pipe:  # here, since to `Path` ./- is the same
            self.fail(f"-: {self.no_pipe}; what is called so is ./-", param, ctx)
        return Path(value)


class Listed(click.ParamType[tuple[Any, ...]]):
    """Values with commas between them: "64,128,256,512", "0.485,0.456,0.406" or "sky,road,car"."""

    def __init__(self, kind: type[int] | type[float] | type[str]) -> None:
        self.kind, self.name = kind, "NAME,..." if kind is str else "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part.strip()) for part in str(value).split(","))
        except ValueError:
            whole = "whole " if self.kind is int else ""
            self.fail(f"{value!r}: expected {whole}numbers with commas between them", param, ctx)


NONE = "none"
"""What `IgnoredValue` is given where all values count."""


class IgnoredValue(click.IntRange):
    """A value in masks, 0 to 255, that does not count; or `NONE`."""

    name = "0..255|none"

    def __init__(self) -> None:
        super().__init__(0, 255)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return NONE if value == NONE else super().convert(value, param, ctx)


class Size(click.ParamType[tuple[int, int]]):
    """A size written `WIDTHxHEIGHT` on the command line, as cameras do; `(height, width)` in Python."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        width, separator, height = str(value).lower().partition("x")
        if not (separator and _is_side(width) and _is_side(height)):
            self.fail(f"{value!r} is not a size; expected for example 1918x1280", param, ctx)
        return int(height), int(width)


def _is_side(text: str) -> bool:
    return text.isdecimal() and len(text) <= 6 and int(text) > 0
