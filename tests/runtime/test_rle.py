import json

import numpy as np
import pytest

from runtime.errors import ImageError
from runtime.rle import coco_decode, coco_encode, decode, encode

DIFFERENT = "the counts do not add up to the size (2, 3) (h, w); they belong to another image, or are damaged"


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


COCO = [
    # One column of three, background 1, foreground 2: "1" is 48 + 1, "2" is 48 + 2.
    ([[0], [1], [1]], [1, 2], "12"),
    # Columns first: (0, 0), (1, 0), (0, 1), (1, 1), ... = 0 1 1 0 0 1.
    ([[0, 1, 0], [1, 0, 1]], [1, 2, 2, 1], "122O"),  # the fourth is 1 - 2 = -1: bits 11111, a sign, 48 + 31 = "O"
    ([[1, 1], [1, 0]], [0, 3, 1], "031"),
    ([[0, 0]], [2], "2"),
    ([[1, 1]], [0, 2], "02"),
    # 16 = 10000 would look negative in one group: 10000 with more to come (48 + 32 + 16 = "`"), then 0.
    ([[0] * 16 + [1]], [16, 1], "`01"),
    ([[0] * 15 + [1]], [15, 1], "?1"),
    ([[0] * 33 + [1]], [33, 1], "Q11"),  # 33 = 1 + 1 * 32
    ([[0, *[1] * 40, 0, 1]], [1, 40, 1, 1], "1X11iN"),  # 40 = 8 + 32; 1 - 40 = -39 = 25 - 2 * 32: 48 + 32 + 25, 48 + 30
]


@pytest.mark.parametrize(("mask", "counts", "text"), COCO)
def test_coco_by_hand(mask, counts, text):
    mask = np.array(mask, np.uint8)
    assert coco_encode(mask) == {"size": list(mask.shape), "counts": text}
    assert coco_encode(mask, compressed=False) == {"size": list(mask.shape), "counts": counts}
    for form in (text, text.encode(), counts):
        decoded = coco_decode({"size": list(mask.shape), "counts": form})
        assert decoded.dtype == np.uint8 and np.array_equal(decoded, mask)


def test_coco_text_of_pycocotools():
    """The text is the one that pycocotools 2.0.11 gave for this mask."""
    rows, columns = np.mgrid[:40, :50]
    mask = (rows - 20) ** 2 + (columns - 25) ** 2 < 200
    text = "[>3Q18J4M2N2N2N2N2O0O2O00000O2O0001N1000001N101N2N2N2N2N3L6HQ<"
    assert coco_encode(mask)["counts"] == text
    assert np.array_equal(coco_decode({"size": (40, 50), "counts": text}), mask)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (37, 410)])
@pytest.mark.parametrize("compressed", [True, False])
def test_coco_back_and_forth(share, size, compressed):
    mask = np.random.default_rng(5).random(size) < share
    for form in (mask, mask[::-1, ::-1]):
        assert np.array_equal(coco_decode(json.loads(json.dumps(coco_encode(form, compressed)))), form)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (None, "found None, expected a size [height, width] and counts"),
        ({"size": [2, 3]}, "found {'size': [2, 3]}, expected a size [height, width] and counts"),
        (
            {"size": [2], "counts": "6"},
            "found {'counts': '6', 'size': [2]}, expected a size [height, width] and counts",
        ),
        ({"size": [0, 3], "counts": ""}, "found the size [0, 3], expected [height, width] of 1 to 4294967295 pixels"),
        (
            {"size": [2.0, 3], "counts": "6"},
            "found the size [2.0, 3], expected [height, width] of 1 to 4294967295 pixels",
        ),
        (
            {"size": [2**16, 2**16], "counts": [2**32]},
            "found the size [65536, 65536], expected [height, width] of 1 to 4294967295 pixels",
        ),
        ({"size": [2, 3], "counts": ""}, "found the counts '', which are not such text"),
        ({"size": [2, 3], "counts": "1Q"}, "found the counts '1Q', which are not such text"),  # cut off
        ({"size": [2, 3], "counts": "1/"}, "found the counts '1/', which are not such text"),
        ({"size": [2, 3], "counts": "1p0"}, "found the counts '1p0', which are not such text"),
        ({"size": [2, 3], "counts": "\ud800"}, "found the counts '\\ud800', which are not such text"),
        ({"size": [2, 3], "counts": "PPPPPPP0"}, "found a count of 8 characters, expected at most 7"),
        (
            {"size": [2, 3], "counts": [6.0]},
            "found the counts [6.0], expected text or whole numbers from 0 to 4294967295",
        ),
        (
            {"size": [2, 3], "counts": [-1, 7]},
            "found the counts [-1, 7], expected text or whole numbers from 0 to 4294967295",
        ),
        ({"size": [2, 3], "counts": [2, 3]}, DIFFERENT),
        ({"size": [2, 3], "counts": []}, DIFFERENT),
        ({"size": [2, 3], "counts": "33N2"}, DIFFERENT),  # 3, 3, -2, 5 are six in all
    ],
    ids=str,
)
def test_malformed_coco_is_refused(rle, message):
    with pytest.raises(ImageError) as caught:
        coco_decode(rle)
    assert str(caught.value) == f"COCO run lengths: {message}"


def test_coco_counts_bytes_that_are_random_give_a_mask_or_an_error():
    random = np.random.default_rng(6)
    refused = 0
    for length in range(400):
        text = bytes(random.integers(40, 120, length % 9).astype(np.uint8))
        try:
            assert coco_decode({"size": [3, 5], "counts": text}).sum() <= 15
        except ImageError:
            refused += 1
    assert refused > 300
