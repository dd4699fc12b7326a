"""Bars where a terminal is, on one line each, and nothing but notes and lines where there is none."""

import io
import re
import sys

import numpy as np
import pytest

from unet_core.evaluation.metrics import METRICS, Metric, Metrics
from unet_core.reporting import progress
from unet_core.reporting.progress import Display, Forecast, duration_text, epoch_line, progress_text

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FIGURES = "run ends in 1:02:03  loss 0.1234  Dice 0.9812"


class Terminal(io.StringIO):
    """Stands in for stderr, and for the clock of what is drawn there."""

    seconds = 0.0

    def isatty(self):
        return True

    @property
    def lines(self):
        """Return the text of a line, each time one was drawn."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", CODES.sub("", self.getvalue())) if line.strip()]

    @property
    def last_bar(self):
        return [line for line in self.lines if "━" in line][-1]


@pytest.fixture
def watched(monkeypatch):
    """Opens the terminal when a test calls it; pytest puts its own stderr in place after all fixtures."""
    return lambda columns=130, kind="xterm": open_terminal(monkeypatch, columns, kind)


def open_terminal(monkeypatch, columns, kind):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("rich.console.monotonic", lambda: terminal.seconds)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("COLUMNS", str(columns))
    return terminal


def advance_thrice(terminal, count=8, every=1.0, **bar):
    with Display().bar(**({"label": "epoch 12/100", "total": 64, "done": 16} | bar)) as advance:
        for _ in range(3):
            terminal.seconds += every
            advance(count, FIGURES)


def test_a_bar_shows_label_count_speed_time_and_figures(watched):
    terminal = watched()
    advance_thrice(terminal)
    assert re.fullmatch(
        rf"epoch 12/100 [━╸╺]{{40}} 40/64 8 images/s 0:00:03 left {re.escape(FIGURES)}", terminal.last_bar
    )


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (80, r"epoch 12/100 [━╸╺]{10}   40/5088 8 images/s 0:10:31 left run ends in 1:02:03.*…"),
        (63, r"epoch 12/100 [━╸╺]+   40/5088 8 images/s 0:10:31 left run end.*…"),
    ],
)
def test_in_a_narrow_terminal_a_bar_keeps_to_one_line_and_its_count(watched, columns, line):
    terminal = watched(columns)
    advance_thrice(terminal, total=5088)
    assert re.fullmatch(line, terminal.last_bar)
    assert all(len(line) <= columns and line.startswith("epoch 12/100 ") for line in terminal.lines)


@pytest.mark.parametrize(("every", "speed"), [(7.0, "1.14"), (0.001, "8000")])
def test_speeds_are_plain_numbers(watched, every, speed):
    terminal = watched()
    advance_thrice(terminal, every=every, unit="step")
    assert f" {speed} steps/s " in terminal.last_bar


def test_a_bar_goes_away_and_shows_the_cursor_again(watched):
    terminal = watched()
    advance_thrice(terminal)
    text = terminal.getvalue()
    assert text.startswith("\x1b[?25l")
    assert text.endswith("\n\x1b[?25h\r\x1b[1A\x1b[2K")


def test_labels_and_figures_are_no_markup(watched):
    terminal = watched()
    with Display().bar("[red]x", 2) as advance:
        advance(1, "[bold]y[/]")
    assert re.fullmatch(r"\[red\]x .* 1/2 .* \[bold\]y\[/\]", terminal.last_bar)


def test_lines_and_notes_stand_above_the_bar(watched, capsys):
    terminal = watched()
    display = Display()
    with display.bar("checking", 4) as advance:
        advance(1)
        display.note("the disk is full")
        display.line("on stdout")
        advance(1)
    assert terminal.lines.count("note: the disk is full") == 1
    where = terminal.lines.index("note: the disk is full")
    assert "1/4" in terminal.lines[where - 1] and "1/4" in terminal.lines[where + 1]
    assert "2/4" in terminal.lines[-1]
    assert capsys.readouterr().out == "on stdout\n"


def test_through_counts_what_was_dealt_with(watched):
    terminal = watched()
    display = Display()
    counts = []
    for item in display.through(iter("abc"), "going", 3):
        display.note(item)
        counts.append(terminal.last_bar.split()[2])
    assert counts == ["0/3", "1/3", "2/3"]
    assert " 3/3 " in terminal.last_bar


def test_forked_processes_inherit_no_redirected_streams(watched, capsys):
    terminal = watched()
    out = sys.stdout
    with Display().bar("a", 1):
        assert (sys.stdout, sys.stderr) == (out, terminal)


def test_an_abandoned_walk_takes_its_bar_away(watched):
    terminal = watched()
    display = Display()
    walk = display.through(iter("abc"), "going", 3)
    next(walk)
    walk.close()
    assert terminal.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")
    with display.bar("again", 1):
        pass
    assert "again" in terminal.last_bar


def test_within_a_bar_another_one_is_not_shown(watched):
    terminal = watched()
    display = Display()
    with display.bar("outer", 2) as advance:
        assert list(display.through("ab", "inner", 2)) == ["a", "b"]
        advance(2)
    assert "inner" not in terminal.getvalue()
    assert "2/2" in terminal.last_bar


def test_quiet_shows_nothing_at_all(watched, capsys):
    terminal = watched()
    display = Display(quiet=True)
    with display.bar("a", 2) as advance:
        advance(1, "figures")
        display.note("note")
        display.line("line")
    assert list(display.through("ab", "b", 2)) == ["a", "b"]
    assert (terminal.getvalue(), capsys.readouterr().out) == ("", "")


@pytest.mark.parametrize("kind", ["dumb", "xterm"])
def test_without_a_terminal_that_can_draw_there_are_only_notes(watched, monkeypatch, kind):
    terminal = watched(kind=kind)
    monkeypatch.setenv("FORCE_COLOR", "1")  # which says nothing of bars
    monkeypatch.setattr(terminal, "isatty", lambda: kind == "dumb")
    display = Display()
    with display.bar("a", 2) as advance:
        advance(1, "figures")
        display.note("here")
    assert list(display.through("ab", "b", 2)) == ["a", "b"]
    assert terminal.getvalue() == "note: here\n"


def test_without_a_terminal_there_is_a_line_a_minute(capsys, monkeypatch):
    """64 images at 8 in 25 s: lines after 75, 150 and 200 s, since the last one comes 50 s after the one before."""
    clock = Terminal()
    monkeypatch.setattr(progress, "time", clock)
    clock.monotonic = lambda: clock.seconds
    display = Display()
    with display.bar("epoch 12/100", 64, done=16) as advance:
        for _ in range(6):
            clock.seconds += 25
            advance(8, FIGURES)
            with display.bar("inner", 1) as inner:
                inner(1)
    assert capsys.readouterr().err == (
        f"epoch 12/100  40/64  0.32 images/s  0:01:15 left  {FIGURES}\n"
        f"epoch 12/100  64/64  0.32 images/s  0:00:00 left  {FIGURES}\n"
    )
    items = display.through(range(2), "validating", 2)
    for _ in items:
        clock.seconds += 90
    assert capsys.readouterr().err == (
        "validating  1/2  0.0111 images/s  0:01:30 left\nvalidating  2/2  0.0111 images/s  0:00:00 left\n"
    )


def test_a_terminal_that_is_gone_ends_no_run(monkeypatch):
    """The case of a run that ignores the hangup and its terminal is closed."""

    def gone(*_, **__):
        raise OSError(5, "Input/output error")

    display = Display()
    monkeypatch.setattr("click.echo", gone)
    display.line("epoch 1")
    assert display.quiet
    monkeypatch.setattr("click.echo", lambda *_, **__: pytest.fail("said something"))
    display.note("more")
    with display.bar("training", 3) as advance:
        advance(1)


def test_the_line_of_an_epoch_has_every_metric(monkeypatch):
    monkeypatch.setitem(METRICS, "pixels_found", Metric(label="found", of_set=lambda images: 0.25))
    metrics = Metrics(["car"])
    metrics.add(np.array([[0, 1]], np.uint8), np.array([[0, 1]], np.uint8))
    row = {"epoch": 2, "train_loss": 0.5, **metrics.summary(), "seconds": 3.0}
    said = (
        "epoch 2/4  loss 0.5000  accuracy 1.0000  image Dice 1.0000  pixel Dice 1.0000  IoU 1.0000  found 0.2500  3.0 s"
    )
    assert epoch_line(row, 4, best=False) == said
    assert epoch_line(row, 4, best=True) == f"{said}  best"
    assert epoch_line({**row, "skipped_steps": 2}, 4, best=True) == f"{said}  2 steps skipped  best"
    of_classes = epoch_line({**row, "pixel_dice car": 1.0}, 4, best=False)
    assert "  accuracy 1.0000  mean image Dice 1.0000  mean pixel Dice 1.0000  mean IoU 1.0000  " in of_classes


def test_the_text_beside_the_bar_by_hand():
    """Half of the third epoch of four took 5 s, after 20 s for two: 2.5 epochs in 25 s."""
    history = [{"seconds": 8.0, "pixel_dice": 0.5, "iou": 0.4}, {"seconds": 12.0, "pixel_dice": 0.25, "iou": 0.125}]
    assert (
        progress_text(history, part=0.5, seconds=5.0, epochs=4, loss=0.5)
        == "run ends in 0:00:15  loss 0.5000  Dice 0.2500  IoU 0.1250"
    )
    assert progress_text([], part=0.25, seconds=900.0, epochs=2, loss=None) == "run ends in 1:45:00"


def test_the_time_of_a_run_is_foretold_once_from_the_first_steps():
    """After the first step of 60 s, 5 s for 8 images: 160 images and a third of 48 make 110 s, times 3.5."""
    forecast = Forecast(images=160, validated=48, epochs=3.5)
    said = [forecast.add(8, seconds) for seconds in (60, 5, 5, 5)]
    assert said == [None, None, "an epoch takes about 2 min, so this run ends in about 6 min", None]
    forecast = Forecast(images=160, validated=48, epochs=1)
    assert [forecast.add(8, seconds, validation=200) for seconds in (60, 20)][1] == "this run ends in about 10 min"


def test_the_time_of_a_run_of_seconds_is_not_foretold():
    forecast = Forecast(images=40, validated=0, epochs=1)
    assert [forecast.add(8, 11) for _ in range(4)] == [None] * 4
    assert forecast.told


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59, "59 s"),
        (59.6, "1 min"),
        (3570, "1 h 0 min"),
        (3569, "59 min"),
        (12_000, "3 h 20 min"),
        (86_399, "1 d 0 h"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration_text(seconds) == text
