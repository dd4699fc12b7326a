"""auto: CUDA serves while TensorRT's engine is built; failures, closing, and the end of the program."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from devices import GPU, images

from runtime.devices import availability
from runtime.devices.auto_session import AutoSession
from runtime.devices.cuda import CudaSession
from runtime.devices.session import Session
from runtime.errors import ClosedError
from runtime.inference import loaded_model
from runtime.options import ProviderOptions
from runtime.predictor import Predictor


def test_auto_serves_on_cuda_while_the_engine_builds_and_says_when_it_switches(
    models, tensorrt_stand_in, monkeypatch, answers, caplog
):
    go, real = threading.Event(), loaded_model.open_session
    served = []

    def slowly(path, device, card, options, **named):
        if device.kind == "tensorrt":
            assert go.wait(30)
        return real(path, device, card, options, **named)

    real_run = CudaSession.run
    monkeypatch.setattr(
        CudaSession, "run", lambda self, batch: served.append(self.device.kind) or real_run(self, batch)
    )
    monkeypatch.setattr(availability, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(loaded_model, "open_session", slowly)
    model = Predictor(models["softmax"])
    assert (model.report.device, model.report.requested) == ("cuda:0", "auto")
    assert model.report.switch == "tensorrt:0 is being built, cuda:0 serves until then"
    batch = images(1, 8, 12)
    before = model.run(batch)
    go.set()
    model.prepare()
    assert (model.report.device, model.report.provider) == ("tensorrt:0", "TensorrtExecutionProvider")
    assert model.report.requested == "auto" and model.report.skipped == ()
    assert model.report.switch == "switched from cuda:0 to tensorrt:0 after 0 s"
    assert str(model.report).endswith(model.report.switch)
    assert np.array_equal(model.run(batch), before)
    model.run(images(1, 5000, 4))  # outside the profile: CUDA still takes it
    assert served[0] == "cuda" and served[-2:] == ["tensorrt", "cuda"]
    assert [record.getMessage() for record in caplog.records][-1] == model.report.switch
    again = Predictor(models["softmax"])  # from the cache, at once
    assert (again.report.device, again.report.switch) == ("tensorrt:0", "")
    assert again.run(images(1, 5000, 4)).shape == (1, 3, 5000, 4)


def test_what_serves_outside_of_an_engine_s_profile_captures_no_graphs(models, tensorrt_stand_in, monkeypatch):
    """A capture fails while TensorRT works in another thread."""
    graphs, real = [], loaded_model.open_session

    def noting(path, device, card, options, **named):
        graphs.append((device.kind, options.cuda_graphs))
        return real(path, device, card, options, **named)

    monkeypatch.setattr(availability, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(loaded_model, "open_session", noting)
    model = Predictor(models["softmax"], options=ProviderOptions(cuda_graphs=True, background=False))
    model.run(images(1, 5000, 4))
    assert graphs == [("tensorrt", True), ("cuda", False)]


def test_build_that_fails_in_the_background_stays_on_cuda_with_the_reason(models, tensorrt_stand_in, monkeypatch):
    real = loaded_model.open_session

    def fail(path, device, card, options, **named):
        if device.kind == "tensorrt":
            raise RuntimeError("TensorRT EP failed to create engine\nfrom network")
        return real(path, device, card, options, **named)

    monkeypatch.setattr(availability, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(loaded_model, "open_session", fail)
    model = Predictor(models["softmax"])
    model.prepare()
    assert model.report.device == "cuda:0"
    assert model.report.switch == (
        "stayed on cuda:0, since tensorrt:0 failed: device tensorrt:0: ONNX Runtime cannot run the model "
        "(TensorRT EP failed to create engine from network)"
    )
    assert model.run(images(1, 8, 12)).shape == (1, 3, 8, 12)


def test_without_background_the_engine_is_built_first(models, tensorrt_stand_in, monkeypatch):
    monkeypatch.setattr(availability, "unavailable_reason", lambda device: None)
    model = Predictor(models["softmax"], options=ProviderOptions(background=False))
    assert (model.report.device, model.report.switch) == ("tensorrt:0", "")


class Answering(Session):
    """A session that answers one number."""

    def __init__(self, number, device=GPU, takes=True):
        self.number, self.device, self.nodes, self.closed, self._takes = number, device, (), False, takes

    def takes(self, shape):
        return self._takes

    def run(self, batch):
        return np.full(1, self.number)

    def close(self):
        self.closed = True


def test_auto_closes_what_it_opened_also_what_comes_later():
    go, late, first = threading.Event(), Answering(2), Answering(1)
    auto, said = AutoSession(other=first, open_other=lambda: first), []
    auto.build(lambda: go.wait(30) and late, lambda best, reason: said.append(reason))
    auto.close()
    go.set()
    auto._builder.join()
    assert (first.closed, late.closed, said) == (True, True, [])


def test_auto_opens_the_other_one_only_when_it_is_needed():
    opened = []
    auto = AutoSession(best=Answering(1), open_other=lambda: opened.append(1) or Answering(2))
    assert auto.run(images(1, 2, 2)) == 1 and opened == []
    auto = AutoSession(best=Answering(1, takes=False), open_other=lambda: opened.append(1) or Answering(2))
    assert [int(auto.run(images(1, 2, 2))[0]) for _ in range(3)] == [2, 2, 2]
    assert opened == [1]
    auto.close()
    with pytest.raises(ClosedError, match="is closed"):
        auto.run(images(1, 2, 2))


class ClosedInBetween(AutoSession):
    """Another thread closes it between the builder's look at whether it is closed and the switch, if it can."""

    closer = None

    @property
    def _closed(self):
        closed = self.closed
        if self._builder is not None and self.closer is None:
            self.closer = threading.Thread(target=self.close)
            self.closer.start()
            self.closer.join(0.2)
        return closed

    @_closed.setter
    def _closed(self, value):
        self.closed = value


def test_close_beside_the_end_of_a_build_leaves_nothing_open():
    go, late, first = threading.Event(), Answering(2), Answering(1)
    auto = ClosedInBetween(other=first, open_other=lambda: first)
    auto.build(lambda: go.wait(10) and late, lambda best, reason: None)
    go.set()
    auto._builder.join()
    auto.closer.join(10)
    assert (first.closed, late.closed) == (True, True)


PROGRAM = """
import time
from runtime.devices.auto_session import AutoSession

def build():
    time.sleep(0.5)
    print("built", flush=True)
    raise ValueError("no engine")

AutoSession(open_other=None).build(build, lambda best, reason: print(reason, flush=True))
"""


def test_program_does_not_end_inside_a_build(root):
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "built\nno engine\n" and done.stderr == ""
