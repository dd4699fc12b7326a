"""Sessions: the CPU for real; the GPU's buffers and bindings on CPU memory; full memory, switching, progress."""

import dataclasses
import gc
import threading
import time
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


def test_pool_lends_to_one_at_a_time_and_keeps_the_last_used():
    made = []
    pool = Pool(lambda key: made.append(key) or [key], limit=2)
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


def test_graphs_are_used_by_one_thread_at_a_time(inference, card, monkeypatch):
    busy, most = [], []

    def run(self, batch, options):
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.005)
        busy.pop()
        return np.zeros((1, 3, 8, 8), np.float32)

    monkeypatch.setattr(gpu.Buffers, "run", run)
    session = on_cpu_memory(inference, card, cuda_graphs=True)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(session.run, [images(1, 8, 8)] * 12))
    assert max(most) == 1


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
    auto._builder.join(10)
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
def test_cuda_takes_and_gives_dlpack(cuda, models, card, answers):
    session = open_session(models["softmax"], cuda, card, ProviderOptions(), note=print)
    batch = images(1, 8, 12)
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
