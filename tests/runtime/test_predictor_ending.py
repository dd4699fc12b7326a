"""Predictors that are closed or dropped: their memory, and what others find who are in the middle of a call."""

import asyncio
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest
from asked import IMAGES, random_image

from runtime import predictor
from runtime.errors import ClosedError, ModelError
from runtime.predictor import Predictor

CLOSED = r"^predictor: is closed; open another one$"


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "use",
    [
        lambda model: model.predict(IMAGES[0]),
        lambda model: list(model.stream(IMAGES)),
        lambda model: model.submit(IMAGES[0]).result(),
    ],
)
def test_a_dropped_predictor_gives_its_memory_back_at_once(models, use):
    model = Predictor(models["conv"], "cpu")
    use(model)
    session = weakref.ref(model._model.session)
    model._submissions.close()  # its thread may still be about to let go of the last batch
    del model
    assert session() is None


@pytest.mark.usefixtures("no_collector")
def test_a_closed_predictor_gives_its_memory_back_at_once(models):
    model = Predictor(models["conv"], "cpu")
    inference = weakref.ref(model._model.session._inference)
    model.close()
    assert inference() is None


@pytest.mark.usefixtures("no_collector")
def test_a_replaced_file_s_predictor_goes(write_model):
    before = weakref.ref(predictor.PREDICTORS.get(write_model("conv"), "cpu"))
    assert predictor.PREDICTORS.get(write_model("brightness"), "cpu") is not before()
    assert before() is None


def test_closed_is_closed(models):
    model = Predictor(models["conv"], "cpu")
    waiting = [model.submit(image) for image in IMAGES]
    model.close()
    model.close()
    assert all(future.result().size == image.shape[:2] for future, image in zip(waiting, IMAGES, strict=True))
    batch = np.zeros((1, 20, 30, 3), np.uint8)
    for ask in (
        lambda: model.predict(IMAGES[0]),
        lambda: model.submit(IMAGES[0]),
        lambda: asyncio.run(model.predict_async(IMAGES[0])),
        lambda: model.predict_batch(IMAGES),
        lambda: model.run(batch),
        lambda: model.run_dlpack(batch),
        model.prepare,
    ):
        with pytest.raises(ClosedError, match=CLOSED):
            ask()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("unet")]


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.predict(IMAGES[0]),
        lambda model: model.predict(random_image(40, 50), tile=(16, 16)),
        lambda model: list(model.stream(IMAGES)),
        lambda model: model.submit(IMAGES[0]).result(),
        lambda model: asyncio.run(model.predict_async(IMAGES[0])),
    ],
)
def test_closing_while_somebody_decodes_is_told_as_that(models, monkeypatch, ask):
    model, real = Predictor(models["conv"], "cpu"), predictor.preprocess
    monkeypatch.setattr(predictor, "preprocess", lambda *given: (real(*given), model.close())[0])
    with pytest.raises(ClosedError, match=CLOSED):
        ask(model)


def test_closing_in_a_callback_finishes_what_waits(models, monkeypatch):
    model = Predictor(models["conv"], "cpu")
    held, real = threading.Event(), model._model.session.run
    monkeypatch.setattr(model._model.session, "run", lambda batch: held.wait(10) and real(batch))
    futures = [model.submit(image) for image in IMAGES[:4]]
    futures[0].add_done_callback(lambda _: model.close())
    held.set()
    assert all(future.result(10).size == image.shape[:2] for future, image in zip(futures, IMAGES, strict=False))


def test_a_file_that_is_replaced_while_it_is_opened_is_refused_and_closed(write_model, monkeypatch):
    path, opened = write_model(), []
    real = Predictor._begin

    def begin(self, *given):
        real(self, *given)
        opened.append(self)
        os.utime(path, (1, 1))

    monkeypatch.setattr(Predictor, "_begin", begin)
    with pytest.raises(ModelError, match="was replaced while it was being opened"):
        Predictor(path, "cpu")
    with pytest.raises(ClosedError):
        opened[0].predict(IMAGES[0])


def test_the_card_of_one_file_and_the_graph_of_another_are_told_as_that(write_model, monkeypatch):
    path = write_model("conv")
    real = predictor.read_model

    def read(given):
        found = real(given)
        write_model("softmax")
        return found

    monkeypatch.setattr(predictor, "read_model", read)
    with pytest.raises(ModelError, match=r"model.onnx: was replaced while it was being opened; open it again$"):
        Predictor(path, "cpu")


def test_predict_opens_a_file_again_that_was_replaced_while_it_was_being_opened(write_model, monkeypatch):
    path, real, opened = write_model("conv"), predictor.Predictor, []

    def open_while_it_is_replaced(*given, **named):
        opened.append(given)
        if len(opened) < 3:
            os.utime(path, (len(opened), 1))
            raise ModelError(f"{path}: was replaced")
        return real(*given, **named)

    monkeypatch.setattr(predictor, "Predictor", open_while_it_is_replaced)
    assert predictor.predict(IMAGES[0], path, "cpu").size == IMAGES[0].shape[:2]
    assert len(opened) == 3


def test_predict_does_not_try_again_what_cannot_be_opened(write_model, monkeypatch):
    opened = []
    monkeypatch.setattr(predictor, "Predictor", lambda *given, **named: opened.append(given) or real(*given, **named))
    real = Predictor
    path = write_model("conv")
    path.write_bytes(b"no model")
    with pytest.raises(ModelError):
        predictor.predict(IMAGES[0], path, "cpu")
    with pytest.raises(ModelError, match=r"^model: found NoneType, expected the path of an \.onnx file$"):
        predictor.predict(IMAGES[0], None)
    assert len(opened) == 1


def test_a_stream_does_not_keep_sources_that_nobody_asks_back(models, monkeypatch):
    model, sources, alive = Predictor(models["conv"], "cpu"), [], []

    def source():
        image = random_image(20, 30)
        sources.append(weakref.ref(image))
        return image

    real = model._model.session.run
    monkeypatch.setattr(
        model._model.session, "run", lambda batch: (alive.append([ref() for ref in sources]), real(batch))[1]
    )
    list(model.stream(source() for _ in range(1)))
    assert alive == [[None]]


def test_a_stream_that_is_interrupted_ends_between_two_tiles(models, monkeypatch):
    """The caller waits for an image of many tiles when Ctrl-C comes."""
    model, runs = Predictor(models["conv"], "cpu"), []
    real = model._model.session.run

    def run(batch):
        runs.append(batch.shape)
        if len(runs) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return real(batch)

    monkeypatch.setattr(model._model.session, "run", run)
    with pytest.raises(KeyboardInterrupt):
        list(model.stream([random_image(400, 600)], tile=(8, 8)))
    assert 3 <= len(runs) < 500  # of some 7,000
