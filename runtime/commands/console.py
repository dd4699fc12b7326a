"""Parts of every command: errors as one line, exit codes, Ctrl-C, types of options."""

import errno
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from runtime.commands.entry import INTERRUPTED
from runtime.commands.suggestions import did_you_mean, nearest
from runtime.errors import DeviceWarning, ImageWarning, UnetError, one_line, shown
from runtime.image_files.limits import FILE_BYTES, MAX_PIXELS, MEMORY, MOST_PIXELS, LimitsByOption
from runtime.support.sizes import parse_size
from runtime.support.version import installed_version

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A `click.Command` that prints a `UnetError` as one line on stderr and exits with its `exit_code`.

    Every one has the option --version, and names the options that an unknown one may have been meant for.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.append(version_option())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(
                f"No such option {error.option_name!r}.{self._advice(error.option_name)}", ctx
            ) from None

    def _advice(self, name: str) -> str:
        """Say what a user of an unknown option may have meant; "" if nothing is near."""
        bare = name.lstrip("-")
        arguments = [param for param in self.params if isinstance(param, click.Argument) and param.name == bare]
        if arguments:
            return f" {bare.upper()} is given without the name of an option."
        options = [param for param in self.params if isinstance(param, click.Option)]
        known = [text.removeprefix("--") for option in options for text in option.opts if text.startswith("--")]
        return did_you_mean([f"--{one}" for one in nearest(bare, known)])

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        with errors_as_lines():  # --help and --version are printed here
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: click.Context) -> Any:
        with errors_as_lines(), warnings.catch_warnings():
            default = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
                if issubclass(category, DeviceWarning | ImageWarning):
                    echo(f"note: {one_line(str(message))}", err=True)
                else:
                    default(message, category, *rest, **named)

            warnings.showwarning = show
            for category in (DeviceWarning, ImageWarning):  # a note is no error, whatever PYTHONWARNINGS says
                warnings.simplefilter("always", category)
            return super().invoke(ctx)


def echo(text: str, *, err: bool = False) -> None:
    """Print text to stdout or stderr; all text that a command prints passes here, and what is no text is escaped."""
    click.echo(shown(text), err=err)


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turn every error that is not a bug into a line on stderr and an exit code."""
    try:
        yield
    except UnetError as error:
        end(f"error: {one_line(str(error))}", error.exit_code)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            end("error: standard output: cannot be written (no space left on device)", UnetError.exit_code)
        if error.filename is None or error.errno == errno.EPIPE:
            raise
        name, reason = one_line(os.fsdecode(error.filename)), (error.strerror or "").lower()
        end(f"error: {name}: {reason}", UnetError.exit_code)
    except KeyboardInterrupt:
        end("interrupted", INTERRUPTED)
    except click.ClickException as error:
        vars(error)["message"] = shown(error.message)  # it quotes arguments, which a shell may have made of file names
        raise
    except (click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        end("interrupted", INTERRUPTED)  # Ctrl-C while a package was imported, wrapped by a class that was being made


def end(line: str, code: int) -> NoReturn:
    """Print a line to stderr and end the command."""
    with suppress(OSError):  # stderr may be full or closed, too
        echo(line, err=True)
    raise click.exceptions.Exit(code)


def version_option() -> click.Option:
    """Make the option --version, which shows the version of the installed distribution."""

    def show(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
        if is_asked and not ctx.resilient_parsing:
            click.echo(f"{ctx.find_root().info_name} {installed_version()}")
            ctx.exit()

    return click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show, help="Show the version and exit."
    )


def started_as(command: str, module: str) -> str:
    """Return "python -m MODULE" if the running command was started so, else the command's own name."""
    context = click.get_current_context(silent=True)
    as_module = f"python -m {module}"
    return as_module if context is not None and context.find_root().info_name == as_module else command


def max_pixels_option(command: F) -> F:
    """Give a command that reads images the option `--max-pixels`; its function receives `limits`."""

    def convert(_: click.Context, __: click.Parameter, pixels: int | None) -> LimitsByOption:
        return LimitsByOption.for_pixels(MAX_PIXELS if pixels is None else pixels)

    option = click.option(
        "--max-pixels",
        "limits",
        type=click.IntRange(1, MOST_PIXELS),
        callback=convert,
        help="Largest image to decode, in pixels (width times height). Above the default, the limits of memory "
        f"({MEMORY / 2**30:g} GiB) and file size ({FILE_BYTES / 2**30:g} GiB) grow in proportion.  "
        f"[default: {MAX_PIXELS}]",
    )
    return option(command)


def progress_hidden() -> bool:
    """Return True if stderr is closed or not a terminal, where a progress bar would only fill a log."""
    return sys.stderr is None or not sys.stderr.isatty()


class Named(click.ParamType[Path]):
    """A path that is not empty. An unset shell variable gives "", which `Path` takes for the current folder.

    `no_pipe`: advice for a user who gives "-"; without it, "-" is a file name like others.
    """

    name = "path"

    def __init__(self, no_pipe: str = "") -> None:
        self.no_pipe = no_pipe

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if value == "":
            self.fail("is empty; name a file or folder (is a shell variable unset?)", param, ctx)
        if value == "-" and self.no_pipe:  # before `Path`, for which ./- is the same
            self.fail(f"-: {self.no_pipe}; a file of this name is ./-", param, ctx)
        return Path(value)


class Listed(click.ParamType[tuple[Any, ...]]):
    """Values separated by commas: "64,128,256,512", "0.485,0.456,0.406" or "sky,road,car"."""

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
"""Argument of `IgnoredValue` if every value counts."""


class IgnoredValue(click.IntRange):
    """A mask value, 0 to 255, that neither loss nor metrics count; or `NONE`."""

    name = "0..255|none"

    def __init__(self) -> None:
        super().__init__(0, 255)

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return self.name  # click would show it in capitals

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return NONE if value == NONE else super().convert(value, param, ctx)


class Size(click.ParamType[tuple[int, int]]):
    """A size written `WIDTHxHEIGHT` on the command line, as cameras do; `(height, width)` in Python."""

    name = "WxH"

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return self.name  # click would show it in capitals

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        size = parse_size(str(value))
        if isinstance(size, str) or min(size) < 1:
            self.fail(f"{value!r} is not a size; expected for example 1918x1280", param, ctx)
        found: tuple[int, int] = size
        return found


class Percent(click.ParamType[float]):
    """A share written as a percentage on the command line, "0.05%"; 0.0005 in Python."""

    name = "N%"

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        if not re.fullmatch(r"\d{1,3}(\.\d{1,9})?\s*%", text) or float(text[:-1]) > 100:
            self.fail(f"{value!r} is not a percentage; expected for example 0.05%", param, ctx)
        return float(text[:-1]) / 100


class FixedSize(click.ParamType[tuple[int, int, int]]):
    """The shape of a batch, (batch, height, width), written `BATCHxHEIGHTxWIDTH` as ONNX lists its axes."""

    name = "BxHxW"

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return self.name  # click would show it in capitals

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        sides = [int(text) for text in str(value).lower().split("x") if text.isdecimal() and len(text) <= 6]
        if len(sides) != 3 or str(value).lower().count("x") != 2 or min(sides) < 1:
            self.fail(f"{value!r} is not BATCHxHEIGHTxWIDTH; expected for example 1x160x240", param, ctx)
        return sides[0], sides[1], sides[2]
