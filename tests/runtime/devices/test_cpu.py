import threading

import numpy as np
from waiting import Gate, wait_until

from runtime import Predictor
from runtime.devices import cpu


class CountingInference:
    """Stands for ONNX Runtime's session: each run waits to be let go."""

    def __init__(self, inference, gate):
        self.inference, self.gate = inference, gate

    def run(self, names, inputs):
        self.gate.passing(inputs)
        return self.inference.run(names, inputs)


def test_runs_at_most_as_many_at_once_as_there_are_cores(models, monkeypatch):
    monkeypatch.setattr(cpu, "available_threads", lambda: 2)
    predictor, gate = Predictor(models["conv"], "cpu"), Gate()
    session = predictor._model.session
    session._inference = CountingInference(session._inference, gate)
    image = np.zeros((24, 32, 3), np.uint8)
    expected = []
    threads = [threading.Thread(target=lambda: expected.append(predictor.predict(image))) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(gate.arrived) == 2)
    for thread in threads:
        thread.join(0.02)
    assert len(gate.arrived) == 2
    gate.open()
    for thread in threads:
        thread.join()
    assert len(gate.arrived) == len(expected) == 5
