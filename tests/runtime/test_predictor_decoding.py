"""Predictor with decode="scaled": JPEG files decoded at a part of their size."""

import io
import pickle
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.card import InputSpec
from runtime.errors import ConfigError, ImageError
from runtime.image import enough, fit, load_image, restore
from runtime.image_files.formats import UPRIGHT
from runtime.predictor import Predictor, predict


def smooth(height, width, seed=3):
    rough = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(pixels, orientation=1, **options):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "JPEG", quality=90, exif=exif, **options)
    return file.getvalue()


@pytest.fixture
def model(write_model):
    """A file of a model that was trained at 8x12 and sees 3x3 neighbourhoods."""
    return write_model("conv", fit="stretch")


@pytest.fixture
def decoded(monkeypatch):
    """(height, width) of each JPEG as it was decoded."""
    import simplejpeg

    sizes, decode = [], simplejpeg.decode_jpeg

    def noted(content, **options):
        pixels = decode(content, **options)
        sizes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    return sizes


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
@pytest.mark.parametrize("how", ["stretch", "letterbox"])
def test_a_large_jpeg_is_decoded_at_a_part_and_answered_at_its_own_size(
    write_model, answers, decoded, orientation, how
):
    content, model = (
        jpeg(smooth(203, 301), orientation),
        Predictor(write_model("conv", fit=how), "cpu", decode="scaled"),
    )
    result = model.predict(content)
    assert decoded == [(26, 38)]  # an eighth of 203x301, and 12 are enough
    part, shape = load_image(content, at_least=(8, 12)), load_image(content).shape[:2]
    assert result.shape == shape == ((301, 203) if orientation > 4 else (203, 301))
    assert result.mask.shape == shape
    fitted = fit(part, model.card.input, shape)
    expected = restore(answers["conv"](fitted.image[None])[0], fitted)
    assert np.abs(result.probability - expected).max() < 1e-6
    assert 0 < np.abs(result.probability - model.predict(content, decode="full").probability).max() < 0.05


@pytest.mark.parametrize("space", ["grey", "CMYK", "progressive"])
def test_every_kind_of_jpeg(model, decoded, space):
    file, picture = io.BytesIO(), Image.fromarray(smooth(200, 300))
    if space == "progressive":
        picture.save(file, "JPEG", progressive=True)
    else:
        picture.convert("L" if space == "grey" else "CMYK").save(file, "JPEG")
    content, predictor = file.getvalue(), Predictor(model, "cpu")
    found = predictor.predict(content, decode="scaled")
    assert (decoded, found.shape) == ([(25, 38)], (200, 300))
    assert np.abs(found.probability - predictor.predict(content).probability).max() < 0.05
    assert np.array_equal(found.image, load_image(content))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, (25, 38)),
        ({"size": (48, 30)}, (100, 150)),
        ({"size": (200, 300)}, (200, 300)),
        ({"size": "native"}, (200, 300)),
        ({"tile": (64, 64)}, (200, 300)),
        ({"tile": (16, 16), "size": (48, 30)}, (100, 150)),
        ({"size": (51, 30)}, (200, 300)),
        ({"size": (25, 37)}, (50, 75)),
        ({"tta": "flip"}, (25, 38)),
    ],
)
def test_the_size_that_the_network_sees_decides(model, decoded, options, part):
    result = Predictor(model, "cpu", decode="scaled").predict(jpeg(smooth(200, 300)), **options)
    assert (decoded, result.shape) == ([part], (200, 300))


@pytest.mark.parametrize(("scale", "part"), [(1.0, 1), (0.3, 1), (0.25, 2), (0.2, 2), (0.1, 4), (0.05, 8)])
def test_a_network_that_sees_a_share_of_each_size(write_model, decoded, scale, part):
    model = Predictor(write_model("conv", fit="native", scale=scale), "cpu", decode="scaled")
    content = jpeg(smooth(203, 301))
    result = model.predict(content)
    assert (decoded, result.shape) == ([(-(-203 // part), -(-301 // part))], (203, 301))
    seen = fit(load_image(content, at_least=partial(enough, model.card.input)), model.card.input, (203, 301)).image
    assert seen.shape[:2] == (max(1, int(scale * 203)), max(1, int(scale * 301)))


def test_what_is_no_larger_or_no_jpeg_file_is_decoded_as_always(model, decoded):
    full, scaled, pixels = Predictor(model, "cpu"), Predictor(model, "cpu", decode="scaled"), smooth(200, 300)
    small, png = jpeg(smooth(22, 30)), io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    picture = Image.open(io.BytesIO(jpeg(pixels)))
    for source in (small, png.getvalue(), pixels, picture):
        expected = full.predict(source)
        found = scaled.predict(source)
        assert np.array_equal(found.probability, expected.probability)
        assert np.array_equal(found.image, expected.image)
    assert decoded == [(22, 30), (22, 30)]


def test_the_whole_image_is_decoded_when_it_is_asked_for_and_once(model, decoded, tmp_path):
    path, content = tmp_path / "a.jpg", jpeg(smooth(200, 300), orientation=6)
    path.write_bytes(content)
    result = Predictor(model, "cpu", decode="scaled").predict(path)
    path.unlink()  # nothing of the file is needed any more
    other = pickle.loads(pickle.dumps(result.threshold(0.4)))
    repr(other), other.area(), other.polygons(), other.probability_of(None, np.uint8)
    assert decoded == [(25, 38)]
    whole = load_image(content)
    assert other.image is other.image
    assert np.array_equal(other.image, whole)
    assert decoded == [(25, 38), (200, 300), (200, 300)]  # the second one by this test
    assert np.array_equal(result.overlay(opacity=0), whole)
    assert other.cutout().shape == (300, 200, 4)


def test_all_ways_to_ask_decode_alike(model, decoded):
    import asyncio

    contents = [jpeg(smooth(200, 300, seed)) for seed in range(3)]
    scaled, full = Predictor(model, "cpu", decode="scaled"), Predictor(model, "cpu")
    expected = [full.predict(one, decode="scaled").probability for one in contents]
    found = [
        scaled.predict(contents),
        scaled.predict_batch(contents, batch_size=2),
        list(scaled.stream(contents)),
        [scaled.submit(one).result() for one in contents],
        [asyncio.run(scaled.predict_async(one)) for one in contents],
        [predict(one, model, "cpu", decode="scaled") for one in contents],
        [pickle.loads(pickle.dumps(scaled)).predict(one) for one in contents],
        list(full.stream(contents, decode="scaled", then=lambda _, result: result)),
    ]
    for answers in found:
        assert all(np.array_equal(one.probability, other) for one, other in zip(answers, expected, strict=True))
    assert decoded == [(25, 38)] * 27


def test_a_damaged_jpeg_is_refused_as_always(model, tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(jpeg(smooth(200, 300))[:-300])
    for decode in ("full", "scaled"):
        with pytest.raises(ImageError, match=r"cut\.jpg: is damaged or truncated \(it ends before its end marker\);"):
            Predictor(model, "cpu", decode=decode).predict(path)


def test_other_ways_to_decode_are_refused(model):
    with pytest.raises(ConfigError) as caught:
        Predictor(model, "cpu", decode="fast")
    assert str(caught.value) == "decode: found 'fast', expected 'full' or 'scaled'"
    with pytest.raises(ConfigError) as caught:
        Predictor(model, "cpu").predict(smooth(9, 9), decode=2)
    assert str(caught.value) == "decode: found 2, expected 'full' or 'scaled', or None"


@pytest.mark.parametrize(
    ("how", "size", "whole", "least"),
    [
        ("stretch", (160, 240), (1280, 1918), (320, 480)),  # a quarter of Carvana's
        ("letterbox", (160, 240), (1280, 1918), (320, 479)),
        ("letterbox", (512, 512), (1000, 2000), (512, 1024)),
        ("native", (160, 240), (1281, 1918), (640, 959)),
    ],
)
def test_no_less_is_decoded_than_twice_what_the_network_sees(how, size, whole, least):
    assert enough(InputSpec(size=size, fit=how, scale=0.25 if how == "native" else 1.0), whole) == least
