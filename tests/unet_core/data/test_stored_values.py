"""Levels that training images show: the bits that they use, or percentiles of their values."""

import cv2
import numpy as np
import pytest
import tifffile

import unet_core.data.stored_values as module
from runtime.errors import DataError
from runtime.image import LIMITS
from unet_core.data.levels import levels_line
from unet_core.data.pairs import Pair
from unet_core.data.stored_values import find_levels

NOISE = np.random.default_rng(0).random((40, 50))


def values(most, dtype=np.uint16):
    """Noise of 0 to `most`, with both of them in it."""
    array = np.rint(NOISE * most).astype(dtype)
    array.flat[:2] = 0, most
    return array


def write(folder, name, array):
    path = folder / name
    if path.suffix == ".tif":
        tifffile.imwrite(path, array)
    elif path.suffix == ".pgm":
        path.write_bytes(b"P5\n50 40\n4095\n" + array.astype(">u2").tobytes())
    else:
        cv2.imencode(path.suffix, array)[1].tofile(path)
    return Pair(image=path)


def found(pairs, setting="auto", cache=None):
    return find_levels(pairs, setting, LIMITS, cache, lambda _: None)


@pytest.mark.parametrize(
    ("most", "levels"),
    [
        *((4095, (0, 4095)), (2049, (0, 4095)), (1023, (0, 1023)), (1024, (0, 2047)), (255, (0, 255)), (3, (0, 3))),
        *((16_383, (0, 16_383)), (32_767, (0, 32_767)), (32_768, None), (65_535, None)),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_bits_that_are_used_are_found(tmp_path, most, levels, suffix):
    darker = write(tmp_path, f"a{suffix}", values(most // 4))
    assert found([darker, write(tmp_path, f"b{suffix}", values(most))]) == levels


def test_colours_count_as_greys_do(tmp_path):
    assert found([write(tmp_path, "a.png", np.dstack([values(200), values(4000), values(300)]))]) == (0, 4095)


def test_a_range_that_the_header_tells_is_the_whole_range(tmp_path):
    assert found([write(tmp_path, "a.pgm", values(4095))]) is None
    assert found([write(tmp_path, "b.pgm", values(1000))]) == (0, 1023)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_pictures_of_8_bits_have_the_whole_range_and_are_not_decoded(tmp_path, monkeypatch, suffix):
    pair = write(tmp_path, f"a{suffix}", values(40, np.uint8))
    monkeypatch.setattr(module, "stored_values", lambda *_: pytest.fail("a picture was decoded"))
    assert found([pair]) is None


def test_what_cannot_be_read_is_left_to_decoding(tmp_path):
    good, bad = write(tmp_path, "a.png", values(4095)), tmp_path / "b.png"
    bad.write_bytes(good.image.read_bytes()[:200])
    assert found([good, Pair(image=bad), Pair(image=tmp_path / "none.png")]) == (0, 4095)
    assert found([Pair(image=bad)]) is None


@pytest.mark.parametrize("dtype", [np.uint16, np.uint8])
def test_percentiles_leave_a_thousandth_beyond_each_end(tmp_path, dtype):
    array = np.repeat(np.arange(100, 200), 20).reshape(40, 50).astype(dtype)  # 2000 values
    array.flat[:2], array.flat[-2:] = 0, 255
    assert found([write(tmp_path, "a.png", array)], "percentile") == (100, 199)


def test_percentiles_of_one_value_are_refused(tmp_path):
    pair = write(tmp_path, "a.png", np.full((40, 50), 700, np.uint16))
    with pytest.raises(DataError) as caught:
        found([pair], "percentile")
    assert str(caught.value) == ("--levels percentile: nearly all values of the training images are 700; give LOW,HIGH")


def test_what_was_found_is_kept(tmp_path, cache, monkeypatch):
    pairs = [write(tmp_path, "a.png", values(4095)), write(tmp_path, "b.png", values(900))]
    assert found(pairs, cache=cache) == (0, 4095)
    (file,) = cache.folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    calls, load = [], module.stored_values
    monkeypatch.setattr(module, "stored_values", lambda *args: (calls.append(args[0].name), load(*args))[1])
    assert found(pairs, cache=cache) == (0, 4095) and calls == []
    assert found(pairs, "percentile", cache) != (0, 4095) and sorted(calls) == ["a.png", "b.png"]
    write(tmp_path, "a.png", values(1000))
    assert found(pairs, cache=cache) == (0, 1023)


@pytest.mark.parametrize("damage", [b"", b"[0]", b"[5,2]", b"{", b'["0","x"]', b"[0,4095", b"7"])
def test_damaged_notes_are_made_anew(tmp_path, cache, damage):
    pairs = [write(tmp_path, "a.png", values(4095))]
    assert found(pairs, cache=cache) == (0, 4095)
    (file,) = cache.folder.iterdir()
    file.write_bytes(damage)
    assert found(pairs, cache=cache) == (0, 4095) and file.read_text() == "[0, 4095]"


def test_notes_that_others_may_write_are_not_believed(tmp_path, cache):
    pairs = [write(tmp_path, "a.png", values(4095))]
    assert found(pairs, cache=cache) == (0, 4095)
    (file,) = cache.folder.iterdir()
    file.write_text("[0, 9]")
    assert found(pairs, cache=cache) == (0, 9)
    file.chmod(0o666)
    assert found(pairs, cache=cache) == (0, 4095)


def test_levels_are_described():
    assert levels_line((0, 4095), "auto") == (
        "levels: stored values 0 to 4095 become 0 to 255, since the images use 12 bits (--levels 0,4095)"
    )
    assert levels_line((90, 700), "percentile") == (
        "levels: stored values 90 to 700 become 0 to 255, since all but 0.2 % of the values lie there (--levels 90,700)"
    )
