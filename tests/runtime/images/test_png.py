import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.errors import OutputError
from runtime.images.png import MAX_PNG_SIDE, png_of, save_picture


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
    picture = Image.open(io.BytesIO(png_of(values)))
    assert picture.mode == mode
    np.testing.assert_array_equal(np.asarray(picture), values)


@pytest.mark.parametrize("shape", [(1, MAX_PNG_SIDE + 1), (MAX_PNG_SIDE + 1, 1)])
def test_a_side_that_libpng_does_not_write_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(OutputError, match=r"a side of 1000001 pixels cannot be written, expected at most 1000000"):
        png_of(np.zeros(shape, np.uint8))


def _raise(*_: object) -> None:
    raise cv2.error("OpenCV(4.10.0) error: Insufficient memory")


@pytest.mark.parametrize("encode", [lambda *_: (False, np.ones(9, np.uint8)), _raise])
def test_what_opencv_could_not_finish_is_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode: object
) -> None:
    target = tmp_path / "mask.png"
    target.write_bytes(b"old")
    monkeypatch.setattr(cv2, "imencode", encode)
    with pytest.raises(MemoryError, match=r"^PNG: cannot encode \[5, 7\]"):
        save_picture(Image.fromarray(np.zeros((5, 7), np.uint8)), target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
