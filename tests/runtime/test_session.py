"""Sessions: the CPU for real; the GPU's buffers and bindings on CPU memory; full memory, switching, progress."""

import contextlib
import dataclasses
import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from runtime import gpu, opening, providers
from runtime import session as module
from runtime.errors import ConfigError, DeviceError, ImageError
from runtime.gpu import CudaSession, Pool, TensorRtSession
from runtime.options import ProviderOptions, session_options
from runtime.predictor import Predictor
from runtime.providers import Device
from runtime.session import AutoSession, Session, open_inference, open_session, telling
from runtime.shapes import Profile

CPU, GPU, TRT = Device(kind="cpu"), Device(kind="cuda"), Device(kind="tensorrt")
PROFILE = Profile(low=(1, 4, 4), best=(1, 8, 12), high=(4, 64, 96), channels=3)
FULL = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 99"


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.fixture
def inference(models):
    chain = [("CPUExecutionProvider", {})]
    return open_inference(models["softmax"], CPU, chain, session_options(1, ProviderOptions()))


@pytest.fixture
def card(make_card):
    return make_card("softmax")


def on_cpu_memory(inference, card, **options):
    """What serves a GPU, with its buffers in the CPU's memory."""
    return CudaSession(inference, GPU, card, ProviderOptions(**options), memory="cpu")


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
    assert np.abs(session.run(batch) - answers["softmax"](batch)).max() < 1e-6
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
        with pytest.raises(DeviceError, match=r"^device cpu: the session is closed; open another one$"):
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
    ],
)
def test_tensor_of_another_kind_is_refused(models, card, tensor, found):
    session = open_session(models["softmax"], CPU, card, ProviderOptions(), note=print)
    with pytest.raises(ImageError) as caught:
        session.run_dlpack(tensor)
    assert str(caught.value).startswith(f"tensor: {found}")
    assert str(caught.value).endswith("uint8 [batch, height, width, 3] on cpu")


def test_tensor_that_is_none_is_refused_by_auto_too(models, card):
    session = open_session(models["softmax"], CPU, card, ProviderOptions(), note=print)
    with pytest.raises(ImageError, match=r"^tensor: found object  \[\], which DLPack does not take, expected a contig"):
        AutoSession(best=session, open_other=lambda: session).run_dlpack(object())


def test_tensor_on_another_device_is_refused(inference, card):
    with pytest.raises(ImageError, match=r"on cpu, expected uint8 \[batch, height, width, 3\] on cuda:0$"):
        on_cpu_memory(inference, card).run_dlpack(images(1, 8, 8))


# Buffers


def test_bound_buffers_answer_as_numpy_whatever_the_sizes_and_the_order(inference, card, answers):
    session = on_cpu_memory(inference, card)
    batches = [
        images(count, height, width, seed=height) for count in (1, 3) for height, width in [(5, 7), (8, 8), (1, 30)]
    ]
    found = [session.run(batch) for batch in batches * 2]
    for batch, answer in zip(batches * 2, found, strict=True):  # none was overwritten by a later one
        assert answer.shape == (len(batch), 3, *batch.shape[1:3])
        assert np.abs(answer - answers["softmax"](batch)).max() < 1e-6


def test_threads_share_no_buffer(inference, card, answers):
    session = on_cpu_memory(inference, card)
    batches = [images(1, 40, 60, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(session.run, batches))
    assert all(np.abs(a - answers["softmax"](b)).max() < 1e-6 for a, b in zip(found, batches, strict=True))


def test_buffers_are_reused_by_bucket(inference, card, monkeypatch):
    made = []
    real = gpu.Buffers.__init__

    def count(self, inference, place, shape, classes):
        made.append(shape)
        real(self, inference, place, shape, classes)

    monkeypatch.setattr(gpu.Buffers, "__init__", count)
    session = on_cpu_memory(inference, card)
    for size in [(5, 5), (8, 8), (7, 6), (5, 8), (9, 8)]:
        session.run(images(1, *size))
    assert made == [(1, 8, 8, 3), (1, 12, 8, 3)]


class Thing:
    def __init__(self, nbytes=1):
        self.nbytes = nbytes


def test_pool_keeps_no_more_bytes_than_it_may_and_always_the_last_used():
    made = []
    pool = Pool(lambda size: made.append(size) or Thing(size), limit=9, max_bytes=100)
    for size in (60, 40, 30, 40, 60, 500, 500, 60):
        with pool.lend(size):
            pass
    assert made == [60, 40, 30, 60, 500, 60]


def test_buffers_know_their_bytes(inference):
    assert gpu.Buffers(inference, ("cpu", 0), (2, 5, 7, 3), 3).nbytes == 2 * 5 * 7 * 3 + 2 * 3 * 5 * 7 * 4


def test_closed_session_gives_its_memory_back_at_once(inference, card):
    session = on_cpu_memory(inference, card)
    session.run(images(1, 8, 8))
    engine = weakref.ref(session._engine)
    gc.disable()
    try:
        session.close()
        assert engine() is None
    finally:
        gc.enable()


def test_pool_lends_to_one_at_a_time_and_keeps_the_last_used():
    made = []
    pool = Pool(lambda key: made.append(key) or Thing(), limit=2, max_bytes=100)
    with pool.lend("a") as first, pool.lend("a") as second:
        assert first is not second
    with pool.lend("a") as again:
        assert again is first  # the one that came back last
    for key in "bc":
        with pool.lend(key):
            pass
    with pool.lend("a") as third:
        assert third is not first and third is not second
    assert made == ["a", "a", "b", "c", "a"]
    with pytest.raises(ValueError), pool.lend("c"):
        raise ValueError
    with pool.lend("c"):
        pass
    assert made[-1] == "c" and len(made) == 6
    pool.clear()
    with pool.lend("c"):
        pass
    assert len(made) == 7


def test_large_batches_run_in_parts(inference, card, answers, monkeypatch):
    sizes = []
    real = gpu.Engine.run
    monkeypatch.setattr(gpu.Engine, "run", lambda self, batch: sizes.append(len(batch)) or real(self, batch))
    session = on_cpu_memory(inference, card, max_batch=4)
    batch = images(10, 8, 8)
    assert np.abs(session.run(batch) - answers["softmax"](batch)).max() < 1e-6
    assert sizes == [3, 3, 4]


# CUDA graphs


def test_graphs_have_an_id_and_an_address_for_each_shape(inference, card, monkeypatch):
    used = []
    real = gpu.Buffers.run

    def run(self, batch, options):
        used.append((options.get_run_config_entry("gpu_graph_id"), id(self)))
        return real(self, batch, None)

    monkeypatch.setattr(gpu, "MAX_GRAPHS", 2)
    monkeypatch.setattr(gpu.Buffers, "run", run)
    session = on_cpu_memory(inference, card, cuda_graphs=True)
    for height in (4, 8, 4, 8, 12, 4):
        session.run(images(1, height, 8))
    assert [number for number, _ in used] == ["1", "2", "1", "2", "-1", "1"]
    assert used[0] == used[2] == used[5] and used[1] == used[3]
    assert len({address for _, address in used}) == 3


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


def test_with_graphs_every_run_is_in_one_thread_since_each_captures_its_own(inference, card, answers, monkeypatch):
    monkeypatch.setattr(module, "DLPACK_CUDA", module.DLPACK_CPU)
    recording = Recording(inference)
    session = on_cpu_memory(recording, card, cuda_graphs=True)
    batch = images(1, 8, 8)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(session.run, [batch] * 12))
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


def test_copying_is_timed_in_the_callers_thread_with_graphs_too(inference, card):
    session, before = on_cpu_memory(inference, card, cuda_graphs=True), module.COPIES.seconds
    session.run(images(1, 8, 8))
    assert module.COPIES.seconds > before


def test_graphs_are_refused_beside_a_build_in_the_background(models, card, tensorrt_stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(providers, "why_not", lambda device: None)
    with pytest.raises(ConfigError, match=r"^cuda_graphs: found True with background=True, and building a TensorRT en"):
        Predictor(models["softmax"], options=ProviderOptions(cuda_graphs=True))
    options = ProviderOptions(cuda_graphs=True, background=False, engine_folder=tmp_path / "engines")
    assert Predictor(models["softmax"], options=options).report.device == "tensorrt:0"
    assert Predictor(models["softmax"], "cuda", options=ProviderOptions(cuda_graphs=True)).report.device == "cuda:0"


# Memory that runs out


@pytest.fixture
def small(inference, card, monkeypatch):
    """A GPU with room for so many pixels; (session, sizes of the batches that it was asked for)."""

    def make(room, message=FULL, **options):
        asked = []
        real = gpu.Engine.run

        def run(self, batch):
            asked.append(len(batch))
            if batch.shape[0] * batch.shape[1] * batch.shape[2] > room:
                raise RuntimeError(message)
            return real(self, batch)

        monkeypatch.setattr(gpu.Engine, "run", run)
        return on_cpu_memory(inference, card, **options), asked

    return make


@pytest.mark.parametrize(
    "message",
    [
        FULL,
        "CUDA failure 2: out of memory ; GPU=0",
        "Available memory of 12 is smaller than requested bytes of 99",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_full_gpu_gets_half_the_batch_and_remembers(small, answers, message):
    session, asked = small(3 * 64, message)
    batch = images(8, 8, 8)
    assert np.abs(session.run(batch) - answers["softmax"](batch)).max() < 1e-6
    assert asked == [8, 4, 2, 2, 2, 2]
    session.run(images(3, 8, 8))
    session.run(images(3, 4, 8))
    assert asked[6:] == [1, 2, 3]


def test_one_image_that_does_not_fit_is_a_device_error(small):
    session, asked = small(63)
    with pytest.raises(DeviceError) as caught:
        session.run(images(2, 8, 8))
    assert asked == [2, 1]
    assert str(caught.value) == (
        "device cuda:0: has too little memory for one image of 8x8; predict it in tiles or smaller, or free memory on "
        "the GPU (see nvidia-smi)"
    )
    assert session.run(images(2, 4, 4)).shape == (2, 3, 4, 4)


def test_another_failure_is_not_tried_again(small):
    session, asked = small(0, "CUDA failure 700: an illegal memory access was encountered")
    with pytest.raises(DeviceError, match=r"cannot run a batch of \[4, 8, 8, 3\] \(CUDA failure 700"):
        session.run(images(4, 8, 8))
    assert asked == [4]


# TensorRT


@pytest.fixture
def engine(inference, card):
    """A TensorRT session on the CPU's memory, and the profiles that it had engines built for."""

    def make(**options):
        built = []

        def open_for(profile):
            built.append(profile)
            return TensorRtSession(inference, TRT, card, ProviderOptions(**options), profile, open_for, memory="cpu")

        return open_for(PROFILE), built

    return make


def test_engine_runs_its_profile_and_larger_batches_in_parts(engine, answers):
    session, built = engine(max_batch=4)
    for batch in (images(1, 64, 96), images(9, 5, 7), images(1, 1, 3)):
        assert session.takes(batch.shape[:3])
        assert np.abs(session.run(batch) - answers["softmax"](batch)).max() < 1e-6
    assert built == [PROFILE]


def test_engine_refuses_other_shapes(engine):
    session, built = engine(max_batch=4)
    assert not session.takes((1, 65, 96))
    with pytest.raises(DeviceError, match=r"height of the batch: found 65, the TensorRT engine takes 4 to 64; give"):
        session.run(images(1, 65, 96))
    assert built == [PROFILE]


def test_engine_is_rebuilt_where_that_is_allowed_and_once_for_all_threads(engine, answers):
    session, built = engine(max_batch=4, allow_rebuild=True)
    batch = images(2, 70, 90)
    assert session.takes((1, 5000, 5000))
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(session.run, [batch] * 8):
            assert np.abs(answer - answers["softmax"](batch)).max() < 1e-6
    assert [profile.high for profile in built] == [(4, 64, 96), (4, 70, 96)]
    session.run(images(1, 64, 96))
    assert len(built) == 2


def test_engine_that_was_closed_while_it_was_rebuilt_stays_closed(inference, card):
    session, began, go, built = None, threading.Event(), threading.Event(), []

    def reopen(profile):
        built.append(profile)
        began.set()
        assert go.wait(10)
        return TensorRtSession(inference, TRT, card, options, profile, reopen, memory="cpu")

    options = ProviderOptions(allow_rebuild=True)
    session = TensorRtSession(inference, TRT, card, options, PROFILE, reopen, memory="cpu")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(session.run, images(1, 70, 90)) for _ in range(2)]
        assert began.wait(10)
        session.close()
        go.set()
        for run in waiting:
            with pytest.raises(DeviceError, match="the session is closed"):
                run.result()
    with pytest.raises(DeviceError, match="the session is closed"):
        session.run(images(1, 8, 8))
    assert len(built) == 1


def test_auto_hands_tensors_that_the_engine_does_not_take_whole_to_the_other_one(inference, card, answers, monkeypatch):
    monkeypatch.setattr(module, "DLPACK_CUDA", module.DLPACK_CPU)
    options = ProviderOptions(max_batch=4)
    engine = TensorRtSession(inference, TRT, card, options, PROFILE, lambda profile: None, memory="cpu")
    used, other = [], on_cpu_memory(inference, card)
    auto = AutoSession(best=engine, open_other=lambda: used.append(1) or other)
    for shape, others in [((4, 8, 8), 0), ((5, 8, 8), 1), ((1, 3, 8), 1)]:  # one too many, one that needs padding
        batch = images(*shape)
        assert auto.run(batch).shape == (shape[0], 3, *shape[1:]) and engine.takes(shape)
        assert np.abs(np.from_dlpack(auto.run_dlpack(batch)) - answers["softmax"](batch)).max() < 1e-6
        assert len(used) == others
    with pytest.raises(
        DeviceError, match=r"^images of the batch: found 5, the TensorRT engine takes 1 to 4; give Prov"
    ):
        engine.run_dlpack(images(5, 8, 8))


@pytest.fixture
def tensorrt_stand_in(models, card, monkeypatch, tmp_path):
    """Open "TensorRT": the real code around a CPU session that writes an engine into the folder it is told."""
    told = []

    def infer(path, device, chain, options):
        options_told = chain[0][1] if device.kind == "tensorrt" else {}
        if "trt_engine_cache_path" in options_told:
            told.append(options_told)
            folder = gpu.Path(options_told["trt_engine_cache_path"])
            if not (folder / "unet.engine").exists():
                (folder / "unet.engine").write_bytes(b"engine")
        return open_inference(path, CPU, [("CPUExecutionProvider", {})], options)

    real = CudaSession.__init__
    monkeypatch.setattr(
        CudaSession, "__init__", lambda self, *args, memory=None, **named: real(self, *args, memory="cpu", **named)
    )
    monkeypatch.setattr(module, "open_inference", infer)
    monkeypatch.setattr(gpu, "gpu_facts", lambda index: {"gpu": "Some GPU", "driver": "1"})
    return told


def test_engine_is_built_with_notes_then_loaded_in_silence(models, card, tensorrt_stand_in, tmp_path):
    notes, options = [], ProviderOptions(engine_folder=tmp_path / "engines")
    for _ in range(2):
        assert module.must_build(models["softmax"], TRT, card, options) is (not notes)
        session = open_session(models["softmax"], TRT, card, options, note=notes.append)
        assert session.run(images(1, 8, 12)).shape == (1, 3, 8, 12)
    assert notes == [
        "device tensorrt:0: building the TensorRT engine of softmax.onnx: begins, and takes seconds to minutes",
        "device tensorrt:0: building the TensorRT engine of softmax.onnx: done in 0 s",
    ]
    assert ["trt_timing_cache_enable" in told for told in tensorrt_stand_in] == [True, False]
    assert not module.must_build(models["softmax"], GPU, card, options)


def test_cached_engine_that_answers_wrongly_is_built_anew_once(models, card, tensorrt_stand_in, tmp_path):
    options, wrong = ProviderOptions(engine_folder=tmp_path / "engines"), []
    open_session(models["softmax"], TRT, card, options, note=print)

    def check(run):
        if not wrong:
            wrong.append(1)
            raise DeviceError("answers the golden sample wrongly")

    notes = []
    open_session(models["softmax"], TRT, card, options, note=notes.append, check=check)
    assert "is not taken (answers the golden sample wrongly); it is built anew" in notes[0]
    assert len(tensorrt_stand_in) == 3


@pytest.mark.parametrize(
    ("message", "builds"),
    [
        ("TensorRT EP could not deserialize engine from cache: /x", 2),
        ("TensorRT EP failed to create context", 2),
        ("TensorRT EP execution context enqueue failed.", 2),
        ("/home/user/.cache/unet-deploy/engines/x: Permission denied", 1),
        (FULL, 1),
        ("could not deserialize engine: CUDA failure 2: out of memory", 1),
        ("device tensorrt:0: 2 nodes would run elsewhere: {'Conv on CPUExecutionProvider': 2}", 1),
    ],
)
def test_only_an_error_about_the_engine_costs_a_build(models, card, tensorrt_stand_in, tmp_path, message, builds):
    options, errors, notes = ProviderOptions(engine_folder=tmp_path / "engines"), [RuntimeError(message)], []
    open_session(models["softmax"], TRT, card, options, note=notes.append)

    def check(run):
        if errors:
            raise errors.pop()

    with pytest.raises(RuntimeError) if builds == 1 else contextlib.nullcontext():
        open_session(models["softmax"], TRT, card, options, note=notes.append, check=check)
    assert len([note for note in notes if note.endswith("minutes")]) == builds


def test_what_keeps_an_engine_from_being_looked_for_is_left_to_opening(models, card, tensorrt_stand_in, tmp_path):
    assert not module.must_build(tmp_path / "gone.onnx", TRT, card, ProviderOptions())


# auto


def test_auto_serves_on_cuda_while_the_engine_builds_and_says_when_it_switches(
    models, tensorrt_stand_in, monkeypatch, answers, caplog
):
    go, real = threading.Event(), opening.open_session
    served = []

    def slowly(path, device, card, options, **named):
        if device.kind == "tensorrt":
            assert go.wait(30)
        return real(path, device, card, options, **named)

    real_run = CudaSession.run
    monkeypatch.setattr(
        CudaSession, "run", lambda self, batch: served.append(self.device.kind) or real_run(self, batch)
    )
    monkeypatch.setattr(providers, "why_not", lambda device: None)
    monkeypatch.setattr(opening, "open_session", slowly)
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


def test_build_that_fails_in_the_background_stays_on_cuda_with_the_reason(models, tensorrt_stand_in, monkeypatch):
    real = opening.open_session

    def fail(path, device, card, options, **named):
        if device.kind == "tensorrt":
            raise RuntimeError("TensorRT EP failed to create engine\nfrom network")
        return real(path, device, card, options, **named)

    monkeypatch.setattr(providers, "why_not", lambda device: None)
    monkeypatch.setattr(opening, "open_session", fail)
    model = Predictor(models["softmax"])
    model.prepare()
    assert model.report.device == "cuda:0"
    assert model.report.switch == (
        "stayed on cuda:0, since tensorrt:0 failed: device tensorrt:0: ONNX Runtime cannot run the model "
        "(TensorRT EP failed to create engine from network)"
    )
    assert model.run(images(1, 8, 12)).shape == (1, 3, 8, 12)


def test_without_background_the_engine_is_built_first(models, tensorrt_stand_in, monkeypatch):
    monkeypatch.setattr(providers, "why_not", lambda device: None)
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
    with pytest.raises(DeviceError, match="the session is closed"):
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
from runtime.session import AutoSession

def build():
    time.sleep(0.5)
    print("built", flush=True)
    raise ValueError("no engine")

AutoSession(open_other=None).build(build, lambda best, reason: print(reason, flush=True))
"""


def test_program_does_not_end_inside_a_build(root):
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "built\nno engine\n" and done.stderr == ""


# Progress


def test_something_long_is_never_silent():
    notes = []
    with telling("building", notes.append, every=0.02):
        time.sleep(0.2)
    assert notes[0] == "building: begins, and takes seconds to minutes"
    assert len(notes) >= 4 and set(notes[1:-1]) == {"building: still at it after 0 s"}
    assert notes[-1] == "building: done in 0 s"
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_failure_of_something_long_is_told():
    notes = []
    with pytest.raises(ValueError), telling("building", notes.append):
        raise ValueError
    assert notes[1:] == ["building: failed after 0 s"]


# With a device


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_cuda_keeps_buffers_and_graphs(cuda, models, card, answers, graphs):
    session = open_session(models["softmax"], cuda, card, ProviderOptions(cuda_graphs=graphs), note=print)
    for seed in range(3):
        for size in [(8, 8), (16, 24), (5, 7)]:
            batch = images(2, *size, seed=seed)
            assert np.abs(session.run(batch) - answers["softmax"](batch)).max() < 1e-3


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


@pytest.mark.gpu
def test_gpu_memory_limit_is_felt(cuda, models, card):
    session = open_session(models["conv"], cuda, card, ProviderOptions(gpu_mem_limit=64 * 2**20), note=print)
    with pytest.raises(DeviceError, match="has too little memory for one image of 8000x8000"):
        session.run(np.zeros((1, 8000, 8000, 3), np.uint8))
    assert session.run(images(1, 8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_tensorrt_engine_is_kept_and_loaded(tensorrt, models, make_card, answers, tmp_path):
    card = dataclasses.replace(make_card("conv"), name="conv")
    options, notes = ProviderOptions(engine_folder=tmp_path / "engines"), []
    for _ in range(2):
        session = open_session(models["conv"], tensorrt, card, options, note=notes.append)
        batch = images(2, 8, 12)
        assert np.abs(session.run(batch) - answers["conv"](batch)).max() < 2e-2
    assert notes[-1].endswith(" s") and len([note for note in notes if "begins" in note]) == 1
