"""OpenVINO as a device: its answers, its sizes, its threads, its memory, and what it must not do by itself."""

import ctypes
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from devices import images

from runtime.devices import openvino
from runtime.devices.availability import candidates
from runtime.devices.openvino import CompiledModel, OpenVinoSession, reason_of
from runtime.errors import ClosedError, ConfigError, DeviceError, ImageError
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from runtime.support.signal_stack import DISABLED, SignalStack

FILES = Path(__file__).parents[2] / "data/v0.1/models"
SIZE = (32, 48)  # of their cards

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino, which is no dependency")


def model(kind):
    return FILES / f"{kind}.onnx"


@pytest.fixture(scope="module")
def fp32():
    with Predictor(model("fp32"), "openvino") as predictor:
        yield predictor


def in_process(code, *arguments, **environment):
    """Run a program with the code of this checkout, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8-u8", "several", "grey", "opset18"])
def test_answers_are_those_of_the_cpu(kind):
    with Predictor(model(kind), "openvino") as predictor, Predictor(model(kind), "cpu") as other:
        tolerance = predictor.report.golden_limit
        assert predictor.report.golden_error <= tolerance
        channels = predictor.card.architecture.in_channels
        for shape in ((1, *SIZE), (3, *SIZE), (2, 31, 77), (1, 1, 1)):
            batch = images(*shape)[..., :channels]
            assert np.abs(predictor.run(batch) - other.run(batch)).max() <= tolerance, shape


def test_report_says_what_computes_and_in_which_arithmetic(fp32):
    report = fp32.report
    assert (report.requested, report.device, report.provider) == ("openvino", "openvino", "OpenVINO")
    assert report.engine.startswith("OpenVINO 20") and "-" not in report.engine
    assert set(report.nodes) == {"OpenVINO in f32", "OpenVINO in i32", "OpenVINO in u8"}
    convolutions = [node for node in report.node_placement if node.operator == "Convolution"]
    assert len(convolutions) > 5 and {node.provider for node in convolutions} == {"OpenVINO in f32"}
    with Predictor(model("int8-u8"), "openvino") as predictor:
        kinds = [node.provider for node in predictor.report.node_placement if node.operator == "Convolution"]
    assert kinds.count("OpenVINO in u8") > 5
    with Predictor(model("fp32"), "cpu") as predictor:
        assert predictor.report.engine.startswith("ONNX Runtime 1.")


@pytest.mark.parametrize("kind", ["fp32", "int8-u8"])
def test_an_answer_depends_neither_on_its_neighbours_nor_on_the_past(kind):
    for size in (SIZE, (40, 56), (31, 77)):
        batch = images(4, *size)
        answers = []
        for before in ((), ((2, *SIZE), (1, 40, 56), (3, 31, 77))):
            with Predictor(model(kind), "openvino", options=ProviderOptions(fixed_sizes=((40, 56),))) as predictor:
                for shape in before:
                    predictor.run(images(*shape, seed=1))
                answers += [predictor.run(batch), np.concatenate([predictor.run(one[None]) for one in batch])]
        assert all(np.array_equal(answers[0], answer) for answer in answers[1:]), size


def test_known_sizes_get_models_of_their_own(monkeypatch):
    asked, compiled = [], OpenVinoSession._compiled
    monkeypatch.setattr(OpenVinoSession, "_compiled", lambda self, size: (asked.append(size), compiled(self, size))[1])
    options = ProviderOptions(fixed_sizes=["64x48", (40, 56)])
    assert options.fixed_sizes == ((48, 64), (40, 56))
    with Predictor(model("fp32"), "openvino", options=options) as predictor:
        assert asked == [None]
        for size in (SIZE, (64, 48), (48, 64), SIZE, (20, 20)):
            predictor.run(images(2, *size))
        assert asked == [None, SIZE, (48, 64)]
        predictor.prepare()
        assert asked == [None, SIZE, (48, 64), (40, 56)]


def test_a_model_of_one_size_that_answers_otherwise_is_refused(monkeypatch):
    with Predictor(model("fp32"), "openvino") as predictor:
        run = CompiledModel.run
        monkeypatch.setattr(CompiledModel, "run", lambda self, batch: run(self, batch) + 0.01 * (batch.shape[1] == 32))
        free = predictor._model.session._inference
        monkeypatch.setattr(free, "run", lambda batch: run(free, batch))
        with pytest.raises(DeviceError) as caught:
            predictor.run(images(1, *SIZE))
        assert str(caught.value) == (
            "device openvino: compiled for 48x32, the model answers a picture otherwise than for free sizes "
            "(off by 0.01); update OpenVINO, or take another device"
        )


def test_threads_never_mix_their_answers(fp32):
    batches = [images(1, *((32, 48), (31, 77), (16, 16))[place % 3], seed=place) for place in range(96)]
    expected = [fp32.run(batch) for batch in batches]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(fp32.run, batches))
    assert all(np.array_equal(answer, one) for answer, one in zip(answers, expected, strict=True))


def test_a_model_that_failed_is_compiled_again(fp32):
    free = fp32._model.session._inference
    expected = free.run(images(1, 20, 20))
    for wrong in (images(1, 20, 20)[..., :2], images(1, 20, 20).astype(np.float32), images(0, 20, 20)):
        with pytest.raises(RuntimeError):
            free.run(wrong)
        assert free._request is None
        assert np.array_equal(free.run(images(1, 20, 20)), expected)


def test_the_shape_of_an_answer_is_checked(fp32, monkeypatch):
    free = fp32._model.session._inference
    request = free._request
    other = images(1, 8, 8)

    class Stale:
        """A request that answers another picture, as OpenVINO's does after an error that it did not tell."""

        def set_tensor(self, _, __):
            request.set_tensor("image", openvino.openvino().Tensor(other))

        start_async, wait, get_tensor = request.start_async, request.wait, request.get_tensor

    monkeypatch.setattr(free, "_request", Stale())
    with pytest.raises(
        DeviceError, match=r"^device openvino: cannot run a batch of \[1, 20, 20, 3\] \(the answer has "
    ):
        fp32.run(images(1, 20, 20))
    assert free._request is None


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "uint8 [0, 8, 8, 3]"),
        (np.zeros((1, 8, 8, 4), np.uint8), "uint8 [1, 8, 8, 4]"),
        (np.zeros((8, 8, 3), np.uint8), "uint8 [8, 8, 3]"),
        (np.zeros((1, 8, 8, 3), np.float32), "float32 [1, 8, 8, 3]"),
    ],
)
def test_other_arrays_never_reach_openvino(fp32, batch, found):
    with pytest.raises(ImageError) as caught:
        fp32._model.session.run(batch)
    assert str(caught.value) == f"batch: found {found}, expected uint8 [batch, height, width, 3]"


def test_dlpack_and_a_closed_session():
    predictor = Predictor(model("fp32"), "openvino")
    batch = images(2, 20, 20)
    assert np.array_equal(np.from_dlpack(predictor.run_dlpack(batch)), predictor.run(batch))
    session = predictor._model.session
    predictor.close()
    for use in (session.run, session.run_dlpack):
        with pytest.raises(ClosedError, match=r"^predictor: is closed; open another one$"):
            use(batch)


@pytest.mark.parametrize(
    ("kind", "device", "message"),
    [
        (
            "int8-s8",
            "openvino",
            " openvino: computes int8 values with a sign wrongly; export the model with --for cpu",
        ),
        (
            "cpu",
            "openvino",
            " openvino: cpu.onnx is written for CPUs and ONNX Runtime; take the file without --target cpu",
        ),
        ("fp32", "openvino:GPU", " openvino:GPU: OpenVINO finds no GPU here (found CPU)"),
        ("fp32", "OpenVINO:npu", " openvino:NPU: OpenVINO finds no NPU here (found CPU)"),
        (
            "fp32",
            "openvino:tpu",
            " 'openvino:tpu': expected auto, gpu, gpu:N, cpu, openvino, cuda, cuda:N, tensorrt or tensorrt:N",
        ),
    ],
)
def test_what_openvino_does_not_take_is_refused_with_the_reason(kind, device, message, monkeypatch):
    core = openvino.core()

    class CpuOnly:
        available_devices = ("CPU",)

        def __getattr__(self, name):
            return getattr(core, name)

    monkeypatch.setattr(openvino, "core", CpuOnly)
    with pytest.raises(DeviceError) as caught:
        Predictor(model(kind), device)
    assert str(caught.value) == f"device{message}"


def test_arithmetic_that_openvino_chose_itself_is_refused(monkeypatch):
    settings = openvino.settings
    monkeypatch.setattr(openvino, "settings", lambda *asked: {**settings(*asked), "INFERENCE_PRECISION_HINT": "f16"})
    with pytest.raises(DeviceError, match=r"OpenVINO computes in (f16|bf16|dynamic) here, expected f32"):
        Predictor(model("fp32"), "openvino")


def test_threads_and_pinning_reach_openvino():
    options = ProviderOptions(pinned=True)
    with Predictor(model("fp32"), "openvino", threads=1, options=options) as predictor:
        compiled = predictor._model.session._inference._request.get_compiled_model()
        asked = ("INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING", "NUM_STREAMS")
        found = [compiled.get_property(name) for name in asked]
    assert found == [1, True, 1]


def test_other_processors_get_no_properties_of_the_cpus_threads():
    for unit in ("GPU", "NPU"):
        found = openvino.settings(unit, 2, ProviderOptions())
        assert found == {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}


# device="auto"


def test_auto_takes_openvino_for_int8_files_on_processors_made_for_them(monkeypatch):
    monkeypatch.setattr(openvino, "has_vnni", lambda: True)
    for kind, device in (("int8-u8", "openvino"), ("fp32", "cpu"), ("fp16", "cpu"), ("cpu", "cpu")):
        with Predictor(model(kind)) as predictor:
            assert predictor.report.device == device, kind
            assert "openvino" not in dict(predictor.report.skipped)
    monkeypatch.setattr(openvino, "has_vnni", lambda: False)
    with Predictor(model("int8-u8")) as predictor:
        assert predictor.report.device == "cpu"


def test_without_openvino_auto_says_nothing_and_a_name_says_what_to_install(monkeypatch):
    monkeypatch.setattr(openvino, "has_vnni", lambda: True)
    monkeypatch.setattr(openvino, "find_spec", lambda _: None)
    with Predictor(model("int8-u8")) as predictor:
        assert predictor.report.device == "cpu" and "openvino" not in dict(predictor.report.skipped)
    with pytest.raises(DeviceError) as caught:
        Predictor(model("int8-u8"), "openvino")
    assert str(caught.value) == (
        "device openvino: OpenVINO is not installed; install unet-deploy with its extra [openvino], or pip install "
        "openvino"
    )


def test_an_openvino_that_cannot_be_loaded_is_skipped_by_auto_and_named(monkeypatch):
    def broken():
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(openvino, "has_vnni", lambda: True)
    monkeypatch.setattr(openvino, "openvino", broken)
    reason = (
        "OpenVINO is installed, but cannot be loaded (libtbb.so.12: cannot open shared object file); install it again, "
        "or remove it"
    )
    with Predictor(model("int8-u8")) as predictor:
        assert predictor.report.device == "cpu" and dict(predictor.report.skipped)["openvino"] == reason
    with pytest.raises(DeviceError) as caught:
        Predictor(model("int8-u8"), "openvino")
    assert str(caught.value) == f"device openvino: {reason}"


def test_names():
    assert [str(*candidates(name)) for name in ("openvino", "OpenVINO:CPU", "openvino:gpu")] == [
        "openvino",
        "openvino",
        "openvino:GPU",
    ]
    assert "openvino" not in [device.kind for device in candidates("gpu")]
    for wrong in ("openvino:", "openvino:0", "openvino:GPU:0"):
        with pytest.raises(DeviceError):
            candidates(wrong)


@pytest.mark.parametrize("sizes", [((1, 1),) * 5, ((0, 8),), (8, 8), "8x8", None, ((8, 8, 8),), ["8"]])
def test_fixed_sizes_are_few_and_sizes(sizes):
    with pytest.raises(
        ConfigError, match=r"^fixed_sizes: found .*, expected a tuple of at most 4 \(height, width\) or 'WxH', each "
    ):
        ProviderOptions(fixed_sizes=sizes)


def test_errors_of_openvino_are_one_line_without_its_sources():
    said = "Exception from src/inference/src/cpp/a.cpp:75:\nCheck 'a > b' failed at src/x/y.cpp:3:\nToo large\n\n"
    assert reason_of(RuntimeError(said)) == "Check 'a > b': Too large"


# The process


def test_nothing_is_written_and_nobody_is_asked(tmp_path):
    code = """
import json, socket, sys
from pathlib import Path
def refuse(*_, **__): raise AssertionError("a socket")
socket.socket.connect = socket.getaddrinfo = refuse
from runtime import Predictor
import numpy as np
Predictor(sys.argv[1], "openvino").run(np.zeros((1, 32, 48, 3), np.uint8))
assert "openvino_telemetry" not in sys.modules
print(json.dumps([str(path) for path in Path.home().rglob("*")]))
"""
    home = tmp_path / "home"
    home.mkdir()
    assert in_process(code, model("fp32"), HOME=str(home), XDG_CACHE_HOME="", XDG_CONFIG_HOME="") == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sigaltstack is called on Linux alone")
def test_this_thread_keeps_its_stack_for_signals():
    """On CPUs with AMX OpenVINO sets one, and frees it when its objects are freed, perhaps on another thread."""
    libc, mine, after = ctypes.CDLL(None), SignalStack(), SignalStack()
    memory = ctypes.create_string_buffer(2**16)
    before = SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    mine.place, mine.size = ctypes.addressof(memory), len(memory)
    assert libc.sigaltstack(ctypes.byref(mine), None) == 0
    try:
        with Predictor(model("fp32"), "openvino", options=ProviderOptions(fixed_sizes=((40, 24),))) as predictor:
            predictor.run(np.zeros((1, 40, 24, 3), np.uint8))
            predictor.run(np.zeros((1, 31, 77, 3), np.uint8))
            libc.sigaltstack(None, ctypes.byref(after))
        assert (after.place, after.size) == (mine.place, mine.size)
    finally:
        before.flags = DISABLED if not before.place else 0
        libc.sigaltstack(ctypes.byref(before), None)


def test_memory_stays_bounded_and_is_given_back():
    code = """
import gc, json, sys
import numpy as np
from runtime import Predictor
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024
predictor, found = Predictor(sys.argv[1], "openvino"), []
sizes = np.random.default_rng(0).integers(32, 600, (200, 2)).tolist()
for place, size in enumerate([[600, 600], *sizes]):
    predictor.run(np.zeros((1, *size, 3), np.uint8))
    if place in (50, 200):
        found.append(resident())
for _ in range(20):
    predictor.close()
    gc.collect()
    found.append(resident())
    predictor = Predictor(sys.argv[1], "openvino")
    predictor.run(np.zeros((1, 600, 600, 3), np.uint8))
    predictor.run(np.zeros((1, 32, 48, 3), np.uint8))
print(json.dumps(found))
"""
    early, late, *closed = in_process(code, model("fp32"))
    assert late < 1.05 * early + 10, (early, late)
    assert min(closed[-6:]) < min(closed[7:13]) + 10, closed  # 20 sessions of 40 MB each


def test_a_fork_opens_its_own():
    code = """
import json, os, sys
import numpy as np
from runtime import Predictor
predictor = Predictor(sys.argv[1], "openvino")
batch = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
expected = predictor.run(batch)
child = os.fork()
if not child:
    os._exit(0 if np.abs(predictor.run(batch) - expected).max() < 1e-6 else 1)
print(json.dumps([os.waitpid(child, 0)[1], bool(np.array_equal(predictor.run(batch), expected))]))
"""
    assert in_process(code, model("fp32")) == [0, True]
