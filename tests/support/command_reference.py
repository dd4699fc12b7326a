"""The page docs/commands.md, made of the commands themselves: `make reference` writes it, a test compares it."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click

COMMANDS = {
    "unet-train": ("unet_core.train", "main"),
    "unet-export": ("export.cli", "main"),
    "unet-predict": ("runtime.commands.predict", "predict"),
    "unet-evaluate": ("unet_core.evaluate", "main"),
    "unet-data check": ("unet_core.datasets", "check"),
    "unet-data convert": ("unet_core.datasets", "convert"),
    "unet-doctor": ("runtime.commands.doctor", "main"),
    "unet-serve": ("runtime.commands.serve", "serve"),
    "unet-bench run": ("benchmarks.cli", "run"),
    "unet-bench compare": ("benchmarks.cli", "compare_runs"),
    "python -m unet_core.turntable": ("unet_core.turntable", "main"),
    "python -m benchmarks.precision": ("benchmarks.precision", "main"),
    "python -m benchmarks.training": ("benchmarks.training", "main"),
    "python -m benchmarks.networks": ("benchmarks.networks", "main"),
    "python -m benchmarks.cluster": ("benchmarks.cluster", "main"),
    "python -m benchmarks.serving": ("benchmarks.serving", "main"),
    "python -m benchmarks.first_gpu_run": ("benchmarks.first_gpu_run", "main"),
}
"""Module and name of each command, by the words that start it."""

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def commands() -> dict[str, click.Command]:
    """Import all commands, by the words that start them."""
    return {words: getattr(import_module(module), name) for words, (module, name) in COMMANDS.items()}


ALL_HAVE = ("--help", "--version")

INTRODUCTION = """# Commands

All commands with their arguments and options, as `--help` prints them. This page is generated: `make reference`
writes it anew.

`unet-train` and `unet-evaluate` are also `python -m unet_core.train` and `python -m unet_core.evaluate`. Every command
has `--help` and `--version`. Sizes are WIDTHxHEIGHT, in pixels. An error is one line on stderr, with exit code 2 unless
the command says otherwise. Above the line about a wrong option stands the command's usage.
"""


def page() -> str:
    """Write the page."""
    return "\n".join([INTRODUCTION, *(section(words, command) for words, command in commands().items())])


def section(words: str, command: click.Command) -> str:
    """Write the section of a command: usage, what it does, its options by group."""
    context = click.Context(command, info_name=words)
    text = command.help or ""
    lines = [f"## {words}", "", f"    {command.get_usage(context).removeprefix('Usage: ')}", ""]
    for paragraph in text.replace("\b\n", "").split("\n\n"):
        lines += [escaped(" ".join(paragraph.split())), ""]
    for title, rows in grouped(command, context):
        lines += [f"| {title} | |", "|---|---|", *(f"| `{name}` | {escaped(what)} |" for name, what in rows), ""]
    return "\n".join(lines)


def grouped(command: click.Command, context: click.Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each group of options as --help has it: its title and (option, help text) in order."""
    formatter = Recorder()
    command.format_options(context, formatter)
    yield from formatter.groups


class Recorder(click.HelpFormatter):
    """Collects the lists of options that a command's help is made of, instead of laying them out."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[tuple[str, list[tuple[str, str]]]] = []

    def write_heading(self, heading: str) -> None:
        self.title = heading

    def write_dl(self, rows, col_max=30, col_spacing=2) -> None:
        rows = [(name.replace("|", "\\|"), what) for name, what in rows if what and name not in ALL_HAVE]
        if rows:
            self.groups.append((self.title, rows))


def escaped(text: str) -> str:
    """Write a help text in Markdown: no table cell, HTML tag or emphasis of what is plain text."""
    text = re.sub(r"([\\|<*`]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return re.sub(r" ?\[default: ([^]]*)\]", r" Default: \1", text)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
