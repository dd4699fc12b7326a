"""Arrays become levels of 8 bits, and where that leaves hardly any difference it is said, once."""

import warnings

import numpy as np
import pytest

from runtime.errors import ImageWarning
from runtime.image import load_image
from runtime.images import arrays

NOISE = np.random.default_rng(0).random((20, 30, 4))


@pytest.fixture(autouse=True)
def unwarned(monkeypatch):
    monkeypatch.setattr(arrays, "WARNED", set())


SQUEEZED = {
    "uint16": (NOISE * 4000).astype(np.uint16),
    "uint16 of the other byte order": (NOISE * 4000).astype(">u2"),
    "uint16 away from 0": (NOISE * 4000 + 30_000).astype(np.uint16),
    "float32": (NOISE * 0.01).astype(np.float32),
    "float64": NOISE * 0.001,
}


@pytest.mark.parametrize("name", SQUEEZED)
@pytest.mark.parametrize("channels", ["raw", "RGB", "L"])
def test_values_that_fill_few_levels_are_told_once(name, channels):
    array = SQUEEZED[name]
    with pytest.warns(ImageWarning) as caught:
        first, second = load_image(array, channels), load_image(array, channels)
    assert np.array_equal(first, second)
    assert len(caught) == 1 and caught[0].filename == __file__
    shown = array if channels == "raw" else array[:, :, :3]
    text = str(caught[0].message)
    kind, whole = array.dtype.name, "0 to 65535" if array.dtype.kind == "u" else "0 to 1"
    assert text.startswith(f"array: {kind} values from {shown.min():.6g} to {shown.max():.6g} fill ")
    assert text.endswith(
        f" of the 256 levels that the model gets, since {whole} becomes 0 to 255; scale the array so that it fills "
        "that range, as in training"
    )


def test_the_number_of_levels_is_told():
    with pytest.warns(ImageWarning, match="values from 0 to 4000 fill 16 of the 256 levels"):
        load_image(np.arange(4001, dtype=np.uint16)[None], "L")


@pytest.mark.parametrize(
    "array",
    [
        (NOISE * 20).astype(np.uint8),
        (NOISE * 65_535).astype(np.uint16),
        (NOISE * 20).astype(np.uint16) * 257,
        (NOISE * 20).astype(np.uint8) / 255,
        ((NOISE * 20).astype(np.uint8) / 255).astype(np.float16),
        NOISE * 0.3,
        np.full((5, 6, 4), 100, np.uint16),
        np.full((5, 6, 4), 0.002),
    ],
    ids=["uint8", "full uint16", "8 bits in 16", "8 bits in floats", "in float16", "77 levels", "flat", "flat floats"],
)
def test_other_arrays_are_taken_without_a_word(array):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(array, "raw")
