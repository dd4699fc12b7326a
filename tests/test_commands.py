"""All commands together: what they have in common."""

from importlib.metadata import version

import click
from click.testing import CliRunner
from command_reference import PAGE, commands, escaped, page


def test_every_command_tells_its_version_and_every_option_has_a_help_text():
    for name, command in commands().items():
        done = CliRunner().invoke(command, ["--version"], prog_name="p")
        assert (done.exit_code, done.stdout) == (0, f"p {version('unet-deploy')}\n"), name
        assert [param.name for param in command.params if isinstance(param, click.Option) and not param.help] == []


def test_same_options_have_the_same_names():
    options = {name: {text for param in one.params for text in param.opts} for name, one in commands().items()}
    for name, texts in options.items():
        assert ("-o" in texts) == ("--out" in texts), name
        assert "--size" in texts or "--height" not in texts, name
    assert [name for name, texts in options.items() if "--out" not in texts] == [
        *(
            "unet-evaluate",
            "unet-data convert",
            "unet-doctor",
            "unet-serve",
            "unet-bench compare",
            "python -m unet_core.turntable",
        )
    ]
    assert "--output" in options["unet-export"]  # its name in earlier versions


def test_the_reference_is_that_of_the_commands():
    assert PAGE.read_text() == page(), "docs/commands.md is out of date; run: make reference"


def test_help_texts_are_plain_text_in_the_reference():
    assert escaped("a_b _  'in/**/*.jpg' <x|y> \n end.  [default: 30]  [x>=0]") == (
        "a_b \\_ 'in/\\*\\*/\\*.jpg' \\<x\\|y> end. Default: 30 [x>=0]"
    )
