"""Sizes in words: width first where people read them, height first in Python."""

import pytest

from runtime.support.sizes import batch_text, parse_size, size_text


@pytest.mark.parametrize(("text", "size"), [("240x160", (160, 240)), (" 240 X 160 ", (160, 240)), ("0x1", (1, 0))])
def test_text_is_width_by_height(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("other", ["native", "240", "240x", "x160", "240x160x3", "-1x5", "1.5x2", "1234567x1", "٣x٤"])
def test_other_texts_and_values_stay(other):
    assert parse_size(other) == other
    assert parse_size((160, 240)) == (160, 240) and parse_size(None) is None


def test_sizes_are_written_width_first():
    assert (size_text((160, 240)), batch_text((2, 160, 240))) == ("240x160", "2 of 240x160")
