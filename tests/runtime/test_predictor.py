"""Predictor: exact answers for models that pencil and numpy can follow, and an exact error for every bad file."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import predictor
from runtime.devices import availability, nvidia
from runtime.devices.device import CPU_DEVICE
from runtime.errors import ConfigError, DeviceError, DeviceWarning, ImageError, ModelError
from runtime.image_files.limits import Limits
from runtime.inference import loaded_model, predictor_cache
from runtime.inference.batcher import Batching
from runtime.model_file.golden import GOLDEN_KEY, Golden
from runtime.options import ProviderOptions
from runtime.predictor import Predictor, predict


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def grey_image(height, width, seed=0):
    return np.repeat(random_image(height, width, seed)[:, :, :1], 3, axis=2)


# Answers


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (8, 12), (33, 47)])
def test_brightness_is_exact_at_any_size(models, size):
    image = grey_image(*size)
    result = Predictor(models["brightness"], "cpu").predict(image)
    assert result.probability.dtype == np.float32
    assert np.array_equal(result.probability, (image[:, :, 0].astype(np.float32) / np.float32(255))[None])
    assert np.array_equal(result.mask, (image[:, :, 0] > 127).astype(np.uint8))
    assert np.array_equal(result.image, image)


@pytest.mark.parametrize("kind", ["brightness", "softmax", "conv"])
def test_answer_equals_numpy(models, answers, kind):
    image = random_image(11, 17)
    result = Predictor(models[kind], "cpu").predict(image)
    assert np.abs(result.probability - answers[kind](image[None])[0]).max() < 1e-6


def test_softmax_gives_the_strongest_channel(models):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 10, 8]]], np.uint8)
    result = Predictor(models["softmax"], "cpu").predict(colours)
    assert result.mask.tolist() == [[0, 1, 2, 1]]
    assert np.abs(result.probability.sum(axis=0) - 1).max() < 1e-6
    assert result.output.classes == ("red", "green", "blue")


def test_grey_model_takes_colour_images_as_luma(write_model):
    model = Predictor(write_model(channels=1), "cpu")
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    expected = np.array([76, 150, 29], np.float32) / np.float32(255)
    assert np.array_equal(model.predict(primaries).probability[0, 0], expected)


@pytest.mark.parametrize(("threshold", "mask"), [(0.2, [0, 1, 1, 1]), (0.5, [0, 0, 1, 1]), (0.95, [0, 0, 0, 0])])
def test_probabilities_are_resized_then_thresholded(write_model, threshold, mask):
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, 2:] = 230
    result = Predictor(write_model(size=(2, 2), fit="stretch", threshold=threshold), "cpu").predict(image)
    assert np.abs(result.probability[0] - np.array([0, 0.25, 0.75, 1]) * 230 / 255).max() < 1e-6
    assert result.mask.tolist() == [mask, mask]


def test_letterbox_model_answers_at_the_image_s_own_size(write_model):
    image = np.full((5, 40, 3), 255, np.uint8)
    result = Predictor(write_model(size=(8, 12), fit="letterbox", mean=(0.1,) * 3), "cpu").predict(image)
    assert result.probability.shape == (1, 5, 40)
    assert (result.probability == 1).all()  # the bars around it are dark


def test_every_kind_of_source_gives_the_same_answer(models, tmp_path):
    image = random_image(6, 5)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    model = Predictor(models["conv"], "cpu")
    sources = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), Image.fromarray(image), image]
    expected = model.predict(image).probability
    assert all(np.array_equal(result.probability, expected) for result in model.predict(sources))


def test_list_in_gives_list_out(models):
    model = Predictor(models["brightness"], "cpu")
    images = [grey_image(2, 3), grey_image(4, 1)]
    results = model.predict(images)
    assert [result.size for result in results] == [(2, 3), (4, 1)]
    assert model.predict([]) == []
    assert len(model([images[0]])) == 1


def test_bad_image_is_named(models, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        Predictor(models["brightness"], "cpu").predict([random_image(2, 2), tmp_path / "gone.png"])


def test_batch_equals_single_images_bit_for_bit(models):
    model = Predictor(models["conv"], "cpu")
    batch = np.stack([random_image(24, 36, seed) for seed in range(3)])
    together = model.run(batch)
    assert together.shape == (3, 1, 24, 36)
    for index in range(3):
        assert np.array_equal(together[index : index + 1], model.run(batch[index : index + 1]))


def test_threads_at_once_equal_one_after_the_other_bit_for_bit(models):
    model = Predictor(models["conv"], "cpu")
    images = [random_image(20 + seed % 5, 30 + seed % 7, seed) for seed in range(48)]
    serial = [model.predict(image).probability for image in images]
    with ThreadPoolExecutor(16) as pool:
        parallel = [result.probability for result in pool.map(model.predict, images)]
    assert all(np.array_equal(one, other) for one, other in zip(serial, parallel, strict=True))


# Devices and the report


def test_explicit_cpu_warns_of_nothing_and_reports_itself(models):
    model = Predictor(models["conv"], "cpu", threads=1)
    report = model.report
    assert (report.requested, report.device, report.provider) == ("cpu", "cpu", "CPUExecutionProvider")
    assert report.skipped == ()
    assert list(report.nodes) == ["CPUExecutionProvider"]
    assert report.nodes["CPUExecutionProvider"] >= 4
    assert report.golden_error < 1e-6
    assert report.threads == 1
    assert repr(model) == f"Predictor({str(models['conv'])!r}, device='cpu')"


def test_auto_warns_once_and_reports_what_it_skipped(cpu_build, models):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = Predictor(models["conv"])
        second = Predictor(models["brightness"], "auto")
    assert [warning.category for warning in caught] == [DeviceWarning]
    text = str(caught[0].message)
    assert text.startswith("running on cpu; tensorrt skipped: the installed ONNX Runtime")
    assert "; cuda skipped: the installed ONNX Runtime" in text
    assert first.report.device == "cpu"
    assert [name for name, _ in first.report.skipped] == ["tensorrt", "cuda"]
    assert "is built without CUDAExecutionProvider" in first.report.skipped[1][1]
    assert second.report.skipped == first.report.skipped


def test_auto_warns_again_in_another_situation(cpu_build, models, monkeypatch):
    with pytest.warns(DeviceWarning, match="is built without"):
        Predictor(models["brightness"])
    monkeypatch.setattr(
        availability, "unavailable_reason", lambda device: None if device.kind == "cpu" else "it is raining"
    )
    with pytest.warns(DeviceWarning) as caught:
        Predictor(models["brightness"])
    assert str(caught[0].message) == "running on cpu; tensorrt and cuda skipped: it is raining"


@pytest.mark.parametrize(
    "load", [Predictor, lambda model: predict(random_image(2, 2), model)], ids=["class", "function"]
)
def test_warning_points_at_the_user_s_line(cpu_build, write_model, load):
    with pytest.warns(DeviceWarning) as caught:
        load(write_model())
    assert caught[0].filename == __file__


def test_auto_tells_of_no_driver_where_a_gpu_is_there_and_not_used(no_gpu, models, monkeypatch):
    availability.warn_once.cache_clear()
    monkeypatch.setattr(nvidia, "is_present", lambda: True)
    with pytest.warns(DeviceWarning, match="tensorrt and cuda skipped|is built without"):
        Predictor(models["brightness"])


def test_auto_says_nothing_on_a_machine_without_a_gpu(no_gpu, models, monkeypatch):
    availability.warn_once.cache_clear()
    monkeypatch.setattr(nvidia, "is_present", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = Predictor(models["brightness"]).report
    assert (report.device, [name for name, _ in report.skipped]) == ("cpu", ["tensorrt", "cuda"])


@pytest.mark.parametrize("device", ["CPU", "Cpu"])
def test_device_may_be_written_in_capitals(models, device):
    assert Predictor(models["brightness"], device).report.requested == "cpu"


@pytest.mark.parametrize("device", [0, np.int64(0), "gpu", "GPU:0"])
def test_gpu_is_the_better_one_of_tensorrt_and_cuda_and_never_the_cpu(models, device, monkeypatch):
    monkeypatch.setattr(availability, "unavailable_reason", lambda device: f"no {device}")
    with pytest.raises(DeviceError, match=r"^device cuda:0: no cuda:0$"):
        Predictor(models["brightness"], device)
    with pytest.raises(DeviceError, match=r"^device cuda:0: no cuda:0$"):
        predict(random_image(2, 2), models["brightness"], device)


def test_integers_of_numpy_are_integers(models):
    two = np.int64(2)
    options = ProviderOptions(max_batch=two, max_size=(two, np.uint8(4)))
    predictor = Predictor(models["brightness"], "cpu", two, options, Limits(pixels=two), Batching(max_batch=two))
    assert predictor.report.threads == 2 and type(predictor.report.threads) is int
    assert (type(options.max_batch), type(options.max_size[1])) == (int, int)
    assert [one.size for one in predictor.stream([random_image(1, 2)], batch_size=two, workers=two)] == [(1, 2)]
    for wrong in (np.bool_(True), np.float32(2), np.array([2])):
        with pytest.raises(ConfigError, match=r"^threads: found "):
            Predictor(models["brightness"], "cpu", threads=wrong)


class Shifted:
    """A session whose probabilities are off by 0.03."""

    bf16 = False

    def __init__(self, session):
        self.session = session

    def run(self, batch):
        output = self.session.run(batch)
        return output._replace(probability=output.probability + np.float32(0.03))


def test_device_that_answers_wrongly_is_skipped_by_auto_and_refused_by_name(models, monkeypatch):
    """A GPU that opens the model but is off by more than its tolerance is found by the golden sample."""

    cpu = CPU_DEVICE
    real = loaded_model.open_session

    def fake(path, device, card, options, *, check, **named):
        return real(
            path,
            cpu,
            card,
            options,
            check=lambda session: check(session if device == cpu else Shifted(session)),
            **named,
        )

    monkeypatch.setattr(availability, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(loaded_model, "open_session", fake)
    availability.warn_once.cache_clear()
    with pytest.raises(DeviceError) as caught:
        Predictor(models["conv"], "cuda:1")
    assert str(caught.value).startswith(
        "device cuda:1: answers the golden sample wrongly (off by 0.03, expected at most"
    )
    with pytest.warns(DeviceWarning, match="tensorrt and cuda skipped: answers the golden sample wrongly"):
        assert Predictor(models["conv"]).report.device == "cpu"


def test_a_gpu_is_shown_all_images_of_the_sample_and_a_cpu_the_first(write_model, make_golden, monkeypatch):
    real, cpu, first = loaded_model.open_session, CPU_DEVICE, make_golden()
    wrong = Golden(image=first.image, probability=first.probability + np.float32(0.0078125))
    monkeypatch.setattr(availability, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(
        loaded_model, "open_session", lambda path, device, *rest, **named: real(path, cpu, *rest, **named)
    )
    for tf32_error, limit in [(None, None), (0.0, 0.005)]:
        golden = replace(first, others=(first, wrong), tf32_error=tf32_error)
        path = write_model(metadata={GOLDEN_KEY: golden.to_json()})
        report = Predictor(path, "cpu").report
        assert report.golden_error < 1e-6 and report.golden_limit == 1e-4
        if limit is None:
            assert Predictor(path, "cuda").report.golden_error == pytest.approx(0.0078125, abs=1e-6)
            continue
        with pytest.raises(DeviceError) as caught:
            Predictor(path, "cuda")
        assert str(caught.value).startswith(
            f"device cuda:0: answers the golden sample wrongly (off by 0.0078, expected at most {limit})"
        )


def test_threads_are_those_that_this_process_may_use_by_default(models, monkeypatch):
    monkeypatch.setattr(predictor, "available_threads", lambda: 5)
    assert Predictor(models["brightness"], "cpu").report.threads == 5


@pytest.mark.parametrize("threads", [0, -1, 1025, 1.5, True, "2"])
def test_threads_out_of_bounds_are_refused(models, threads):
    with pytest.raises(ConfigError) as caught:
        Predictor(models["brightness"], "cpu", threads=threads)
    assert str(caught.value) == f"threads: found {threads!r}, expected an integer from 1 to 1024, or None"


def test_nonsense_device_is_refused(models):
    with pytest.raises(DeviceError, match=r"^device 'tpu': expected auto, gpu, gpu:N, cpu, openvino, cuda"):
        Predictor(models["brightness"], "tpu")


# The function


@pytest.fixture
def loads(monkeypatch):
    """The predictors that `predict` opened, starting with an empty cache."""
    predictor.PREDICTORS.clear()
    opened = []
    real = Predictor.__init__

    def count(self, *arguments, **named):
        opened.append(self)
        real(self, *arguments, **named)

    monkeypatch.setattr(Predictor, "__init__", count)
    yield opened
    predictor.PREDICTORS.clear()


def test_function_keeps_the_model_open(write_model, loads, monkeypatch):
    path = write_model()
    image = grey_image(3, 4)
    first = predict(image, path, device="cpu")
    assert np.array_equal(first.mask, (image[:, :, 0] > 127).astype(np.uint8))
    predict(image, str(path), device="cpu")
    monkeypatch.chdir(path.parent)
    predict(image, Path(path.name), device="cpu")
    assert len(loads) == 1


def test_function_notices_a_replaced_file(write_model, loads):
    image = np.full((2, 2, 3), 100, np.uint8)
    path = write_model(threshold=0.5)
    assert predict(image, path, device="cpu").mask.tolist() == [[0, 0], [0, 0]]
    replacement = write_model(name="new.onnx", threshold=0.3)
    replacement.replace(path)
    assert predict(image, path, device="cpu").mask.tolist() == [[1, 1], [1, 1]]
    assert len(loads) == 2


def test_function_does_not_remember_a_failure(write_model, tmp_path, loads):
    with pytest.raises(ModelError, match="no such file"):
        predict(random_image(2, 2), tmp_path / "model.onnx", device="cpu")
    assert predict(random_image(2, 2), write_model(), device="cpu").size == (2, 2)


def test_function_keeps_only_the_last_few_models(write_model, loads):
    paths = [write_model(name=f"{index}.onnx") for index in range(predictor_cache.CACHED_PREDICTORS + 1)]
    for path in [*paths, paths[-1], paths[0]]:
        predict(random_image(1, 1), path, device="cpu")
    assert len(loads) == predictor_cache.CACHED_PREDICTORS + 2
