"""The names nearest to one that does not exist."""

import pytest

from runtime.commands.suggestions import OTHER_NAMES, did_you_mean, nearest

KNOWN = (
    "amp",
    "batch-size",
    "device",
    "epochs",
    "height",
    "init-from",
    "lr",
    "out",
    "plateau-epochs",
    "size",
    "tta",
    "width",
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("outt", ["out"]),  # and not tta
        ("output", ["out"]),
        ("sise", ["size"]),
        ("image_size", ["size"]),
        ("batch", ["batch-size"]),
        ("batch_size", ["batch-size"]),
        ("Epochs", ["epochs"]),
        ("epoch", ["epochs"]),
        ("learning-rate", ["lr"]),
        ("hieght", ["height"]),
        ("gpu", ["device gpu"]),
        ("fp16", ["amp fp16"]),  # there is no precision here
        ("weights", ["init-from"]),
        ("plateau", ["plateau-epochs"]),
        ("recursive", []),
        ("heigth", ["height"]),
        ("x", []),
        ("", []),
    ],
)
def test_name_that_was_meant(given, expected):
    assert nearest(given, KNOWN) == expected


def test_sides_are_a_size_where_they_have_no_option():
    assert nearest("height", ["size", "weights"]) == ["size"]


def test_what_is_alike_is_named_twice():
    assert nearest("thre", ["threads", "threshold", "tile"]) == ["threads", "threshold"]
    assert did_you_mean(["--threads", "--threshold"]) == " Did you mean --threads or --threshold?"
    assert did_you_mean([]) == ""


def test_no_other_name_is_there_twice_for_one_of_ours():
    for theirs in OTHER_NAMES.values():
        assert len(set(theirs.split())) == len(theirs.split())
