"""unet-predict --fast-decode: JPEG files decoded at a part of their size."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import simplejpeg
from masks import pixels_of
from PIL import Image

from runtime.errors import ImageError
from runtime.predictor import Predictor


@pytest.fixture
def photo(tmp_path):
    """A JPEG of 300x200."""
    rough = np.random.default_rng(3).integers(0, 256, (6, 9, 3), np.uint8)
    folder = tmp_path / "photos"
    folder.mkdir()
    smooth = cv2.resize(rough, (300, 200), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(smooth).save(folder / "photo.jpg", quality=90)
    return folder / "photo.jpg"


def test_a_mask_has_the_images_own_size(run_predict, write_model, photo, out, monkeypatch):
    model, sizes, decode = write_model("conv", fit="stretch"), [], simplejpeg.decode_jpeg

    def noted(content, **options):
        pixels = decode(content, **options)
        sizes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    result = run_predict(photo.parent, "--fast-decode", "--tta", "flip", model=model)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"1 of 1 written to {out} on cpu, 1 decoded at a part of their size\n"
    assert sizes == [(25, 38, 3)]
    expected = Predictor(model, "cpu", decode="scaled").predict(photo, tta="flip")
    assert np.array_equal(pixels_of(out / "photo.png"), 255 * expected.mask)
    assert run_predict(photo, "--fast-decode", "--skip-existing", model=model).stdout.startswith(
        "nothing to do: 1 of 1"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "overlay"], "--fast-decode: --format overlay shows the whole image; leave out one of the two"),
        (["--format", "cutout"], "--fast-decode: --format cutout shows the whole image; leave out one of the two"),
        (
            ["--format", "cutout", "--background", "white"],
            "--fast-decode: --format cutout shows the whole image; leave out one of the two",
        ),
        (
            ["--size", "native"],
            "--fast-decode changes nothing with --size native: the network sees the image's own size",
        ),
        (
            ["--tile", "64x64"],
            "--fast-decode changes nothing with --tile without --size: the network sees the image's own size",
        ),
    ],
)
def test_options_that_need_every_pixel_are_refused(run_predict, photo, out, options, message):
    result = run_predict(photo, "--fast-decode", *options)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {message}")
    assert not out.exists()


@pytest.mark.parametrize(("scale", "is_told"), [(1.0, True), (0.3, True), (0.25, False)])
def test_a_model_that_sees_images_at_their_own_size_is_told_of(run_predict, write_model, photo, scale, is_told):
    model = write_model("conv", fit="native", scale=scale)
    note = f"note: --fast-decode changes nothing: {model} sees images at more than a quarter of their size\n"
    assert run_predict(photo, "--fast-decode", model=model).stderr == note * is_told
    assert run_predict(photo, "--fast-decode", "--size", "12x8", model=model).stderr == ""
    assert run_predict(photo, model=model).stderr == ""


def test_images_that_were_decoded_whole_are_not_counted(run_predict, write_model, photo, tmp_path):
    """A small JPEG and a PNG are; in a table, too."""
    Image.new("RGB", (300, 200)).save(photo.with_name("other.png"))
    Image.new("RGB", (30, 20)).save(photo.with_name("small.jpg"))
    model = write_model("conv", fit="stretch")
    for to, kind in ((tmp_path / "masks", "mask"), (tmp_path / "all.csv", "areas")):
        result = run_predict(photo.parent, "--fast-decode", "--format", kind, model=model, to=to)
        assert result.stdout == f"3 of 3 written to {to} on cpu, 1 decoded at a part of their size\n"
        whole = run_predict(photo.parent, "--format", kind, model=model, to=to)
        assert whole.stdout == f"3 of 3 written to {to} on cpu\n"


def test_an_error_of_decoding_the_whole_image_names_the_file(write_model, photo):
    result = Predictor(write_model("conv", fit="stretch"), "cpu", decode="scaled").predict(photo)
    assert result.is_fast_decoded
    encoded = result.__dict__["image"]
    result.__dict__["image"] = replace(encoded, content=encoded.content[:-1000])
    with pytest.raises(ImageError) as caught:
        _ = result.image
    assert str(caught.value).startswith(f"{photo}: is damaged or truncated")
    result.__dict__["image"] = encoded
    assert result.image.shape == (200, 300, 3) and not result.is_fast_decoded
