"""CUDA graphs: their ids and addresses, one thread for all, and what is never captured."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from devices import OUT_OF_MEMORY, images, on_cpu_memory

from runtime.devices import availability
from runtime.devices import cuda as cuda_module
from runtime.devices import session as module
from runtime.devices.registry import open_session
from runtime.errors import ConfigError, DeviceError
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from runtime.support.concurrency import join_nobody


class Recording:
    """An inference session that notes the graph and the thread of each run."""

    def __init__(self, inference):
        self.inference, self.graphs, self.threads = inference, [], set()

    def __getattr__(self, name):
        return getattr(self.inference, name)

    def run_with_iobinding(self, binding, options):
        self.graphs.append(options and options.get_run_config_entry("gpu_graph_id"))
        self.threads.add(threading.current_thread().name)
        self.inference.run_with_iobinding(binding, options)


def test_graphs_have_an_id_and_an_address_for_each_shape(inference, card, monkeypatch):
    used, recording = [], Recording(inference)
    real = cuda_module.Buffers.run
    monkeypatch.setattr(cuda_module.Buffers, "run", lambda self, *told: used.append(id(self)) or real(self, *told))
    monkeypatch.setattr(cuda_module, "MAX_GRAPHS", 2)
    session = on_cpu_memory(recording, card, cuda_graphs=True)
    for height in (4, 8, 4, 8, 12, 4):
        session.run(images(1, height, 8))
    assert recording.graphs == ["1", "2", "1", "2", "-1", "1"]
    assert used == [used[0], used[1], used[0], used[1], used[0]] and used[0] != used[1]


def test_their_thread_joins_no_worker_since_workers_wait_for_it(inference, card):
    session = on_cpu_memory(inference, card, cuda_graphs=True)
    assert session._runner._thread.submit(join_nobody).result() is True  # it was so before


@pytest.mark.parametrize(
    ("message", "after"),
    [
        # the two that were dropped exist until the session is closed, so only one more is captured
        (OUT_OF_MEMORY, ["-1", "4", "4", "-1"]),
        ("CUDA failure 901: operation failed due to a previous error during capture", ["-1", "1", "1", "2"]),
    ],
)
def test_graphs_are_dropped_when_the_gpu_is_full_and_after_no_other_failure(
    inference, card, monkeypatch, message, after
):
    monkeypatch.setattr(cuda_module, "MAX_GRAPHS", 3)
    recording = Recording(inference)
    session = on_cpu_memory(recording, card, cuda_graphs=True)
    for height in (4, 8):
        session.run(images(1, height, 8))

    def fail(*_):
        raise RuntimeError(message)

    with monkeypatch.context() as patched:
        patched.setattr(cuda_module.Buffers, "run", fail)
        with pytest.raises(DeviceError):
            session.run(images(1, 12, 8))
    for height in (4, 4, 8):
        session.run(images(1, height, 8))
    assert recording.graphs[2:] == after


def test_with_graphs_every_run_is_in_one_thread_since_each_captures_its_own(inference, card, answers, monkeypatch):
    monkeypatch.setattr(module, "DLPACK_CUDA", module.DLPACK_CPU)
    recording = Recording(inference)
    session = on_cpu_memory(recording, card, cuda_graphs=True)
    batch = images(1, 8, 8)
    with ThreadPoolExecutor(6) as pool:
        found = [output.probability for output in pool.map(session.run, [batch] * 12)]
        found += map(np.from_dlpack, pool.map(session.run_dlpack, [batch] * 12))
    assert all(np.abs(answer - answers["softmax"](batch)).max() < 1e-6 for answer in found)
    assert recording.threads == {"unet-cuda-graphs_0"}


@pytest.mark.parametrize(("graphs", "told"), [(True, ["-1"]), (False, [None])])
def test_tensor_from_outside_is_never_captured_since_its_address_does_not_stay(
    inference, card, monkeypatch, graphs, told
):
    monkeypatch.setattr(module, "DLPACK_CUDA", module.DLPACK_CPU)
    recording = Recording(inference)
    on_cpu_memory(recording, card, cuda_graphs=graphs).run_dlpack(images(1, 8, 8))
    assert recording.graphs == told


def test_copying_is_timed_with_graphs_too(inference, card):
    assert on_cpu_memory(inference, card, cuda_graphs=True).run(images(1, 8, 8)).copy_seconds > 0


def test_graphs_are_refused_beside_a_build_in_the_background(models, card, tensorrt_stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(availability, "unavailable_reason", lambda device: None)
    with pytest.raises(ConfigError, match=r"^cuda_graphs: found True with background=True, and building a TensorRT en"):
        Predictor(models["softmax"], options=ProviderOptions(cuda_graphs=True))
    options = ProviderOptions(cuda_graphs=True, background=False, engine_folder=tmp_path / "engines")
    assert Predictor(models["softmax"], options=options).report.device == "tensorrt:0"
    assert Predictor(models["softmax"], "cuda", options=ProviderOptions(cuda_graphs=True)).report.device == "cuda:0"


# With a device


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_cuda_keeps_buffers_and_graphs(cuda, models, card, answers, graphs):
    session = open_session(models["softmax"], cuda, card, ProviderOptions(cuda_graphs=graphs), note=print)
    for seed in range(3):
        for size in [(8, 8), (16, 24), (5, 7)]:
            batch = images(2, *size, seed=seed)
            assert np.abs(session.run(batch).probability - answers["softmax"](batch)).max() < 1e-3
