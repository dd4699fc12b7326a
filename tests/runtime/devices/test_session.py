"""Sessions on the CPU: answers, options, DLPack, errors; progress of what takes long."""

import gc
import threading
import time

import numpy as np
import onnxruntime
import pytest
from devices import CPU, images, on_cpu_memory

from runtime.devices.auto_session import AutoSession
from runtime.devices.registry import open_session
from runtime.devices.session import reason_of
from runtime.devices.tensorrt import telling
from runtime.errors import ClosedError, ConfigError, DeviceError, ImageError
from runtime.options import ProviderOptions
from runtime.predictor import Predictor

# The CPU


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 4}, "options: found {'max_batch': 4}, expected runtime.options.ProviderOptions, or None"),
        (ProviderOptions(bucket=6), "bucket: found 6, expected a multiple of the network's stride 4"),
    ],
)
def test_options_that_do_not_fit_are_refused_on_every_device(models, options, message):
    with pytest.raises(ConfigError) as caught:
        Predictor(models["softmax"], "cpu", options=options)
    assert str(caught.value) == message


def test_cpu_session_answers_as_numpy_and_tells_where_its_nodes_are(models, card, answers):
    replayed = []
    session = open_session(
        models["softmax"], CPU, card, ProviderOptions(), note=print, threads=1, check=lambda run: replayed.append(run)
    )
    batch = images(2, 5, 7)
    assert np.abs(session.run(batch).probability - answers["softmax"](batch)).max() < 1e-6
    assert len(replayed) == 1
    assert str(session.device) == "cpu"
    assert session.placement() == {"CPUExecutionProvider": len(session.nodes)}
    assert "Softmax" in {node.operator for node in session.nodes}
    assert session.takes((99, 9999, 9999))
    session.prepare()


def test_closed_session_says_so(models, card):
    session = open_session(models["softmax"], CPU, card, ProviderOptions(), note=print)
    session.close()
    for use in (session.run, session.run_dlpack):
        with pytest.raises(ClosedError, match=r"^predictor: is closed; open another one$"):
            use(images(1, 2, 2))


def test_what_onnx_runtime_raises_is_a_device_error(models, card):
    session = open_session(models["softmax"], CPU, card, ProviderOptions(), note=print)
    with pytest.raises(DeviceError, match=r"^device cpu: cannot run a batch of \[1, 2, 3\] \(.*\); try a smaller one$"):
        session.run(np.zeros((1, 2, 3), np.uint8))


# DLPack


def test_dlpack_in_and_out_without_a_copy(models, card, answers):
    session = open_session(models["softmax"], CPU, card, ProviderOptions(), note=print)
    first, second = images(1, 5, 7, seed=1), images(1, 5, 7, seed=2)
    expected = answers["softmax"](first)
    answer = session.run_dlpack(first)
    array = np.from_dlpack(answer)
    assert array.ctypes.data == answer.data_ptr()
    session.run_dlpack(second)
    del answer, session
    gc.collect()
    assert array.dtype == np.float32 and np.abs(array - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (np.zeros((1, 2, 3, 3), np.float32), "found tensor(float) [1, 2, 3, 3] on cpu"),
        (np.zeros((1, 2, 3, 3), bool), "found ndarray bool [1, 2, 3, 3], which DLPack does not take"),
        (np.zeros((2, 3, 3), np.uint8), "found tensor(uint8) [2, 3, 3] on cpu"),
        (np.zeros((1, 2, 3, 1), np.uint8), "found tensor(uint8) [1, 2, 3, 1] on cpu"),
        (np.zeros((1, 2, 3, 6), np.uint8)[..., ::2], "found ndarray uint8 [1, 2, 3, 3], which DLPack does not take"),
        (
            np.broadcast_to(np.zeros(3, np.uint8), (1, 2, 3, 3)),
            "found ndarray uint8 [1, 2, 3, 3], which DLPack does not take",
        ),
        ("text", "found str  [], which DLPack does not take"),
        (object(), "found object  [], which DLPack does not take"),
    ],
)
def test_tensor_of_another_kind_is_refused(models, card, tensor, found):
    session = open_session(models["softmax"], CPU, card, ProviderOptions(), note=print)
    for opened in (session, AutoSession(best=session, open_other=lambda: session)):
        with pytest.raises(ImageError) as caught:
            opened.run_dlpack(tensor)
        assert str(caught.value).startswith(f"tensor: {found}")
        assert str(caught.value).endswith("uint8 [batch, height, width, 3] on cpu")


def test_tensor_on_another_device_is_refused(inference, card):
    with pytest.raises(ImageError, match=r"on cpu, expected uint8 \[batch, height, width, 3\] on cuda:0$"):
        on_cpu_memory(inference, card).run_dlpack(images(1, 8, 8))


CUDA_CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, int) [with ERRTYPE = cudaError; bool "
    "THRW = true; std::conditional_t<THRW, void, common::Status> = void] "
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            f"Error in execution: {CUDA_CALL}{CUDA_CALL}CUDA failure 901: broken ; GPU=0 ; hostname=secret.example ; "
            "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_graph.cc ; line=61 ; "
            "expr=cudaStreamEndCapture(stream_, &graph); \n\n",
            "Error in execution: CUDA failure 901: broken ; GPU=0 ; expr=cudaStreamEndCapture(stream_, &graph);",
        ),
        (
            "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRaw("
            "size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 99\n",
            "Failed to allocate memory for requested buffer of size 99",
        ),
        ("CUDA failure 2: out of memory ; line=7", "CUDA failure 2: out of memory"),
        ("the sizes (2) are [with care] wrong", "the sizes (2) are [with care] wrong"),
        ("x" * 301, "x" * 300),
    ],
)
def test_reason_leaves_out_where_it_was_written_and_on_which_machine(said, reason):
    assert reason_of(RuntimeError(said)) == reason


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_cuda_takes_and_gives_dlpack(cuda, models, card, answers, graphs):
    session = open_session(models["softmax"], cuda, card, ProviderOptions(cuda_graphs=graphs), note=print)
    for seed in range(4):
        batch = images(1, 8, 12, seed=seed)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(batch, "cuda", 0)
        answer = session.run_dlpack(value)
        assert tuple(answer.__dlpack_device__()) == (2, 0)
        assert np.abs(answer.numpy() - answers["softmax"](batch)).max() < 1e-3


# Progress


def test_something_long_is_never_silent():
    notes = []
    with telling("building", notes.append, every=0.02):
        time.sleep(0.2)
    assert notes[0] == "building: begins, and takes seconds to minutes"
    assert len(notes) >= 4 and set(notes[1:-1]) == {"building: still working after 0 s"}
    assert notes[-1] == "building: done in 0 s"
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_failure_of_something_long_is_told():
    notes = []
    with pytest.raises(ValueError), telling("building", notes.append):
        raise ValueError
    assert notes[1:] == ["building: failed after 0 s"]
