"""Files that take one batch of one size only: any number of images in, other sizes refused by name."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from devices import images, on_cpu_memory

from runtime.commands.diagnostics import Findings, model
from runtime.devices import cuda as cuda_module
from runtime.devices.profiles import full_batches, profile_of
from runtime.devices.tensorrt import tensorrt_options
from runtime.errors import ConfigError, DeviceError, ImageError, ModelError
from runtime.image import fit, load_image, restore
from runtime.inference.batcher import Batching
from runtime.model_file.golden import GOLDEN_KEY
from runtime.options import ProviderOptions
from runtime.predictor import Predictor

SIZE = (8, 12)


@pytest.fixture
def fixed(write_model):
    """A file of batches of two, whose golden sample is smaller than its pictures."""
    return write_model("softmax", fit="stretch", size=(64, 96), fixed_batch=2)


@pytest.fixture
def small(write_model):
    """A file of batches of three whose pictures are smaller than the golden sample's."""
    return write_model("conv", "small.onnx", fit="letterbox", size=SIZE, fixed_batch=3)


def test_any_number_of_images_is_answered(small, answers):
    predictor = Predictor(small, "cpu")
    assert predictor.report.golden_error < 1e-5
    for count in range(1, 8):
        batch = images(count, *SIZE, seed=count)
        found = predictor.run(batch)
        assert found.shape == (count, 1, *SIZE) and np.abs(found - answers["conv"](batch)).max() < 1e-5


def test_images_of_any_size_are_fitted(fixed, small, answers):
    for path, kind in ((fixed, "softmax"), (small, "conv")):
        with Predictor(path, "cpu") as predictor:
            pictures = [images(*size, seed=size[0]) for size in [(1, 1), (50, 30), (64, 96), (200, 300), (33, 47)]]
            expected = []
            for picture in pictures:
                fitted = fit(load_image(picture), predictor.card.input)
                expected.append(restore(answers[kind](fitted.image[None])[0], fitted))
            found = {
                "predict": [predictor.predict(picture) for picture in pictures],
                "batch": predictor.predict_batch(pictures, batch_size=5),
                "stream": list(predictor.stream(pictures)),
                "submit": [future.result() for future in [predictor.submit(picture) for picture in pictures]],
            }
            for results in found.values():
                for result, probability in zip(results, expected, strict=True):
                    assert result.probability.shape == probability.shape
                    assert np.abs(result.probability - probability).max() < 1e-5


def test_images_that_wait_fill_a_batch(fixed, monkeypatch):
    sizes = []
    predictor = Predictor(fixed, "cpu", batching=Batching(max_batch=4, max_delay_ms=200))
    session = predictor._model.session
    real = session._run
    monkeypatch.setattr(session, "_run", lambda batch: sizes.append(batch.shape) or real(batch))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: predictor.submit(images(20, 30, seed=seed)).result(), range(4)))
    assert sizes == [(2, 64, 96, 3)] * 2


def test_tiles_have_the_files_size(fixed, answers):
    picture = images(100, 150)
    found = Predictor(fixed, "cpu").predict(picture, tile=(64, 96), tta="flip").probability
    assert np.abs(found - answers["softmax"](picture[None])[0]).max() < 1e-5
    with pytest.raises(ImageError) as caught:
        Predictor(fixed, "cpu").predict(images(63, 150), tile=(64, 96))
    assert str(caught.value) == (
        "image: is 150x63 pixels, smaller than the tiles of 96x64 that the file takes; leave tile out"
    )


TAKES = "the file takes pictures of 96x64 (width x height) only"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": (32, 48)}, f"size: found 48x32, {TAKES}; leave size out"),
        ({"size": "native"}, f"size: found 'native', {TAKES}; leave size out"),
        ({"tile": (32, 48)}, f"tile: found 48x32, {TAKES}; give that, or leave tile out"),
        ({"tta": "d4"}, f"tta: found 'd4', which turns pictures, and {TAKES}; give 'flip', or leave tta out"),
        ({"size": 64}, "size: found 64, expected (height, width) or 'WxH', each 1 to 32768, or 'native'"),
    ],
    ids=str,
)
def test_other_sizes_are_refused(fixed, asked, message):
    with pytest.raises(ConfigError) as caught:
        Predictor(fixed, "cpu").predict(images(64, 96), **asked)
    assert str(caught.value) == message


def test_its_own_size_may_be_asked_for(fixed):
    predictor, picture = Predictor(fixed, "cpu"), images(20, 30)
    for asked in ({"size": (64, 96)}, {"size": (128, 96), "tile": (64, 96)}):
        assert predictor.predict(picture, **asked).size == (20, 30)


def test_turns_of_squares_have_the_files_size(write_model):
    path = write_model("softmax", fit="stretch", size=(12, 12), fixed_batch=1)
    assert Predictor(path, "cpu").predict(images(20, 30), tta="d4").size == (20, 30)


def test_batches_of_other_sizes_are_refused(fixed):
    predictor = Predictor(fixed, "cpu")
    with pytest.raises(ImageError) as caught:
        predictor.run(images(2, 64, 95))
    assert str(caught.value) == "batch: is 95x64 pixels, the file takes 96x64 only; resize the images"
    assert predictor.run_dlpack(images(2, 64, 96)).shape() == [2, 3, 64, 96]
    with pytest.raises(ImageError) as caught:
        predictor.run_dlpack(images(1, 64, 96))
    assert str(caught.value) == (
        "tensor: found tensor(uint8) [1, 64, 96, 3] on cpu, expected uint8 [2, 64, 96, 3] on cpu"
    )


@pytest.mark.parametrize("options", [{"bucket": 8}, {"min_size": (1, 1)}, {"max_size": (99, 99)}], ids=str)
def test_options_for_other_sizes_are_refused(fixed, options):
    with pytest.raises(ConfigError) as caught:
        Predictor(fixed, "cpu", options=ProviderOptions(**options))
    ((name, value),) = options.items()
    assert str(caught.value) == (
        f"{name}: found {value}, the file takes batches of 2 of 96x64 (width x height) only; leave it out"
    )


def test_a_card_of_another_shape_than_the_graphs_is_refused(write_model, make_graph):
    path = write_model("softmax", fit="stretch", size=(64, 96), fixed_batch=2, graph=make_graph("softmax"))
    with pytest.raises(ModelError) as caught:
        Predictor(path, "cpu")
    assert str(caught.value) == (
        f"{path}: its graph takes batches of ('batch', 'h', 'w') (batch, height, width), its card says (2, 64, 96); "
        "export it again"
    )


def test_a_golden_sample_that_is_larger_than_the_pictures_is_refused(write_model, make_golden):
    large = {GOLDEN_KEY: make_golden("softmax").to_json()}
    path = write_model("softmax", fit="stretch", size=SIZE, fixed_batch=2, metadata=large)
    with pytest.raises(
        ModelError, match=r"golden sample: is larger than the 12x8 pixels of its card; export the model"
    ):
        Predictor(path, "cpu")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_last_part_of_a_batch_is_filled_up(count):
    batch = np.arange(count)[:, None]
    found = list(full_batches(batch, 2))
    assert {len(part) for part in found} == {2}
    assert np.concatenate(found)[:, 0].tolist() == [*range(count), *([count - 1] * (count % 2))]


# On a GPU


@pytest.fixture
def on_gpu(fixed):
    """The file's card, and a session of a GPU on the memory of the CPU."""
    predictor = Predictor(fixed, "cpu")
    return predictor.card, on_cpu_memory(predictor._model.session._inference, predictor.card, max_batch=1)


def test_a_gpu_is_given_whole_batches_without_padding(on_gpu, answers, monkeypatch):
    ran, real = [], cuda_module.run_copied
    monkeypatch.setattr(cuda_module, "run_copied", lambda *told: ran.append(told[2].shape) or real(*told))
    _, session = on_gpu
    batch = images(5, 64, 96)
    assert np.abs(session.run(batch).probability - answers["softmax"](batch)).max() < 1e-6
    assert ran == [(2, 64, 96, 3)] * 3


def test_a_full_gpu_does_not_halve_them(on_gpu, monkeypatch):
    def full(self, batch):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(cuda_module.CudaRunner, "run", full)
    with pytest.raises(DeviceError, match="too little memory for the 2 images that the file takes at once of 96x64"):
        on_gpu[1].run(images(1, 64, 96))


def test_tensorrt_needs_no_profile(on_gpu):
    card, session = on_gpu
    profile = profile_of(card, ProviderOptions())
    assert (profile.low, profile.best, profile.high) == ((1, 64, 96), (2, 64, 96), (2, 64, 96))
    assert not [
        name for name in tensorrt_options(session.device, card, ProviderOptions(), profile) if "profile" in name
    ]


def test_doctor_measures_whole_batches(fixed, monkeypatch):
    monkeypatch.setattr("runtime.commands.diagnostics.SECONDS", 0.0)
    findings = Findings(parts={"devices": {"cpu": None}})
    found = model(findings, fixed)
    assert found["card"]["fixed_shape"] == [2, 64, 96] and found["devices"]["cpu"]["latency"]["runs"] == 1
    assert not findings.problems
