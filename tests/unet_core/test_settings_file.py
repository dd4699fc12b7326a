"""TOML files of settings: what is refused, and that a message names the file that a refused value came from."""

import pytest

from runtime.errors import ConfigError
from unet_core.settings_file import known_name, make_config, read_settings


def toml(tmp_path, content):
    path = tmp_path / "run.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = toml(tmp_path, b"\xef\xbb\xbfepochs = 2\r\nwidths = [8, 16]\r\n")
    assert read_settings(path) == {"epochs": 2, "widths": (8, 16)}


def test_a_size_is_width_and_height_and_a_number_is_a_gpu(tmp_path):
    path = toml(tmp_path, "size = '240x160'\ndevice = 1\n")
    assert read_settings(path) == {"height": 160, "width": 240, "device": "1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning-rate = 1", "'learning-rate' is not a setting; the nearest is 'lr'"),
        ("batchsize = 1", "'batchsize' is not a setting; the nearest is 'batch_size'"),
        ("EPOCHS = 1", "'EPOCHS' is not a setting; the nearest is 'epochs'"),
        ("class_name = 'car'", "'class_name' is not a setting; the nearest is 'classes'"),
        ("image-size = 1", "'image-size' is not a setting; the nearest is 'size'"),
        ("gpu = 1", "'gpu' is not a setting; the nearest is 'device'"),
        ("size = [240, 160]", "--size [240, 160]: expected text, for example '240x160'"),
        ("size = '240'", "--size '240': expected WIDTHxHEIGHT, for example '240x160'"),
        ("size = '240x160'\nwidth = 240", "--size 240x160: sets --width too; leave one of them out"),
        ("'a\tb' = 1", "'a\\tb' is not a setting; unet-train --help lists them all"),
        ("dropout = 1", "'dropout' is not a setting; unet-train --help lists them all"),
        ("lr = 0", "--lr 0: expected 1e-12 to 1000"),
        ("lr = nan", "--lr nan: expected 1e-12 to 1000"),
        ("lr = '1e-3'", "--lr '1e-3': expected a number"),
        ("epochs = 1.0", "--epochs 1.0: expected an integer"),
        ("epochs = [1]", "--epochs [1]: expected an integer"),
        (f"epochs = 0x{'f' * 5000}", "--epochs of thousands of digits: expected 1 to 1000000"),
        ("ignore-index = true", "--ignore-index True: expected an integer"),
        ("classes = 'car'", "--classes 'car': expected a list of names"),
        ("widths = [8, [16]]", "--widths [8, [16]]: expected a list of integers"),
        ("data = 2020-01-01", "DATA datetime.date(2020, 1, 1): expected text"),
        ("[optimisation]\nlr = 1", "'optimisation' is a table; expected settings outside of tables"),
        ("lr.high = 1", "'lr' is a table; expected settings outside of tables"),
        (
            "batch-size = 1\nbatch_size = 2",
            "found 'batch_size' twice, with a hyphen and with an underscore; remove one of them",
        ),
        (b"\xff\xfe", "is not TOML ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_odd_toml_files(tmp_path, content, message):
    path = toml(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    "content", ["epochs =", "epochs = 1\nepochs = 2", f"lr = {'[' * 5000}", f"epochs = {'9' * 5000}", "'a\nb' = 1"]
)
def test_what_is_not_toml_is_told_in_one_line(tmp_path, content):
    path = toml(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert str(caught.value).startswith(f"{path}: is not TOML (")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    for path, why in ((tmp_path / "no.toml", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError) as caught:
            read_settings(path)
        assert str(caught.value) == f"{path}: cannot be read ({why})"


def test_names_take_hyphens_and_are_told_apart():
    assert known_name("save-minutes", "f") == known_name("save_minutes", "f") == "save_minutes"
    with pytest.raises(ConfigError) as caught:
        known_name("a\nb", "run.toml")
    assert "\n" not in str(caught.value)


PLACES = {"data": "d", "out": "o"}


@pytest.mark.parametrize(
    ("of_file", "flags", "message"),
    [
        ({"height": 161}, {}, "run.toml: --height 161: expected a multiple of 16 for 4 --widths, such as 160"),
        ({"height": 161}, {"height": 162}, "--height 162: expected a multiple of 16 for 4 --widths, such as 160"),
        ({"widths": (4,) * 6}, {}, "run.toml: --height 160: expected a multiple of 64 for 6 --widths, such as 128"),
        ({"width": 240}, {"height": 161}, "--height 161: expected a multiple of 16 for 4 --widths, such as 160"),
        (
            {"classes": ("a", "b")},
            {"loss": "bce"},
            "--loss bce: expected one of auto, ce, dice, ce+dice, focal for 2 --classes",
        ),
        (
            {"loss": "dice"},
            {"boundary_weight": 1.0},
            "--boundary-weight 1.0: has no effect on --loss dice; leave one of them out",
        ),
        ({"widths": (8, 16)}, {"height": 33}, "--height 33: expected a multiple of 4 for 2 --widths, such as 32"),
        ({"data": ""}, {}, "run.toml: DATA '': expected a folder"),
        (
            {"channels_last": True},
            {"channels": "X"},
            "--channels X: expected RGB, L, or a number of channels from 1 to 16",
        ),
    ],
)
def test_an_error_about_a_value_of_the_file_names_the_file(of_file, flags, message):
    with pytest.raises(ConfigError) as caught:
        make_config(PLACES | of_file | flags, of_file, "run.toml")
    assert str(caught.value) == message


def test_a_config_of_a_file_has_all_settings():
    made = make_config(PLACES | {"height": 64, "lr": 0.1}, {"height": 64}, "run.toml")
    assert (made.data, made.height, made.lr) == ("d", 64, 0.1)
