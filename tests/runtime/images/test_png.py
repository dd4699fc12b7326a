import io

import numpy as np
import pytest
from PIL import Image

from runtime.errors import OutputError
from runtime.images.png import MAX_PNG_SIDE, encode_png


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
    picture = Image.open(io.BytesIO(encode_png(values)))
    assert picture.mode == mode
    np.testing.assert_array_equal(np.asarray(picture), values)


@pytest.mark.parametrize("shape", [(1, MAX_PNG_SIDE + 1), (MAX_PNG_SIDE + 1, 1)])
def test_a_side_that_libpng_does_not_write_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(OutputError, match=r"a side of 1000001 pixels cannot be written, expected at most 1000000"):
        encode_png(np.zeros(shape, np.uint8))
