"""Workers of a Ray cluster against one process."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.cases.cluster import measure, rate_of
from runtime.errors import ConfigError, ImageError
from runtime.jobs.outcome import JobOutcome


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path in paths:
        Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(path)
    return paths


@pytest.mark.slow
def test_one_process_and_workers_take_turns(thin, images):
    """Slow, since Ray takes seconds to start."""
    found = measure(thin / "model.onnx", images, count=20, workers=(1,), rounds=2)
    assert [one.contestant for one in found] == ["one process, 1 thread", "Ray, 1 worker"]
    for one in found:
        assert (one.part, one.group, one.unit, len(one.values)) == ("cluster", "cluster", "images/s", 2)
        assert (one.settings["images"], one.facts["different"], min(one.values) > 0) == (20, 2, True)


def test_the_first_images_do_not_count(monkeypatch):
    clock = iter([0.0, 10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    written = JobOutcome(path="a", file="b", status="written")
    assert rate_of([written] * 10, 10, 6) == 2  # four images in two seconds


def test_an_image_that_fails_ends_it():
    failed = JobOutcome(path="a", file="b", status="failed", error="a.png: is damaged")
    with pytest.raises(ImageError, match="is damaged"):
        rate_of([failed], 1, 0)


@pytest.mark.parametrize(("workers", "named"), [((0, 1), "--workers 0, 1: expected"), ((1, 4096), "1, 4096: expected")])
def test_numbers_of_workers_fit_the_machine(thin, images, workers, named):
    with pytest.raises(ConfigError, match=named):
        measure(thin / "model.onnx", images, count=4, workers=workers, rounds=1)


def test_no_images_are_refused(thin):
    with pytest.raises(ConfigError, match="no images"):
        measure(thin / "model.onnx", [], count=4, workers=(1,), rounds=1)
