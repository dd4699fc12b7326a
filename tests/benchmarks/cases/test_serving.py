"""A service under load: what is measured, and what spoils a measurement."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.cases.serving import BARE, SERVED, check_answers, measure, megabytes_of, serving, tasks
from runtime.errors import ConfigError, DeviceError
from runtime.output_formats import format_named
from runtime.predictor import Predictor


def png_of(value, changed=0, size=(100, 80)):
    """A mask of one value, with so many pixels of another one; as base64, in which clients report it."""
    pixels = np.full(size[::-1], value, np.uint8)
    pixels[0, :changed] = 9
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        Image.fromarray(np.full((8, 12, 3), 80 * index, np.uint8)).save(path)
    return paths


@pytest.mark.slow
def test_server_and_tasks_take_turns(thin, images):
    """Slow, since the server imports its libraries."""
    found = measure(thin / "model.onnx", images, clients=4, seconds=1, workers=1, threads=1, device="cpu", rounds=2)
    kinds = [(one.contestant, one.unit, one.settings.get("percentile")) for one in found]
    assert kinds == [
        (SERVED, "images/s", None),
        (BARE, "images/s", None),
        *((name, "ms", percentile) for percentile in (50, 90, 99) for name in (SERVED, BARE)),
        (SERVED, "MB", None),
    ]
    for one in found:
        assert (one.part, len(one.values), min(one.values) > 0) == ("serving", 2, True)
        assert (one.settings["clients"], one.settings["workers"], one.settings["threads"]) == (4, 1, 1)
    assert 0 <= found[0].facts["answers"] - sum(found[0].values) <= 8  # turns of a second, and 4 clients at their ends
    assert found[0].facts["refused"] == 0
    assert len({one.group for one in found}) == 5


def test_tasks_answer_one_image_after_the_other(thin, images):
    contents = [path.read_bytes() for path in images]
    with Predictor(thin / "model.onnx", "cpu", 1) as predictor:
        times, in_time = asyncio.run(tasks(predictor, format_named("mask"), contents, 3, 0.2))
    assert 0 <= len(times) - in_time <= 3 <= len(times) and min(times) > 0


def test_an_answer_after_the_end_is_not_counted(thin, images):
    with Predictor(thin / "model.onnx", "cpu", 1) as predictor:
        times, in_time = asyncio.run(tasks(predictor, format_named("mask"), [images[0].read_bytes()], 2, 1e-9))
    assert in_time == 0 and len(times) in (0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lost": 2}, "3 requests answered with a mask, 2 lost; give fewer"),
        ({"statuses": {"200": 3, "500": 1}}, "3 requests answered with a mask, 0 lost, 1 answered 500; give fewer"),
        ({"times": []}, "0 requests answered with a mask, 0 lost; give fewer"),
        ({"masks": [[png_of(0), png_of(0, 9)], []]}, "answers for 1 of 2 images differ from predict's"),
        ({"masks": [[png_of(1)], [png_of(0)]]}, "answers for 2 of 2 images differ from predict's"),
        ({"masks": [[png_of(0, size=(3, 3))], []]}, "answers for 1 of 2 images differ from predict's"),
    ],
)
def test_a_lost_or_wrong_answer_ends_it(changes, message):
    found = {
        "times": [1.0, 2.0, 3.0],
        "statuses": {"200": 3, "429": 9},
        "lost": 0,
        "masks": [[png_of(0), png_of(0, 8)], []],  # up to a thousandth of the pixels may differ
    }
    masks = [np.full((1, 80, 100), value, np.uint8) for value in (0, 1)]
    check_answers(found, masks)
    with pytest.raises(DeviceError, match=message):
        check_answers(found | changes, masks)


@pytest.mark.slow
def test_a_server_that_does_not_start_is_told_with_its_reason(tmp_path):
    expected = pytest.raises(DeviceError, match=r"unet-serve: ended with status 2 \(error: .*absent.onnx: no such file")
    with expected, serving(tmp_path / "absent.onnx", 1, 1, "cpu"):
        pass


def test_no_images_are_refused(thin):
    with pytest.raises(ConfigError, match="no images"):
        measure(thin / "model.onnx", [], clients=1, seconds=1, workers=1, threads=1, device="cpu", rounds=1)


def test_memory_of_a_process_that_is_gone_is_not_known():
    assert megabytes_of(2**22 + 1) is None
