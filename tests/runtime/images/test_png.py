"""PNG files: every reader finds the values they were made of, and they are no larger than those of OpenCV."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.errors import OutputError
from runtime.images.palette import PALETTE
from runtime.images.png import MAX_PNG_SIDE, STRIP, encode_bilevel_png, encode_mask_png, encode_palette_png, encode_png


def blobs(height: int = 640, width: int = 959, cells: int = 9) -> np.ndarray:
    rough = np.random.default_rng(0).standard_normal((cells, cells)).astype(np.float32)
    return (cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC) > 0).astype(np.uint8)


def by_opencv(content: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))


def by_torchvision(content: bytes) -> np.ndarray:
    torch, io_ = pytest.importorskip("torch"), pytest.importorskip("torchvision.io")
    values = io_.decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8)).numpy()
    return np.asarray(values.transpose(1, 2, 0).squeeze())


@pytest.mark.parametrize(
    ("shape", "dtype", "mode"),
    [
        ((5, 7), np.uint8, "L"),
        ((1, 1), np.uint8, "L"),
        ((5, 7), np.uint16, "I;16"),
        ((5, 7, 3), np.uint8, "RGB"),
        ((5, 7, 4), np.uint8, "RGBA"),
    ],
)
def test_a_png_holds_the_values_it_was_made_of(shape: tuple[int, ...], dtype: type, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    for given in (values, np.asfortranarray(values), np.repeat(values, 2, axis=0)[::2]):
        content = encode_png(given)
        picture = Image.open(io.BytesIO(content))
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture), values)
        order = [2, 1, 0, 3][: values.shape[-1]] if values.ndim == 3 else ...
        np.testing.assert_array_equal(
            by_opencv(content)[..., order] if values.ndim == 3 else by_opencv(content), values
        )


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (5, 9), (STRIP // 512 + 3, 513), (2, STRIP // 2 + 1)])
def test_a_mask_of_one_bit_holds_what_is_not_0(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 3, shape, np.uint8)
    content = encode_bilevel_png(mask)
    picture = Image.open(io.BytesIO(content))
    assert (picture.mode, picture.size) == ("1", shape[::-1])
    np.testing.assert_array_equal(np.asarray(picture), mask != 0)
    np.testing.assert_array_equal(by_opencv(content), 255 * (mask != 0))
    np.testing.assert_array_equal(by_torchvision(content), np.squeeze(255 * (mask != 0)))


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
def test_a_mask_of_eight_bits_is_the_same_to_every_reader() -> None:
    """Not so one bit: Pillow, and imageio and scikit-image by it, read True and False, and torchvision 0 and 255."""
    mask = blobs(40, 61)
    eight, one = encode_mask_png(mask), encode_bilevel_png(mask)
    assert eight == encode_png(255 * mask)
    by_pillow = [np.asarray(Image.open(io.BytesIO(content))) for content in (eight, one)]
    assert [values.dtype for values in by_pillow] == [np.uint8, np.bool_]
    for values in (by_pillow[0], by_opencv(eight), by_torchvision(eight), by_opencv(one), by_torchvision(one)):
        np.testing.assert_array_equal(values, 255 * mask)


def test_a_palette_is_what_pillow_makes_of_it() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (37, 41), np.uint8)
    picture = Image.open(io.BytesIO(encode_palette_png(mask, PALETTE)))
    assert (picture.mode, np.asarray(picture).tolist()) == ("P", mask.tolist())
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.array(PALETTE, np.uint8)[mask])


@pytest.mark.parametrize("kind", ["mask", "classes", "probability", "picture"])
def test_files_are_no_larger_than_those_of_opencv(kind: str) -> None:
    ramp = np.add.outer(np.arange(640), np.arange(959))
    values = {
        "mask": 255 * blobs(),
        "classes": blobs() + blobs(cells=5),
        "probability": (ramp * 40).astype(np.uint16),
        "picture": np.dstack([ramp % 256, ramp // 7 % 256, 255 * blobs()]).astype(np.uint8),
    }[kind]
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    filters = cv2.IMWRITE_PNG_FILTER_NONE if kind in ("mask", "classes") else cv2.IMWRITE_PNG_FILTER_UP
    theirs = cv2.imencode(".png", values, [*options, cv2.IMWRITE_PNG_FILTER, filters])[1].nbytes
    assert len(encode_png(values)) < 1.02 * theirs
    if kind == "mask":
        assert len(encode_bilevel_png(values)) < 0.95 * theirs


@pytest.mark.parametrize("shape", [(1, MAX_PNG_SIDE + 1), (MAX_PNG_SIDE + 1, 1)])
def test_a_side_that_libpng_does_not_write_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(OutputError, match=r"a side of 1000001 pixels cannot be written, expected at most 1000000"):
        encode_png(np.zeros(shape, np.uint8))
