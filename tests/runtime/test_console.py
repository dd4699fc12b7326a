"""What the command line tools share."""

import errno
import warnings

import click
import pytest
from click.testing import CliRunner

from runtime.console import Command, Size
from runtime.errors import DeviceWarning, ImageError, ProofError, UnetError, one_line


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


def test_one_line_folds_white_space():
    assert one_line(" a\n\n b\tc \r\n") == "a b c"
