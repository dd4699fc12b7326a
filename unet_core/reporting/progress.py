"""What a person at the terminal sees: progress bars where somebody watches, notes and lines everywhere."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from runtime.commands.console import progress_hidden

Advance = Callable[..., None]
"""advance(count, figures=""): so many more are done, and what to show beside them."""

WIDE = 120
"""Columns of a terminal from which there is room for a long bar."""

LONG, SHORT = 40, 10
"""Columns of the bar itself."""

T = TypeVar("T")


class SpeedColumn(ProgressColumn):
    """Things per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text()
        return Text(f"{speed:.{'0f' if speed >= 1000 else '3g'}} {task.fields['unit']}s/s", "progress.data.speed")


class FiguresColumn(ProgressColumn):
    """What stands at the end of the line, and is cut where that is too long."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


class Display:
    """Bars on stderr where it is a terminal; `quiet` (all processes but the first) shows nothing at all."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._progress: Progress | None = None

    @contextmanager
    def bar(self, label: str, total: int, *, unit: str = "image", done: int = 0) -> Iterator[Advance]:
        """A progress bar that goes away when the block ends; within another one's block nothing is shown."""
        console = Console(stderr=True)
        if not total or self.quiet or self._progress is not None or progress_hidden() or not console.is_interactive:
            yield _nothing
            return
        self._progress = progress = _progress(console)
        task = progress.add_task(label, total=total, completed=done, unit=unit, figures="")

        def advance(count: int, figures: str = "") -> None:
            progress.update(task, advance=count, figures=figures)

        with self._unless_gone():
            progress.start()
        try:
            yield advance
        finally:
            self._progress = None
            with self._unless_gone():
                progress.stop()

    def through(self, items: Iterable[T], label: str, total: int, unit: str = "image") -> Generator[T, None, None]:
        """Go through items with a bar."""
        with self.bar(label, total, unit=unit) as advance:
            for item in items:
                yield item
                advance(1)

    def line(self, text: str) -> None:
        """A line on stdout."""
        self._say(text, err=False)

    def note(self, text: str) -> None:
        """Something to know, on stderr."""
        self._say(f"note: {text}", err=True)

    def _say(self, text: str, *, err: bool) -> None:
        """Print where the bar is, which moves on below."""
        if self.quiet:
            return
        with self._unless_gone():
            if self._progress is not None:
                self._progress.stop()
            click.echo(text, err=err)
            if self._progress is not None:
                self._progress.start()

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """What cannot be shown any more, because the terminal was closed or the pipe's reader left, ends no run."""
        try:
            yield
        except OSError:
            self.quiet = True


def _nothing(count: int, figures: str = "") -> None:
    """How a bar that is not shown moves on."""


def _progress(console: Console) -> Progress:
    """One line: only bar and figures get shorter in a narrow terminal."""
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(LONG if console.width >= WIDE else SHORT),
        MofNCompleteColumn(table_column=whole),
        SpeedColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
        FiguresColumn(),
        console=console,
        transient=True,
        # Processes that are forked under the bar would inherit the redirection, and its lock in whatever state.
        redirect_stdout=False,
        redirect_stderr=False,
    )
