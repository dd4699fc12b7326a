"""Predictor.predict_async: what runs where, what is bounded, what is given back."""

import asyncio
import threading

import pytest
from asked import IMAGES, probabilities, same
from waiting import PATIENCE, Gate, wait_until

from runtime import predictor
from runtime.errors import ImageError
from runtime.inference.batcher import Batching
from runtime.predictor import Predictor

NARROW = Batching(max_batch=1, max_waiting=1)


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


def test_coroutines_are_answered_as_serial_while_the_loop_goes_on(models):
    async def gather(model):
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0)
                beats += 1

        heart = asyncio.create_task(beat())
        results = await asyncio.gather(*[model.predict_async(image) for image in IMAGES])
        heart.cancel()
        return results, beats

    with Predictor(models["conv"], "cpu", batching=Batching(max_batch=4, max_waiting=3)) as model:
        results, beats = run(gather(model))
        assert same(results, probabilities(model))
    assert beats > len(IMAGES)


def test_coroutines_decode_and_restore_beside_the_batches(models, monkeypatch):
    threads = {}

    def note(module, name):
        stage = getattr(module, name)

        def noted(*arguments, **named):
            threads[name] = threading.current_thread().name.split("_")[0]
            return stage(*arguments, **named)

        monkeypatch.setattr(module, name, noted)

    note(predictor, "preprocess")
    note(predictor, "infer")
    note(predictor, "postprocess")
    with Predictor(models["conv"], "cpu") as model:
        run(model.predict_async(IMAGES[0]))
    assert threads == {"preprocess": "asyncio", "infer": "unet-batcher", "postprocess": "asyncio"}


def test_a_coroutine_raises_what_predict_does_and_keeps_no_place(models, tmp_path):
    async def main(model):
        for _ in range(5):
            with pytest.raises(ImageError, match="no such file"):
                await model.predict_async(tmp_path / "gone.png")
        return await model.predict_async(IMAGES[0])

    with Predictor(models["conv"], "cpu", batching=NARROW) as model:
        assert run(main(model)).size == IMAGES[0].shape[:2]


class Held:
    """`load` whose calls wait for a gate; how many were in it at once."""

    def __init__(self, monkeypatch):
        self.gate, self.now, self.most = Gate(), 0, 0
        self.real, self.lock = predictor.preprocess, threading.Lock()
        monkeypatch.setattr(predictor, "preprocess", self.load)

    def load(self, *given):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.gate.passing(None)
        with self.lock:
            self.now -= 1
        return self.real(*given)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)


def test_no_more_are_decoded_than_may_wait_and_run(models, monkeypatch):
    held = Held(monkeypatch)

    async def main(model):
        tasks = [asyncio.create_task(model.predict_async(image)) for image in IMAGES[:8]]
        await until(lambda: held.now == 2)
        await asyncio.sleep(0.02)  # others may come in, if they can
        held.gate.open()
        return await asyncio.gather(*tasks)

    with Predictor(models["conv"], "cpu", batching=NARROW) as model:
        run(main(model))
    assert held.most == 2


def test_those_who_no_longer_wait_keep_their_places_until_their_threads_are_done(models, monkeypatch):
    held = Held(monkeypatch)

    async def main(model):
        for _ in range(4):
            tasks = [asyncio.create_task(model.predict_async(image)) for image in IMAGES[:4]]
            await until(lambda: held.now == 2)
            await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        held.gate.open()
        return await asyncio.gather(*[model.predict_async(image) for image in IMAGES[:6]])

    with Predictor(models["conv"], "cpu", batching=NARROW) as model:
        assert len(run(main(model))) == 6
        wait_until(lambda: model._submissions._decoding._free == 2)
    assert held.most == 2
