"""The parts that the command line tools share."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime.commands.console import NONE, Command, IgnoredValue, Percent, Size, started_as
from runtime.commands.entry import start
from runtime.errors import DeviceWarning, ImageError, ImageWarning, ProofError, UnetError, one_line, shown


def run(work, *arguments):
    """The result of a command that does `work`."""

    @click.command(cls=Command)
    @click.option("--size", type=Size(), default="4x2")
    def command(size):
        work(size)

    return CliRunner().invoke(command, arguments)


def raising(error):
    def work(size):
        raise error

    return work


@pytest.mark.parametrize(("error", "code"), [(UnetError, 2), (ImageError, 2), (ProofError, 1)])
def test_own_error_is_one_line_and_its_exit_code(error, code):
    result = run(raising(error("a.png:\n  is \tdamaged\n")))
    assert result.exit_code == code
    assert result.stderr == "error: a.png: is damaged\n"
    assert result.stdout == ""


def test_other_error_keeps_its_traceback():
    result = run(raising(ValueError("a bug")))
    assert isinstance(result.exception, ValueError)
    assert result.stderr == ""


def test_a_file_that_the_system_refuses_is_one_line(tmp_path):
    result = run(raising(OSError(errno.EACCES, "Permission denied", str(tmp_path / "x"))))
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path / 'x'}: permission denied\n"


def test_a_full_disk_behind_standard_output_is_one_line():
    result = run(raising(OSError(errno.ENOSPC, "No space left on device")))
    assert result.exit_code == 2
    assert result.stderr == "error: standard output: cannot be written (no space left on device)\n"


def test_command_is_named_as_it_was_started():
    started = []

    @click.command(cls=Command)
    def command():
        started.append(started_as("unet-train", "unet_core.train"))

    for name in ("unet-train", "python -m unet_core.train", "unet-bench"):
        assert CliRunner().invoke(command, prog_name=name).exit_code == 0
    assert [*started, started_as("unet-train", "unet_core.train")] == [
        *("unet-train", "python -m unet_core.train", "unet-train", "unet-train")
    ]


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("--szie", " Did you mean --size?"),
        ("--imgsz", " Did you mean --size?"),
        ("--model", " MODEL is given without the name of an option."),
        ("--recursive", ""),
    ],
)
def test_unknown_option_says_what_may_have_been_meant(given, advice):
    @click.command(cls=Command)
    @click.argument("model")
    @click.option("--size")
    def command(model, size):
        raise AssertionError

    done = CliRunner().invoke(command, [given, "1", "m"], prog_name="p")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, f"Error: No such option '{given}'.{advice}")


COMMANDS = ["runtime.commands.predict:predict", "runtime.commands.doctor:main", "export.cli:main"]


def started(root, command, *arguments, **streams):
    module, _, name = command.partition(":")
    program = f"from {module} import {name}; {name}(prog_name='p')"
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=root, text=True, **streams)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("command", COMMANDS)
def test_help_on_a_full_disk_is_one_line(root, command):
    with open("/dev/full", "w") as full:
        done = started(root, command, "--help", stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (
            2,
            "error: standard output: cannot be written (no space left on device)\n",
        )
        assert started(root, command, "--help", stdout=full, stderr=full).returncode == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_for_a_reader_that_has_gone_is_silent(root, command):
    reading, writing = os.pipe()
    os.close(reading)
    done = started(root, command, "--help", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", ["runtime.commands.predict:predict", "runtime.commands.doctor:main"])
def test_commands_work_without_standard_streams(root, models, tmp_path, command):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", "-o", tmp_path / "out", "--device", "cpu"] if "predict" in command else []
    script = 'exec "$@" <&- >&- 2>&-'
    module, _, name = command.partition(":")
    program = f"from {module} import {name}; {name}(prog_name='p')"
    line = ["sh", "-c", script, "sh", sys.executable, "-c", program, models["brightness"], *arguments]
    assert subprocess.run([str(item) for item in line], cwd=root).returncode == 0


def test_other_error_of_the_system_keeps_its_traceback():
    assert isinstance(run(raising(OSError("odd"))).exception, OSError)


def test_an_interruption_that_a_library_wraps_is_one():
    def work(size):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error

    result = run(work)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_interruption_exits_as_shells_expect():
    result = run(raising(KeyboardInterrupt()))
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


@pytest.mark.filterwarnings("default::runtime.errors.DeviceWarning")
def test_device_warning_is_a_note_and_the_way_of_showing_is_given_back():
    before = warnings.showwarning
    result = run(lambda size: warnings.warn("running\n on cpu", DeviceWarning, stacklevel=1))
    assert result.stderr == "note: running on cpu\n"
    assert result.exit_code == 0
    assert warnings.showwarning is before


@pytest.mark.parametrize("category", [DeviceWarning, ImageWarning])
def test_note_is_no_error_where_python_makes_warnings_errors(category):  # as pytest does here
    result = run(lambda size: warnings.warn("told", category, stacklevel=1))
    assert (result.exit_code, result.stderr) == (0, "note: told\n")


@pytest.mark.filterwarnings("default::UserWarning")
def test_other_warning_is_shown_as_ever():
    with pytest.warns(UserWarning, match="something else"):
        run(lambda size: warnings.warn("something else", UserWarning, stacklevel=1))


@pytest.mark.parametrize(
    ("text", "expected"), [("1918x1280", (1280, 1918)), ("1X2", (2, 1)), (None, (2, 4)), ("0016x9", (9, 16))]
)
def test_size_is_width_by_height_on_the_command_line_and_height_first_in_python(text, expected):
    sizes = []
    result = run(sizes.append, *(["--size", text] if text else []))
    assert (result.exit_code, sizes) == (0, [expected])


@pytest.mark.parametrize(
    "text", ["", "x", "12", "12x", "x12", "0x5", "5x0", "-1x5", "1.5x2", "4x4x4", "²x3", "9" * 5000 + "x1"]
)
def test_nonsense_is_not_a_size(text):
    result = run(lambda size: None, "--size", text)
    assert result.exit_code == 2
    assert "is not a size; expected for example 1918x1280" in " ".join(result.stderr.split())


ESCAPES = "a\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\udcff.png"
SHOWN = r"a\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\udcff.png"


def test_what_a_terminal_would_obey_is_shown_escaped():
    assert shown(ESCAPES) == SHOWN
    assert shown("straße 車\t1\nb") == "straße 車\t1\nb"
    done = run(raising(ImageError(f"{ESCAPES}: no such file")))
    assert (done.stderr, done.exit_code) == (f"error: {SHOWN}: no such file\n", 2)
    done = run(raising(FileNotFoundError(errno.ENOENT, "No such file", ESCAPES)))
    assert done.stderr == f"error: {SHOWN}: no such file\n"
    done = run(raising(AssertionError), ESCAPES)
    assert SHOWN in done.stderr or repr(ESCAPES) in done.stderr
    assert "\x1b" not in done.stderr


def test_errors_of_python_keep_the_name_as_it_is():
    assert str(ImageError(ESCAPES)) == ESCAPES


def test_one_line_folds_white_space():
    assert one_line(" a\n\n b\tc \r\n") == "a b c"
    assert one_line("ü \x1b[31m\0\u202e") == "ü \\x1b[31m\\x00\\u202e"


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("255", 255), ("none", NONE)])
def test_value_that_does_not_count(text, value):
    assert IgnoredValue().convert(text, None, None) == value


@pytest.mark.parametrize("text", ["-1", "256", "None", ""])
def test_nonsense_is_no_value_that_does_not_count(text):
    with pytest.raises(click.BadParameter):
        IgnoredValue().convert(text, None, None)


@pytest.mark.parametrize(("text", "code"), [("raise KeyboardInterrupt", 130), ("def main(): raise SystemExit(7)", 7)])
def test_a_command_is_imported_when_it_is_started(tmp_path, monkeypatch, text, code):
    (tmp_path / "started_by_a_test.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "started_by_a_test", raising=False)
    with pytest.raises(SystemExit) as left:
        start("started_by_a_test")
    assert left.value.code == code


def test_a_module_that_is_missing_is_an_error_of_ours_where_no_extra_brings_it():
    with pytest.raises(ModuleNotFoundError):
        start("there_is_no_such_module")


@pytest.mark.parametrize(("text", "value"), [("0.05%", 0.0005), ("1 %", 0.01), ("100%", 1.0), ("0%", 0.0)])
def test_percentages(text, value):
    assert Percent().convert(text, None, None) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("text", ["0.05", "5e-2%", "-1%", "101%", "%", "nan%"])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(click.BadParameter, match=f"^{text!r} is not a percentage; expected for example 0.05%$"):
        Percent().convert(text, None, None)
