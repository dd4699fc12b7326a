"""Models of channels "raw": arrays and files of as many channels as the network has, and nothing else."""

import io

import numpy as np
import pytest
import tifffile
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
    with pytest.raises(ImageError, match=rf"^image: has 4 channels, expected {channels}; use images of {channels} c"):
        predictor.predict(Image.new("RGBA", (7, 5)))


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


def test_files_bytes_and_pictures_of_its_channels_are_answered_as_arrays_are(model, tmp_path):
    image = array_of(4)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", image)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", planarconfig="contig")
    expected = Predictor(model, "cpu").predict(image).probability
    content = (tmp_path / "a.npy").read_bytes()
    sources = [tmp_path / "a.png", str(tmp_path / "a.npy"), tmp_path / "a.tif", content, io.BytesIO(content)]
    for source in (*sources, Image.fromarray(image)):
        result = runtime.predict(source, model=model, device="cpu")
        assert np.array_equal(result.probability, expected) and np.array_equal(result.image, image)


def test_files_bytes_and_pictures_of_other_channels_are_refused_by_name(model, tmp_path):
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
            f"{name}: has 3 channels, expected 4; use images of 4 channels, or a model that is trained with "
            "--channels 3"
        )


def test_load_image_without_a_number_of_channels_takes_any():
    assert load_image(array_of(7), "raw").shape == (5, 7, 7)
    assert load_image(array_of(1)[:, :, 0], "raw").shape == (5, 7, 1)


@pytest.mark.parametrize(("channels", "colour"), [(2, (20, 20, 20)), (4, (0, 40, 80)), (6, (0, 40, 80))])
def test_what_is_drawn_over_the_image_is_over_three_channels_or_the_mean_of_two(write_model, channels, colour):
    image = np.broadcast_to(np.arange(channels, dtype=np.uint8) * 40, (5, 7, channels))
    result = Predictor(write_model(channels=channels, threshold=0.99), "cpu").predict(image)
    assert np.array_equal(result.overlay(), np.broadcast_to(np.uint8(colour), (5, 7, 3)))
    assert np.array_equal(result.cutout(keep_colours=True)[:, :, :3], result.overlay())
    assert result._repr_html_().startswith("<img ") and result._repr_png_().startswith(b"\x89PNG")


def test_arrays_in_lists_streams_tiles_and_batches(model):
    predictor, images = Predictor(model, "cpu"), [array_of(4), array_of(4, size=(9, 9))]
    expected = [predictor.predict(image).probability for image in images]
    for found in (predictor.predict(images), predictor.predict_batch(images), list(predictor.stream(images))):
        assert all(np.array_equal(one.probability, right) for one, right in zip(found, expected, strict=True))
    tiled = predictor.predict(images[1], tile=(4, 4), tta="flip").probability
    assert np.allclose(tiled, expected[1], atol=1e-6)
    assert predictor.run(images[0][None]).shape == (1, 1, 5, 7)


def test_unet_predict_answers_a_folder_of_files_of_its_channels(model, tmp_path, out):
    folder = tmp_path / "scenes"
    folder.mkdir()
    np.save(folder / "a.npy", array_of(4))
    np.savez_compressed(folder / "b.npz", image=array_of(4).astype(np.uint16) * 257)
    tifffile.imwrite(folder / "c.tif", array_of(4), photometric="minisblack", planarconfig="contig")
    np.save(folder / "d.npy", array_of(5))
    arguments = [str(model), str(folder), "-o", str(out), "--device", "cpu"]
    done = CliRunner().invoke(predict, arguments)
    assert done.exit_code == 1
    assert done.stdout == f"3 of 4 written to {out} on cpu, 1 failed\n"
    assert done.stderr == (
        f"error: {folder / 'd.npy'}: has 5 channels, expected 4; use images of 4 channels, or a model that is trained "
        "with --channels 5\n"
    )
    masks = {path.name: np.asarray(Image.open(path)) for path in out.iterdir()}
    expected = Predictor(model, "cpu").predict(array_of(4)).mask * 255
    assert sorted(masks) == ["a.png", "b.png", "c.png"]
    assert all(np.array_equal(mask, expected) for mask in masks.values())
    again = CliRunner().invoke(predict, [*arguments, "--skip-existing", "--format", "overlay"])
    assert again.exit_code == 1, again.stderr
    (folder / "d.npy").unlink()
    done = CliRunner().invoke(predict, [*arguments, "--skip-existing"])
    assert done.exit_code == 0, done.stderr


def test_unet_predict_of_a_model_of_colours_tells_of_arrays_beside_images(write_model, tmp_path, out):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (7, 5)).save(folder / "a.png")
    np.save(folder / "a.npy", array_of(4))
    done = CliRunner().invoke(predict, [str(write_model()), str(folder), "-o", str(out), "--device", "cpu"])
    assert (done.exit_code, done.stdout) == (0, f"1 of 1 written to {out} on cpu\n")
    assert done.stderr == (
        "note: 1 file left out: .npy (1); arrays are read as images alone, with unet-train --channels N\n"
    )
