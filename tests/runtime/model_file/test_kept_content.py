"""Models given as bytes: checked and run as files are, and their file is removed with the last one who uses it."""

import gc
import io
import multiprocessing
import os
import pickle

import numpy as np
import pytest
from asked import random_image

import runtime
from runtime.errors import ModelError
from runtime.inference.predictor_cache import PredictorCache
from runtime.model_file.digest import VERIFIED
from runtime.predictor import Predictor

IMAGE = random_image(9, 12)


@pytest.fixture
def content(write_model):
    return write_model("conv").read_bytes()


FORMS = {"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview, "file object": io.BytesIO}


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_a_model_with_golden_sample_and_digest(content, answers, form):
    with Predictor(FORMS[form](content), "cpu") as predictor:
        assert predictor.report.integrity == VERIFIED and 0 < predictor.report.golden_error < 1e-5
        assert np.allclose(predictor.predict(IMAGE).probability, answers["conv"](IMAGE[None])[0], atol=1e-6)


def test_file_object_is_read_from_its_start_and_stays_open(content):
    file = io.BytesIO(content)
    file.seek(100)
    Predictor(file, "cpu").close()
    assert not file.closed


def test_damage_is_found_and_no_temporary_name_is_told(content):
    damaged = bytearray(content)
    damaged[content.index(b"conv_a") + 20] ^= 1
    with pytest.raises(
        ModelError, match=r"^model: was damaged or changed since it was exported: its digest does not fit"
    ):
        Predictor(damaged, "cpu")
    with pytest.raises(ModelError, match=r"^model: looks like an image \(PNG\), expected an \.onnx file"):
        runtime.predict(IMAGE, b"\x89PNG\r\n\x1a\n", "cpu")
    with pytest.raises(ModelError, match=r"^model: has 0 bytes, expected 1 to 2147483647$"):
        Predictor(b"")
    with pytest.raises(ModelError, match=r"^model: gives str, expected bytes; open the file with mode 'rb'$"):
        Predictor(io.StringIO("text"))


def test_file_is_private_shared_and_gone_with_its_last_user(content):
    first, second = Predictor(content, "cpu"), Predictor(io.BytesIO(content), "cpu")
    assert first.path == second.path
    path = first.path
    assert path.parent.stat().st_mode & 0o777 == 0o700
    del first
    gc.collect()
    assert path.exists()
    del second
    gc.collect()
    assert not path.parent.exists()


def test_predict_keeps_a_model_of_bytes_open(content, monkeypatch):
    opened = []
    cache = PredictorCache(lambda path, device, verify: opened.append(path) or Predictor(path, device, verify=verify))
    monkeypatch.setattr("runtime.predictor.PREDICTORS", cache)
    for _ in range(3):
        result = runtime.predict(IMAGE, content, "cpu")
        gc.collect()
    assert result.size == (9, 12) and len(opened) == 1
    assert opened[0].exists()
    cache.clear()
    gc.collect()
    assert not opened[0].exists()


def test_pickled_predictor_takes_its_bytes_along(content):
    predictor = Predictor(content, "cpu")
    expected, stored = predictor.predict(IMAGE).probability, pickle.dumps(predictor)
    del predictor
    gc.collect()
    assert np.array_equal(pickle.loads(stored).predict(IMAGE).probability, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_opens_the_file_again_and_leaves_it_to_its_parent(content):
    predictor = Predictor(content, "cpu")
    expected = predictor.predict(IMAGE).probability

    def work(pipe):
        nonlocal predictor
        pipe.send(predictor.predict(IMAGE).probability)
        predictor = None
        gc.collect()
        pipe.close()

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(there,))
    process.start()
    assert np.array_equal(here.recv(), expected)
    process.join()
    assert predictor.path.exists()
