import numpy as np
import pytest

from runtime.errors import ImageError
from runtime.rle import decode, encode


def test_by_hand():
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 255], [7, 1, 0, 1]], np.uint8)
    assert encode(mask) == "2 2 5 1 8 3 12 1"  # the third run goes on in the next row
    assert decode("2 2 5 1 8 3 12 1", (3, 4)).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 0, 1]]


@pytest.mark.parametrize(
    ("pixels", "text"),
    [([], ""), (range(12), "1 12"), ([0], "1 1"), ([11], "12 1"), ([3, 4], "4 2"), ([0, 11], "1 1 12 1")],
    ids=["empty", "full", "first", "last", "wraps", "both ends"],
)
def test_edges(pixels, text):
    mask = np.zeros((3, 4), np.uint8)
    mask.flat[list(pixels)] = 1
    assert encode(mask) == text
    decoded = decode(text, (3, 4))
    assert decoded.dtype == np.uint8 and np.array_equal(decoded, mask)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (37, 41)])
def test_back_and_forth(share, size):
    random = np.random.default_rng(3)
    for _ in range(5):
        mask = random.random(size) < share
        assert np.array_equal(decode(encode(mask), size), mask)
        assert np.array_equal(decode(encode(mask.T), size[::-1]), mask.T)  # not contiguous in memory


def test_runs_that_touch_and_any_white_space_are_read():
    assert decode(" 1 2\n3 1\t", (2, 2)).tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", "found 3 numbers, expected pairs of start and length"),
        ("1 x", "found 'x', expected whole numbers of at most 18 digits"),
        ("1 -2", "found '-2', expected whole numbers of at most 18 digits"),
        ("1 1_0", "found '1_0', expected whole numbers of at most 18 digits"),
        ("1 \u0663", "found '\u0663', expected whole numbers of at most 18 digits"),
        ("1 " + 19 * "9", "found '9999999999999999999', expected whole numbers of at most 18 digits"),
        ("1 1 0 2", "run 2 is 0 2, expected a start and a length of at least 1"),
        ("1 1 3 0", "run 2 is 3 0, expected a start and a length of at least 1"),
        ("11 3", "run 1 is 11 3, expected an end of at most 12 in (3, 4) (h, w)"),
        (
            "1 1 999999999999999999 999999999999999999",
            "run 2 is 999999999999999999 999999999999999999, expected an end of at most 12 in (3, 4) (h, w)",
        ),
        (
            "1 3 3 2",
            "run 2 is 3 2, expected runs in rising order that do not overlap",
        ),
        (
            "1 1 8 2 4 2",
            "run 3 is 4 2, expected runs in rising order that do not overlap",
        ),
    ],
)
def test_malformed_text_is_refused(text, message):
    with pytest.raises(ImageError) as caught:
        decode(text, (3, 4))
    assert str(caught.value) == f"run-length text: {message}"


def test_other_arrays_and_sizes_are_refused():
    with pytest.raises(ImageError) as caught:
        encode(np.zeros((2, 3), np.float32))
    assert str(caught.value) == "mask: found float32 [2, 3], expected uint8 or bool [height, width]"
    with pytest.raises(ImageError) as caught:
        encode(np.zeros((1, 2, 3), np.uint8))
    assert str(caught.value) == "mask: found uint8 [1, 2, 3], expected uint8 or bool [height, width]"
    with pytest.raises(ImageError) as caught:
        decode("", (0, 3))
    assert str(caught.value) == "mask: found the size (0, 3) (h, w), expected at least 1 by 1"
