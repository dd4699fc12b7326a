"""Models of channels "raw": arrays of as many channels as the network has, and nothing else."""

import io

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import runtime
from runtime.commands.predict import predict
from runtime.errors import ConfigError, ImageError
from runtime.image import load_image
from runtime.predictor import Predictor


@pytest.fixture
def model(write_model):
    """Brightness over four channels."""
    return write_model(channels=4)


def array_of(channels, kind=np.uint8, size=(5, 7)):
    return np.random.default_rng(channels).integers(0, 256, (*size, channels)).astype(kind)


@pytest.mark.parametrize("channels", [2, 4, 5, 16])
def test_an_array_of_its_channels_is_answered(write_model, answers, channels):
    image = array_of(channels)
    result = Predictor(write_model(channels=channels), "cpu").predict(image)
    assert np.array_equal(result.probability, answers["brightness"](image[None])[0])
    assert np.array_equal(result.image, image) and result.image is not image


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_and_grey_may_be_raw_too(write_model, channels):
    predictor = Predictor(write_model(channels=channels, raw=True), "cpu")
    assert predictor.predict(array_of(channels)).size == (5, 7)
    with pytest.raises(ImageError, match="is no array"):
        predictor.predict(Image.new("RGB", (7, 5)))


def test_order_of_raw_channels_is_the_networks_own(write_model):
    predictor = Predictor(write_model(channels=3, raw=True), "cpu")
    with pytest.raises(
        ConfigError, match=r"^channels: found 'BGR', this model takes the channels of arrays as they are$"
    ):
        predictor.predict(array_of(3), channels="BGR")


def test_images_of_any_number_of_channels_are_resized(write_model):
    predictor = Predictor(write_model(channels=5, fit="letterbox", size=(8, 12)), "cpu")
    image = np.broadcast_to(np.array([0, 50, 100, 150, 200], np.uint8), (16, 24, 5))
    assert np.allclose(predictor.predict(image).probability, 100 / 255, atol=1e-6)


def test_arrays_of_other_types_are_scaled_as_pictures_are(model):
    image, predictor = array_of(4), Predictor(model, "cpu")
    expected = predictor.predict(image).probability
    assert np.array_equal(predictor.predict(image.astype(np.uint16) * 257).probability, expected)
    assert np.array_equal(predictor.predict((image / 255).astype(np.float32)).probability, expected)
    with pytest.raises(ImageError, match="found int32 values, expected uint8, uint16 or floating-point"):
        predictor.predict(image.astype(np.int32))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 5), (1, 5, 7, 4), (0, 7, 4)])
def test_other_shapes_are_refused_by_name(model, shape):
    with pytest.raises(ImageError) as caught:
        Predictor(model, "cpu").predict(np.zeros(shape, np.uint8))
    expected = f"array: found uint8 {list(shape)}, expected [height, width, 4] for this model"
    assert str(caught.value) == expected


def test_files_bytes_and_pictures_are_refused_by_name(model, tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (7, 5)).save(file)
    content, picture = file.read_bytes(), Image.new("RGB", (7, 5))
    for source, name in (
        (file, file),
        (str(file), file),
        (content, "image"),
        (io.BytesIO(content), "image"),
        (picture, "image"),
    ):
        with pytest.raises(ImageError) as caught:
            runtime.predict(source, model=model, device="cpu")
        assert str(caught.value) == (
            f"{name}: is no array, and this model takes only arrays [height, width, 4]; read the file yourself, and "
            "call runtime.predict(array, model)"
        )


def test_load_image_without_a_number_of_channels_takes_any():
    assert load_image(array_of(7), "raw").shape == (5, 7, 7)
    assert load_image(array_of(1)[:, :, 0], "raw").shape == (5, 7, 1)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_what_is_drawn_over_the_image_is_over_the_mean_of_its_channels(write_model, channels):
    image = np.broadcast_to(np.arange(channels, dtype=np.uint8) * 40, (5, 7, channels))
    result = Predictor(write_model(channels=channels, threshold=0.99), "cpu").predict(image)
    grey = round(40 * (channels - 1) / 2)
    assert np.unique(result.overlay()).tolist() == [grey]
    assert np.unique(result.cutout(keep_colours=True)[:, :, :3]).tolist() == [grey]
    assert result._repr_html_().startswith("<img ") and result._repr_png_().startswith(b"\x89PNG")


def test_arrays_in_lists_streams_tiles_and_batches(model):
    predictor, images = Predictor(model, "cpu"), [array_of(4), array_of(4, size=(9, 9))]
    expected = [predictor.predict(image).probability for image in images]
    for found in (predictor.predict(images), predictor.predict_batch(images), list(predictor.stream(images))):
        assert all(np.array_equal(one.probability, right) for one, right in zip(found, expected, strict=True))
    tiled = predictor.predict(images[1], tile=(4, 4), tta="flip").probability
    assert np.allclose(tiled, expected[1], atol=1e-6)
    assert predictor.run(images[0][None]).shape == (1, 1, 5, 7)


def test_unet_predict_refuses_files_before_it_writes(model, pictures, out):
    done = CliRunner().invoke(predict, [str(model), str(pictures), "-o", str(out), "--device", "cpu"])
    assert (done.exit_code, done.stdout, out.exists()) == (2, "", False)
    assert done.stderr == (
        f"error: {model}: takes arrays of 4 channels and no image files; call runtime.predict(array, model) in Python\n"
    )
