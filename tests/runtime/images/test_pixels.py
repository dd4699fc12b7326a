import tracemalloc

import numpy as np
import pytest
from PIL import Image

from runtime.images.pixels import SAMPLES, pixels


def picture(mode, width, height):
    random = np.random.default_rng([width, height])
    if mode in ("F", "I", "I;16"):
        kind = {"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode]
        return Image.fromarray(random.integers(0, 60_000, (height, width)).astype(kind))
    if mode in ("LAB", "RGBX"):
        planes = SAMPLES[mode]
        return Image.frombytes(mode, (width, height), random.integers(0, 256, width * height * planes, np.uint8))
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (1, 3_000), (3_000, 1), (613, 401)])
@pytest.mark.parametrize("mode", [*SAMPLES, "1", "F", "I", "I;16"])
def test_gives_what_numpy_does(mode, size):
    image = picture(mode, *size)
    assert image.mode == mode
    expected = np.asarray(image)
    found = pixels(image)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_takes_the_pixels_of_a_part(tmp_path):
    image = picture("RGB", 40, 30)
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:  # not decoded yet
        np.testing.assert_array_equal(pixels(opened.crop((3, 4, 20, 21))), np.asarray(image)[4:21, 3:20])


def test_makes_no_second_copy():
    image = picture("RGB", 1_000, 800)
    tracemalloc.start()
    try:
        pixels(image)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2_400_000 <= peak < 2_500_000  # np.asarray takes twice as much
