"""The options of predict: what they mean for the network, and what is refused."""

import numpy as np
import pytest

from runtime.errors import ConfigError
from runtime.inference.predict_options import resolve_options


@pytest.mark.parametrize(
    ("asked", "fit", "size"),
    [
        ({}, "letterbox", (8, 12)),
        ({"size": (20, 30)}, "letterbox", (20, 30)),
        ({"size": "native"}, "native", (8, 12)),
        ({"tile": (64, 64)}, "native", (8, 12)),
        ({"tile": (64, 64), "size": (200, 300)}, "letterbox", (200, 300)),
        ({"size": "30x20"}, "letterbox", (20, 30)),
        ({"tile": "64X32", "size": " 300 x 200 "}, "letterbox", (200, 300)),
    ],
)
def test_what_the_network_sees(make_card, asked, fit, size):
    way = resolve_options(make_card(fit="letterbox"), asked.get("size"), asked.get("tile"), None, None)
    assert (way.spec.fit, way.spec.size, way.tile) == (
        fit,
        size,
        {"64X32": (32, 64)}.get(asked.get("tile"), asked.get("tile")),
    )


def test_a_size_that_is_asked_for_of_a_native_model_is_stretched_to(make_card):
    assert resolve_options(make_card(fit="native"), (20, 30)).spec.fit == "stretch"


SIZES = "expected (height, width) or 'WxH', each 1 to 32768"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tile": 256}, f"tile: found 256, {SIZES}"),
        ({"tile": (0, 8)}, f"tile: found (0, 8), {SIZES}"),
        ({"tile": (8.0, 8)}, f"tile: found (8.0, 8), {SIZES}"),
        ({"tile": (True, 8)}, f"tile: found (True, 8), {SIZES}"),
        ({"size": (8, 40_000)}, f"size: found (8, 40000), {SIZES}, or 'native'"),
        ({"size": "0x8"}, f"size: found (8, 0), {SIZES}, or 'native'"),
        ({"tile": "8x8x8"}, f"tile: found '8x8x8', {SIZES}"),
        ({"size": "whole"}, f"size: found 'whole', {SIZES}, or 'native'"),
        ({"tile": (8, 8), "overlap": 1}, "overlap: found 1, expected 0 to 0.9, a share of the tile"),
        ({"tile": (8, 8), "overlap": float("nan")}, "overlap: found nan, expected 0 to 0.9, a share of the tile"),
        ({"tile": (8, 8), "overlap": "0.5"}, "overlap: found '0.5', expected 0 to 0.9, a share of the tile"),
        ({"overlap": 0.5}, "overlap: found 0.5 without tile, whose neighbours it is of; give tile too"),
        ({"tta": "mirror"}, "tta: found 'mirror', expected 'flip', 'd4' or None"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(make_card, asked, message):
    with pytest.raises(ConfigError) as caught:
        resolve_options(make_card(), asked.get("size"), asked.get("tile"), asked.get("overlap"), asked.get("tta"))
    assert str(caught.value) == message


def test_overlap_may_be_any_number(make_card):
    assert resolve_options(make_card(), tile=(8, 8), overlap=np.float32(0.5)).overlap == 0.5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"tiles": (8, 8)},
            "tiles: is no option of predict, expected size, tile, overlap, tta, threshold, channels, limits",
        ),
        ({"threshold": 1}, "threshold: found 1, expected a number between 0 and 1"),
        ({"threshold": "high"}, "threshold: found 'high', expected a number between 0 and 1"),
        ({"size": np.array([8, 8])}, "size: found array"),
        ({"limits": 300_000_000}, "limits: found 300000000, expected runtime.Limits, or None"),
        (
            {"size": (20_000, 20_000)},
            "size: found 20000x20000, expected at most 200000000 pixels, which take some 90",
        ),
    ],
)
def test_what_is_asked_for_wrongly(make_card, asked, message):
    with pytest.raises(ConfigError) as caught:
        resolve_options(make_card(), **asked)
    assert str(caught.value).startswith(message)
