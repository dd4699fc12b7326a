"""The command `python -m unet_core.evaluate`, and what it writes."""

import csv

from click.testing import CliRunner

SIZES = [(32, 48), (40, 90), (57, 31)]
"""Sizes (height, width) of the pictures that evaluation is tested on."""


def run(*arguments):
    from unet_core.evaluate import main

    device = () if "--device" in arguments else ("--device", "cpu")
    return CliRunner().invoke(main, [str(argument) for argument in (*arguments, *device, "--workers", "0")])


def refusal(*arguments):
    """The one line that a command ends with."""
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr.removeprefix("error: ").strip()


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))
