"""Output of a run: a progress bar if stderr is a terminal, else a line a minute; notes and lines always."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

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

from runtime.commands.console import echo, progress_hidden
from unet_core.evaluation.best_epoch import VALIDATION_LOSS
from unet_core.evaluation.metrics import METRICS, label_of

Advance = Callable[..., None]
"""advance(count, figures=""): move the bar on by `count`, and show `figures` beside it."""

WIDE = 120
"""Minimum width of a terminal for a long bar, in columns."""

LONG, SHORT = 40, 10
"""Width of a long and of a short bar, in columns."""

MINUTE = 60.0
"""Seconds between lines where no bar is drawn, and the shortest run whose time is foretold."""

FORESEEN = 10.0
"""Seconds of training after which the time of the run is foretold."""

FORWARD = 1 / 3
"""Cost of validating an image, as a part of training on it: the forward pass without the backward one."""

T = TypeVar("T")


class SpeedColumn(ProgressColumn):
    """Speed in units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text()
        return Text(f"{speed_text(speed)} {task.fields['unit']}s/s", "progress.data.speed")


class TimeLeftColumn(TimeRemainingColumn):
    """Time until the bar is full."""

    def render(self, task: Task) -> Text:
        return super().render(task).append(" left")


class FiguresColumn(ProgressColumn):
    """Text at the end of the line, truncated if the line is too long."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


class Display:
    """Shows bars and notes on stderr and lines on stdout; `quiet` shows nothing, as in all processes but the first."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._progress: Progress | None = None
        self._within = False

    @contextmanager
    def bar(self, label: str, total: int, *, unit: str = "image", done: int = 0) -> Iterator[Advance]:
        """Show a progress bar until the block ends; in the block of another bar nothing is shown.

        Where stderr is no terminal that can draw, as under nohup or in a container, a line a minute takes its place.
        """
        if not total or self.quiet or self._within:
            yield lambda *_, **__: None
            return
        self._within = True
        try:
            console = Console(stderr=True)
            if progress_hidden() or not console.is_interactive:
                yield self._line_a_minute(label, total, unit, done)
            else:
                with self._drawn(console, label, total, unit, done) as advance:
                    yield advance
        finally:
            self._within = False

    def _line_a_minute(self, label: str, total: int, unit: str, done: int) -> Advance:
        started = said = time.monotonic()
        count = 0

        def advance(more: int, figures: str = "") -> None:
            nonlocal count, said
            count += more
            now = time.monotonic()
            if now - said >= MINUTE and count:
                said, speed = now, count / (now - started)
                left = timedelta(seconds=round((total - done - count) / speed))
                parts = [label, f"{done + count}/{total}", f"{speed_text(speed)} {unit}s/s", f"{left} left", figures]
                self._say("  ".join(filter(None, parts)), err=True)

        return advance

    @contextmanager
    def _drawn(self, console: Console, label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
        whole = Column(no_wrap=True)  # in a narrow terminal only the bar and the figures get shorter
        self._progress = progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=whole),
            BarColumn(LONG if console.width >= WIDE else SHORT),
            MofNCompleteColumn(table_column=whole),
            SpeedColumn(table_column=whole),
            TimeLeftColumn(table_column=whole),
            FiguresColumn(),
            console=console,
            transient=True,
            # Processes that are forked under the bar would inherit the redirection, and its lock in any state.
            redirect_stdout=False,
            redirect_stderr=False,
        )
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
        """Yield the items, moving a bar on after each."""
        with self.bar(label, total, unit=unit) as advance:
            for item in items:
                yield item
                advance(1)

    def line(self, text: str) -> None:
        """Print a line on stdout."""
        self._say(text, err=False)

    def note(self, text: str) -> None:
        """Print a note on stderr."""
        self._say(f"note: {text}", err=True)

    def _say(self, text: str, *, err: bool) -> None:
        """Print above the bar, if there is one."""
        if self.quiet:
            return
        with self._unless_gone():
            if self._progress is not None:
                self._progress.stop()
            echo(text, err=err)
            if self._progress is not None:
                self._progress.start()

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Show nothing from now on if the terminal was closed or the pipe's reader left; the run goes on."""
        try:
            yield
        except OSError:
            self.quiet = True


def speed_text(speed: float) -> str:
    """Write a speed in units per second."""
    return f"{speed:.{'0f' if speed >= 1000 else '3g'}}"


class Forecast:
    """The time that an epoch and the run will take, told once from the first steps.

    The first step is left out: processes are started in it, and kernels are chosen.
    """

    def __init__(self, *, images: int, validated: int, epochs: float) -> None:
        """`images` are trained and `validated` ones measured in an epoch, `epochs` are left, and may end in a part."""
        self.images, self.validated, self.epochs = images, validated, epochs
        self.seconds, self.seen, self.told, self._first = 0.0, 0, False, True

    def add(self, images: int, seconds: float, validation: float | None = None) -> str | None:
        """Count a step; returns the line when it is due, and None otherwise and in short runs.

        `validation` is the time of the last validation in seconds, if it is known.
        """
        if self.told or self._first:
            self._first = False
            return None
        self.seen, self.seconds = self.seen + images, self.seconds + seconds
        if self.seconds < FORESEEN:
            return None
        self.told = True
        step = self.seconds / self.seen
        epoch = self.images * step + (self.validated * step * FORWARD if validation is None else validation)
        run = self.epochs * epoch
        if run < MINUTE:
            return None
        each = f"an epoch takes about {duration_text(epoch)}, so " if self.epochs > 1 else ""
        return f"{each}this run ends in about {duration_text(run)}"


def duration_text(seconds: float) -> str:
    """Write a duration in its two largest units: "45 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, round(minutes / 60) // 24
    if days:
        return f"{days} d {round(minutes / 60) % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def progress_text(
    history: Sequence[Mapping[str, float]], *, part: float, seconds: float, epochs: int, loss: float | None
) -> str:
    """Describe a run's progress beside the bar: time left, loss so far, Dice and IoU of the last epoch.

    `history` has the figures of the finished epochs. The `part` of the current one that is trained, up to 1, took
    `seconds`. `epochs` is the number of all epochs of the run.
    """
    done = len(history) + part
    spent = sum(row["seconds"] for row in history) + seconds
    left = timedelta(seconds=round(spent / done * (epochs - done)))
    loss_text = "" if loss is None else f"  loss {loss:.4f}"
    figures = "  Dice {pixel_dice:.4f}  IoU {iou:.4f}".format_map(history[-1]) if history else ""
    return f"run ends in {left}{loss_text}{figures}"


def epoch_line(row: Mapping[str, float], epochs: int, best: bool) -> str:
    """Format an epoch as one line."""
    figures = "".join(f"{label_of(name, row)} {value:.4f}  " for name, value in row.items() if name in METRICS)
    if VALIDATION_LOSS in row:
        figures = f"validation loss {row[VALIDATION_LOSS]:.4f}  {figures}"
    skipped = f"  {row['skipped_steps']:.0f} steps skipped" if row.get("skipped_steps") else ""
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.4f}  {figures}"
        f"{row['seconds']:.1f} s{skipped}" + ("  best" if best else "")
    )
