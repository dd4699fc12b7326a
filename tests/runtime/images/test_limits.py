"""Limits of decoding: their own bounds; what exceeds them is in test_image_refusals.py."""

import pytest

from runtime.errors import ConfigError
from runtime.images.limits import Limits


@pytest.mark.parametrize("value", [0, -1, True, 1e9, "5", None])
def test_limits_are_positive_integers(value):
    with pytest.raises(ConfigError) as caught:
        Limits(pixels=value)
    assert str(caught.value) == f"Limits.pixels: found {value!r}, expected an integer from 1"
