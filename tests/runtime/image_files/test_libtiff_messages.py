"""libtiff says nothing on the process's stderr while it decodes for us; for others all is as before."""

import gc
import io
import threading

import numpy as np
import pytest
from damaged import cut_tiff
from pictures import encoded
from PIL import Image

from runtime.errors import ImageError
from runtime.image import load_image
from runtime.image_files import libtiff_messages

NOISE = np.random.default_rng(1).integers(0, 256, (60, 50, 3), np.uint8)
CUT = cut_tiff(encoded(NOISE, "TIFF", compression="tiff_lzw"), 0.5)


def by_pillow():
    with pytest.raises(OSError, match=r"^(decoder error )?-2$"):
        Image.open(io.BytesIO(CUT)).load()


def test_damaged_tiff_prints_nothing_within_our_calls_and_as_ever_outside(capfd):
    by_pillow()
    before = capfd.readouterr().err
    assert "LZWDecode" in before
    for _ in range(3):
        with pytest.raises(ImageError, match=r"^image: is damaged or truncated \("):
            load_image(CUT)
    with pytest.raises(ImageError):
        load_image(Image.open(io.BytesIO(CUT)))
    assert capfd.readouterr().err == ""
    by_pillow()
    assert capfd.readouterr().err == before  # with its values: the handler before ours has printed it


def test_other_threads_print_while_ours_are_quiet(capfd):
    start = threading.Barrier(4)

    def ours():
        start.wait()
        for _ in range(20):
            with pytest.raises(ImageError):
                load_image(CUT)

    def theirs():
        start.wait()
        for _ in range(20):
            by_pillow()

    threads = [threading.Thread(target=work) for work in (ours, ours, theirs, theirs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    err = capfd.readouterr().err
    assert err.count("Strip 0 not terminated with EOI code") == 40, err  # two threads may mix words of a line


def test_error_that_libtiff_goes_on_after_is_an_image_error(monkeypatch):
    whole = encoded(NOISE, "TIFF", compression="tiff_lzw")
    assert np.array_equal(load_image(whole), NOISE)
    load = Image.Image.load

    def told(picture):
        said = libtiff_messages._said.get()
        if said is not None and picture.format == "TIFF":
            said.append(b"LZWDecode")
        return load(picture)

    monkeypatch.setattr(Image.Image, "load", told)
    with pytest.raises(ImageError, match=r"\(libtiff reports an error in its pixels\); replace it$"):
        load_image(whole)


def test_a_pillow_that_hides_libtiff_decodes_as_before(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(libtiff_messages, "take_over", libtiff_messages.take_over.__wrapped__)
    monkeypatch.setattr(libtiff_messages.ctypes, "CDLL", missing)
    assert np.array_equal(load_image(encoded(NOISE, "TIFF", compression="tiff_lzw")), NOISE)


def test_two_threads_that_take_over_at_once_leave_two_handlers_that_work(capfd):
    by_pillow()
    before = capfd.readouterr().err
    for _ in range(2):
        libtiff_messages.take_over.__wrapped__()
    gc.collect()
    by_pillow()
    assert capfd.readouterr().err == before
    with pytest.raises(ImageError):
        load_image(CUT)
    assert capfd.readouterr().err == ""
