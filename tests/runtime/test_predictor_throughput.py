"""Predictor for many images at once: batches, streams, futures, threads."""

import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from asked import IMAGES, probabilities, random_image, same
from PIL import Image, ImageSequence

from runtime.errors import ConfigError, DeviceError, ImageError, ModelError
from runtime.image_files.limits import Limits
from runtime.inference.batcher import Batching
from runtime.inference.pipeline import check_sides, infer
from runtime.inference.predict_options import resolve_options
from runtime.predictor import Predictor, predict
from runtime.result import Segmentation


@pytest.fixture
def model(models):
    with Predictor(models["conv"], "cpu") as predictor:
        yield predictor


@pytest.fixture
def serial(model):
    return probabilities(model)


@pytest.mark.parametrize("batch_size", [None, 1, 5, 100])
def test_batches_and_streams_answer_as_single_images_in_order(model, serial, batch_size):
    assert same(model.predict_batch(IMAGES, batch_size=batch_size), serial)
    assert same(model.stream(iter(IMAGES), batch_size=batch_size, workers=3), serial)
    assert same(model.predict(IMAGES), serial)


def test_images_of_one_size_run_together(model, monkeypatch):
    sizes = []
    real = model._model.session.run
    monkeypatch.setattr(model._model.session, "run", lambda batch: sizes.append(len(batch)) or real(batch))
    model.predict_batch([IMAGES[0]] * 7, batch_size=4)
    assert max(sizes) > 1 and sum(sizes) == 7
    sizes.clear()
    model.predict_batch([IMAGES[0]] * 7)
    assert sizes == [1] * 7  # on a CPU larger batches gain nothing


def test_options_reach_every_way_of_asking(model):
    image = random_image(40, 50)
    asking = {"tile": (16, 16), "overlap": 0.5, "tta": "flip"}
    expected = [model.predict(image, **asking).probability]
    assert not np.array_equal(expected[0], model.predict(image).probability)
    assert same(model.predict_batch([image], **asking), expected)
    assert same(model.stream([image], **asking), expected)
    assert same([model.submit(image, **asking).result()], expected)
    assert same([asyncio.run(model.predict_async(image, **asking))], expected)
    assert same([predict(image, model.path, "cpu", **asking)], expected)
    expected = "sise: is no option of predict, expected size, tile, overlap, tta, threshold, channels"
    with pytest.raises(ConfigError, match=expected):
        model.predict(image, sise=(8, 8))


def test_another_threshold_in_every_way_of_asking(model, models):
    image = random_image(40, 50)
    usual = model.predict(image)
    expected = [usual.threshold(0.3).mask]
    assert not np.array_equal(expected[0], usual.mask)
    answers = [
        model.predict(image, threshold=0.3),
        *model.predict([image], threshold=0.3),
        *model.predict_batch([image], threshold=0.3),
        *model.stream([image], threshold=np.float32(0.3)),
        model.submit(image, threshold=0.3).result(),
        asyncio.run(model.predict_async(image, threshold=0.3)),
        predict(image, model.path, "cpu", threshold=0.3),
    ]
    for answer in answers:
        assert np.array_equal(answer.mask, expected[0]) and answer.output.threshold == pytest.approx(0.3)
    assert [model.predict(image, threshold=0.3).output, model.card.output.threshold] == [
        usual.threshold(0.3).output,
        0.5,
    ]
    with pytest.raises(
        ConfigError, match=r"^threshold: is for one class, this model has 3 and takes the most probable; "
    ):
        Predictor(models["softmax"], "cpu").predict(image, threshold=0.3)


def test_images_of_one_batch_have_a_threshold_each(models):
    image = random_image(8, 12)
    with Predictor(models["brightness"], "cpu", batching=Batching(max_batch=2, max_delay_ms=5000)) as model:
        both = [model.submit(image, threshold=threshold) for threshold in (0.2, 0.8)]
        assert [one.result().output.threshold for one in both] == [0.2, 0.8]
    assert resolve_options(model.card, threshold=0.2) == resolve_options(model.card, threshold=0.8)


@pytest.mark.parametrize("alpha", [False, True])
def test_arrays_of_opencv_are_named_in_every_way_of_asking(model, alpha):
    image = random_image(12, 15)
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    if alpha:
        bgr = np.dstack([bgr, random_image(12, 15, seed=1)[:, :, 0]])
    expected = [model.predict(image).probability]
    assert not same([model.predict(bgr)], expected)
    found = [
        model.predict(bgr, channels="BGR"),
        *model.predict([bgr], channels="BGR"),
        *model.predict_batch([bgr], channels="BGR"),
        *model.stream([bgr], channels="BGR"),
        model.submit(bgr, channels="BGR").result(),
        asyncio.run(model.predict_async(bgr, channels="BGR")),
        predict(bgr, model.path, "cpu", channels="BGR"),
    ]
    assert same(found, expected * 7)
    assert all(np.array_equal(one.image, image) for one in found)


def test_order_of_channels_is_for_arrays_of_three(model):
    grey = random_image(12, 15)[:, :, 0]
    assert same([model.predict(grey, channels="BGR")], [model.predict(grey).probability])
    with pytest.raises(ImageError) as caught:
        model.predict(Image.fromarray(grey), channels="BGR")
    assert str(caught.value) == (
        'image: is no array, and channels="BGR" is for arrays; leave it out, the image says itself which channel is '
        "which"
    )
    with pytest.raises(ConfigError, match=r"^channels: found 'GBR', expected 'RGB', or 'BGR' for arrays as OpenCV"):
        model.predict(grey, channels="GBR")


def test_a_bad_image_has_its_own_error(model, tmp_path):
    sources = [IMAGES[0], tmp_path / "gone.png", IMAGES[1]]
    found = list(model.stream(sources, errors="yield"))
    assert [type(one) for one in found] == [Segmentation, ImageError, Segmentation]
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        model.predict_batch(sources)
    futures = [model.submit(source) for source in sources]
    assert [type(future.exception()) for future in futures] == [type(None), ImageError, type(None)]


def test_frames_of_one_picture_are_answered_each_though_it_goes_on_meanwhile(models):
    frames = [Image.fromarray(np.full((8, 9), 20 * level, np.uint8)) for level in range(12)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    picture = Image.open(file)
    with Predictor(models["brightness"], "cpu") as predictor:
        found = predictor.stream(ImageSequence.Iterator(picture), workers=3, then=lambda _, result: result.image[0, 0])
        assert [int(values[0]) for values in found] == [20 * level for level in range(12)]


@pytest.mark.parametrize(
    "one", ["car.png", b"bytes", bytearray(b"bytes"), IMAGES[0], Image.new("L", (2, 2)), io.BytesIO(b"bytes")]
)
def test_one_image_is_no_stream(model, one):
    with pytest.raises(ConfigError, match=r"images: found one \w+, expected several; put it into a list"):
        model.stream(one)


def test_what_many_threads_submit_is_answered_as_serial(models, serial):
    with Predictor(models["conv"], "cpu", batching=Batching(max_batch=4, max_delay_ms=5)) as model:
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(lambda image: model.submit(image).result(), IMAGES))
        assert same(results, serial)


def test_limits_are_those_that_were_given(models, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    model = Predictor(models["conv"], "cpu", limits=Limits(pixels=1000))
    with pytest.raises(ImageError, match="expected at most 1000 in all"):
        model.predict(tmp_path / "a.png")


def test_every_call_may_have_limits_of_its_own(model, models, tmp_path):
    path, enough = tmp_path / "a.png", Limits.for_pixels(1_200)
    Image.new("RGB", (40, 30)).save(path)
    calls = (
        lambda limits: predict(path, models["conv"], "cpu", limits=limits),
        lambda limits: model.predict(path, limits=limits),
        lambda limits: model.predict([path], limits=limits)[0],
        lambda limits: model.predict_batch([path], limits=limits)[0],
        lambda limits: next(model.stream([path], limits=limits)),
        lambda limits: model.submit(path, limits=limits).result(),
        lambda limits: asyncio.run(model.predict_async(path, limits=limits)),
    )
    for call in calls:
        with pytest.raises(ImageError) as caught:
            call(Limits(pixels=1_199))
        assert str(caught.value) == (
            f"{path}: has 40 x 30 pixels, expected at most 1199 in all; "
            "make it smaller, or allow more with limits=runtime.Limits.for_pixels(1200)"
        )
        assert call(enough).mask.shape == (30, 40)


def test_models_stay_open_for_calls_with_other_limits(models, tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    predict(tmp_path / "a.png", models["conv"], "cpu")
    monkeypatch.setattr(Predictor, "__init__", lambda *_, **__: pytest.fail("opened again"))
    assert predict(tmp_path / "a.png", models["conv"], "cpu", limits=Limits(pixels=1_200)).mask.shape == (30, 40)


def test_network_is_not_shown_more_pixels_than_memory_holds(model):
    """An array has no limit, and a view of one pixel takes no memory; in tiles it would run."""
    huge = np.broadcast_to(np.uint8(9), (20_000, 10_001, 3))
    options = resolve_options(model.card, size="native")
    with pytest.raises(ImageError) as caught:
        check_sides(huge, options)
    assert str(caught.value) == (
        "image: is 10001x20000 pixels for the network, expected at most 200000000, which take some 90 GB; "
        "give a tile, or a size"
    )
    check_sides(huge[:, :10_000], options)
    check_sides(huge, resolve_options(model.card, tile=(64, 64)))


def test_times_are_those_of_the_stages(model, models):
    times = model.predict(IMAGES[0]).times
    assert times.transfer == 0
    assert all(value > 0 for value in (times.decode, times.infer, times.restore))
    assert times.total < 10_000


def test_a_batch_shares_its_time(model, monkeypatch):
    prepared = [model._preprocess(IMAGES[0], resolve_options(model.card))] * 4
    clock = iter([10.0, 10.008])
    monkeypatch.setattr("runtime.inference.pipeline.time.perf_counter", lambda: next(clock))
    answers = infer(model._model, prepared)
    assert [answer.infer for answer in answers] == pytest.approx([2.0] * 4)


def test_threads_that_ask_for_one_file_at_once_open_it_once(write_model, monkeypatch):
    path, opened = write_model(), []
    real = Predictor.__init__

    def count(self, *arguments, **named):
        opened.append(self)
        real(self, *arguments, **named)

    monkeypatch.setattr(Predictor, "__init__", count)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: predict(IMAGES[0], path, "cpu"), range(16)))
    assert len(opened) == 1


def test_thirty_two_threads_equal_serial(model, serial):
    with ThreadPoolExecutor(32) as pool:
        assert same(pool.map(model.predict, IMAGES * 4), serial * 4)


def test_tensors_come_and_go_without_a_copy(model):
    batch = np.stack([IMAGES[0]] * 2)
    answer = np.from_dlpack(model.run_dlpack(batch))
    assert np.array_equal(answer, model.run(batch))


def test_then_is_called_in_threads_with_image_and_result(model, serial):
    threads = set()

    def then(image, result):
        threads.add(threading.current_thread())
        return image.shape[:2] == result.size and result.probability

    found = list(model.stream(IMAGES, then=then, workers=2))
    assert all(np.array_equal(one, other) for one, other in zip(found, serial, strict=True))
    assert threading.current_thread() not in threads


def test_what_then_raises_is_that_image_s_error(model):
    def then(image, result):
        raise OSError("full")

    (error,) = model.stream(IMAGES[:1], then=then, errors="yield")
    assert str(error) == "full"


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("batch_size", -1), ("workers", 0)])
def test_numbers_below_one_are_refused(model, name, value):
    with pytest.raises(ConfigError, match=rf"{name}: found {value}, expected an integer from 1"):
        model.stream(IMAGES, **{name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batching": 3}, "batching: found 3, expected runtime.Batching, or None"),
        ({"limits": 5}, "limits: found 5, expected runtime.Limits, or None"),
    ],
)
def test_options_of_the_wrong_type(models, given, message):
    with pytest.raises(ConfigError) as caught:
        Predictor(models["conv"], "cpu", **given)
    assert str(caught.value) == message


def test_a_model_that_is_no_path(models):
    with pytest.raises(ModelError, match=r"model: found NoneType, expected the path of an \.onnx file"):
        Predictor(None)
    with pytest.raises(DeviceError, match="expected auto, gpu, gpu:N, cpu, openvino, cuda"):
        predict(IMAGES[0], models["conv"], ["cpu"])


@pytest.mark.parametrize("given", [{"max_batch": 0}, {"max_waiting": -1}, {"max_delay_ms": -1}, {"max_delay_ms": True}])
def test_batching_out_of_bounds(given):
    (name,) = given
    with pytest.raises(ConfigError, match=rf"^Batching\.{name}: found "):
        Batching(**given)


def test_one_result_does_not_hold_its_batch(model):
    results = model.predict_batch([IMAGES[0]] * 4, batch_size=4)
    assert all(result.probability.base is None for result in results)
