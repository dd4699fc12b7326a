"""Models that are swapped when their files are replaced, under load."""

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

from served import RunGate, served
from waiting import wait_until

from runtime.output_formats import FORMATS
from runtime.predictor import Predictor


def replace(target, source):
    """Replace a file as `cp` and `mv` do it."""
    shutil.copyfile(source, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)


def test_every_answer_is_wholly_of_one_file_while_files_are_replaced(models, picture, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copyfile(models["brightness"], path)
    right = {
        kind: FORMATS["npy"].encode(Predictor(models[kind], "cpu").predict(picture)) for kind in ("brightness", "conv")
    }
    with served({"m": path}) as server:
        shas, stopped, found = (
            {"brightness": server.ask("/v1/models").json["models"][0]["sha256"]},
            threading.Event(),
            set(),
        )

        def load():
            while not stopped.is_set():
                reply = server.predict(picture, "?format=npy")
                assert reply.status == 200, reply.body
                found.add((reply.headers["x-model-sha256"], reply.body))

        with ThreadPoolExecutor(4) as pool:
            try:
                running = [pool.submit(load) for _ in range(4)]
                for kind in ("conv", "brightness", "conv"):
                    before = server.service.store.models["m"].current
                    replace(path, models[kind])
                    wait_until(lambda before=before: server.service.store.models["m"].current is not before)
                    shas[kind] = server.service.store.models["m"].current.sha256
                    count = server.service.metrics.requests.labels("/v1/predict", "m", "200")
                    begun = count._value.get()
                    wait_until(lambda begun=begun, count=count: count._value.get() > begun + 8)
            finally:
                stopped.set()
            for one in running:
                one.result()
        assert found == {(shas[kind], right[kind]) for kind in right}
        metrics = server.ask("/metrics").body.decode()
        assert 'unet_model_swaps_total{model="m",result="swapped"} 3.0' in metrics
        assert f'unet_model_info{{device="cpu",model="m",precision="fp32",sha256="{shas["conv"]}"}} 1.0' in metrics
        assert (
            f'unet_model_info{{device="cpu",model="m",precision="fp32",sha256="{shas["brightness"]}"}} 0.0' in metrics
        )


def test_a_request_that_runs_finishes_on_the_old_file(models, picture, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copyfile(models["brightness"], path)
    with served({"m": path}) as server, ThreadPoolExecutor(1) as pool:
        model = server.service.store.models["m"]
        old = model.current
        gate = RunGate(old.predictor._model.session)
        try:
            running = pool.submit(server.predict, picture, "?format=npy")
            assert gate.entered.acquire(timeout=60)
            replace(path, models["conv"])
            wait_until(lambda: model.current is not old)
            fresh = server.predict(picture, "?format=npy")
        finally:
            gate.open()
        assert fresh.body == FORMATS["npy"].encode(Predictor(models["conv"], "cpu").predict(picture))
        assert running.result().body == FORMATS["npy"].encode(Predictor(models["brightness"], "cpu").predict(picture))
        wait_until(lambda: old.predictor._closed)


def test_a_file_that_is_no_model_changes_nothing(models, picture, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copyfile(models["brightness"], path)
    with served({"m": path}) as server:
        before = server.predict(picture)
        swaps = server.service.metrics.swaps.labels("m", "refused")._value
        content = models["conv"].read_bytes()
        half = tmp_path / "half"
        half.write_bytes(content[: len(content) // 2])
        replace(path, half)
        wait_until(lambda: swaps.get() == 1)
        assert server.predict(picture).body == before.body
        assert server.ask("/healthz").status == 200
        path.unlink()
        assert server.predict(picture).body == before.body
        replace(path, models["conv"])
        wait_until(lambda: server.predict(picture).headers["x-model-sha256"] != before.headers["x-model-sha256"])
        assert swaps.get() == 1


def test_a_file_that_cannot_be_opened_for_any_reason_is_tried_once(models, tmp_path, monkeypatch):
    from runtime.serve import models as module
    from runtime.serve.models import ServedModel
    from runtime.serve.settings import ServerSettings

    path = tmp_path / "model.onnx"
    shutil.copyfile(models["brightness"], path)
    served = ServedModel("m", path, ServerSettings(models=(), device="cpu", threads=1), lambda *_: None)
    tries = []

    def full(*_):
        tries.append(1)
        raise MemoryError

    monkeypatch.setattr(module, "Generation", full)
    replace(path, models["conv"])
    assert [asyncio.run(served.look()) for _ in range(3)] == [False, None, None]
    assert len(tries) == 1
    served.current.predictor.close()
