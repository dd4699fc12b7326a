"""Tiny ONNX models made by hand, whose answers can be worked out with pencil and numpy, and where they run."""

import contextlib
import ctypes
import dataclasses
import gc
import signal
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from answers import one_class, overlapping_classes, three_classes
from click.testing import CliRunner
from devices import CPU
from engine_files import KEY, Builder
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from waiting import our_threads, wait_until

from runtime.card import CARD_KEY, InputSpec, ModelCard, ModuleConfig, OutputSpec, UNetConfig
from runtime.commands import system_info
from runtime.commands.predict import predict
from runtime.devices import availability, backend, engine_facts, nvidia
from runtime.devices import cuda as cuda_module
from runtime.devices.device import Device
from runtime.devices.session import open_inference, session_options
from runtime.engine_store.engine_cache import EngineCache
from runtime.model_file.digest import DIGEST_KEY, seal
from runtime.model_file.golden import GOLDEN_KEY, Golden, golden_image
from runtime.options import ProviderOptions
from runtime.support import cpu_count

OPSET, IR = 20, 10
RANDOM = np.random.default_rng(7)
CONV_A = RANDOM.normal(0, 0.4, (4, 3, 3, 3)).astype(np.float32)
CONV_B = RANDOM.normal(0, 1.0, (1, 4, 1, 1)).astype(np.float32)


def brightness_of(images):
    """Mean over the channels / 255: uint8 [n, h, w, c] -> float32 [n, 1, h, w]."""
    return (images.astype(np.float32).mean(axis=3, dtype=np.float32) / np.float32(255))[:, None]


def softmax_of(images):
    """Softmax over the channels * 8 / 255: uint8 [n, h, w, 3] -> float32 [n, 3, h, w]."""
    logits = images.astype(np.float64).transpose(0, 3, 1, 2) * 8 / 255
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def sigmoids_of(images):
    """Sigmoid of each channel * 8 / 255 - 4: uint8 [n, h, w, 3] -> float32 [n, 3, h, w]; 0.5 between 127 and 128."""
    logits = images.astype(np.float64).transpose(0, 3, 1, 2) * 8 / 255 - 4
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def conv_of(images):
    """Conv 3x3, ReLU, Conv 1x1, sigmoid: uint8 [n, h, w, 3] -> float32 [n, 1, h, w]."""
    values = np.pad(images.astype(np.float64) / 255, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(1, 2))  # [n, h, w, c, 3, 3]
    hidden = np.maximum(np.einsum("nhwcij,ocij->nohw", windows, CONV_A), 0)
    logits = np.einsum("nchw,oc->nohw", hidden, CONV_B[:, :, 0, 0])
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def constant(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


SCALE = [
    helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
    helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
    helper.make_node("Div", ["planes", "full"], ["unit"]),
]

NODES = {
    "brightness": [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "last"], ["mean"], keepdims=1),
        helper.make_node("Div", ["mean", "full"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["probability"], perm=[0, 3, 1, 2]),
    ],
    "softmax": [
        *SCALE,
        helper.make_node("Mul", ["unit", "eight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probability"], axis=1),
    ],
    "sigmoids": [
        *SCALE,
        helper.make_node("Mul", ["unit", "eight"], ["spread"]),
        helper.make_node("Sub", ["spread", "four"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probability"]),
    ],
    "conv": [
        *SCALE,
        helper.make_node("Conv", ["unit", "conv_a"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv_b"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["probability"]),
    ],
}
CONSTANTS = {
    "full": constant("full", np.float32(255)),
    "last": constant("last", np.array([3], np.int64)),
    "eight": constant("eight", np.float32(8)),
    "four": constant("four", np.float32(4)),
    "conv_a": constant("conv_a", CONV_A),
    "conv_b": constant("conv_b", CONV_B),
}
ANSWERS = {"brightness": brightness_of, "softmax": softmax_of, "sigmoids": sigmoids_of, "conv": conv_of}
THREE_CLASSES = ("softmax", "sigmoids")
"""Models with a class for each channel."""


def build_graph(
    kind="brightness",
    channels=3,
    image="image",
    probability="probability",
    kind_of_input=None,
    sizes=("batch", "h", "w"),
):
    """The bare ONNX model, without metadata; the names of its input and output can be wrong on purpose."""
    batch, height, width = sizes
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in NODES[kind]]
    for node in nodes:
        node.input[:] = [image if name == "image" else name for name in node.input]
        node.output[:] = [probability if name == "probability" else name for name in node.output]
    used = {name for node in nodes for name in node.input}
    classes = 3 if kind in THREE_CLASSES else 1
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info(image, kind_of_input or TensorProto.UINT8, [*sizes, channels])],
        [helper.make_tensor_value_info(probability, TensorProto.FLOAT, [batch, classes, height, width])],
        [value for name, value in CONSTANTS.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def card_of(kind="brightness", channels=3, *, raw=False, **input_changes):
    """A card for one of the models; its keywords change fields of `InputSpec`. Channels may be `raw`, as many are."""
    classes = ("red", "green", "blue") if kind in THREE_CLASSES else ("car",)
    spec = {
        "size": (8, 12),
        "channels": "raw" if raw else {1: "L", 3: "RGB"}.get(channels, "raw"),
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "fit": "native",
        "stride": 4,
    }
    spec |= input_changes
    dimensions = {"in_channels": channels, "classes": len(classes)}
    is_unet = spec["channels"] != "raw" and spec["stride"] == 4
    return ModelCard(
        name=kind,
        producer={"tests": "1"},
        architecture=UNetConfig(**dimensions, widths=(2, 4)) if is_unet else ModuleConfig(**dimensions, name="net.Net"),
        input=InputSpec(**spec),
        output=OutputSpec(classes=classes, activation=kind if kind in THREE_CLASSES else "sigmoid"),
        weights_sha256="0" * 64,
    )


def golden_of(kind="brightness", channels=3, size=None):
    image = golden_image(channels)
    return Golden.made(image if size is None else image[: size[0], : size[1]].copy(), ANSWERS[kind], size)


@pytest.fixture
def no_collector():
    """Turn the collector off: objects without a reference go at once, circles stay."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def answers():
    """{kind of model: numpy function of uint8 [n, h, w, c]}."""
    return ANSWERS


@pytest.fixture(scope="session")
def make_card():
    return card_of


@pytest.fixture(scope="session")
def make_golden():
    return golden_of


@pytest.fixture(scope="session")
def make_graph():
    return build_graph


def save_model(path, kind="brightness", *, channels=3, threshold=0.5, metadata=None, graph=None, **input_changes):
    """Write a model with card, golden sample and digest; `metadata` overrides entries, None drops one."""
    card = card_of(kind, channels, **input_changes)
    fixed = card.input.fixed_shape
    model = graph or (build_graph(kind, channels) if fixed is None else build_graph(kind, channels, sizes=fixed))
    card = dataclasses.replace(card, output=dataclasses.replace(card.output, threshold=threshold))
    golden = golden_of(kind, channels, card.input.fixed_size)
    entries = {CARD_KEY: card.to_json(), GOLDEN_KEY: golden.to_json()} | (metadata or {})
    helper.set_model_props(model, {key: value for key, value in entries.items() if value is not None})
    onnx.save(model, path)
    if DIGEST_KEY not in entries:
        seal(path)
    return path


@pytest.fixture
def write_model(tmp_path):
    """Write a model to `tmp_path / name`; see `save_model`."""

    def write(kind="brightness", name="model.onnx", **changes):
        return save_model(tmp_path / name, kind, **changes)

    return write


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """{kind: path} of the three models as they should be, with fit "native"."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_model(folder / f"{kind}.onnx", kind) for kind in NODES}


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures of different sizes; the value of a pixel is its grey level in all channels."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, size in (("a.png", (3, 5)), ("b.bmp", (1, 1)), ("c.tif", (8, 12))):
        grey = np.random.default_rng(len(name) + size[1]).integers(0, 256, size, np.uint8)
        Image.fromarray(np.dstack([grey] * 3)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run_predict(models, out):
    """Run unet-predict on the CPU with the brightness model."""

    def call(*arguments, model=None, device="cpu", to=out):
        named = [model or models["brightness"], *arguments, "-o", to, "--device", device]
        return CliRunner().invoke(predict, [str(item) for item in named])

    return call


@pytest.fixture
def row(tmp_path):
    """One picture of three pixels, of brightness 0, 100 and 200 of 255."""
    Image.fromarray(np.array([[[0] * 3, [100] * 3, [200] * 3]], np.uint8)).save(tmp_path / "row.png")
    return tmp_path / "row.png"


@pytest.fixture
def quota(monkeypatch):
    """Give this process's cgroup so many cores, or None."""

    def give(limit):
        monkeypatch.setattr(cpu_count, "own_quota", lambda: limit)
        monkeypatch.setattr(system_info, "own_quota", lambda: limit)

    return give


@pytest.fixture
def no_gpu():
    """For tests of what a machine without an NVIDIA driver says."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    pytest.skip("this machine has an NVIDIA driver")


@pytest.fixture
def cpu_build(monkeypatch):
    """Pretend that ONNX Runtime is built for the CPU alone, and that nothing was warned of yet."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(nvidia, "is_present", lambda: True)  # so that there is something to warn of
    availability.warn_once.cache_clear()
    yield
    availability.warn_once.cache_clear()


@pytest.fixture
def cuda():
    """The first GPU, or skip with the reason that the library gives."""
    return _device_or_skip("cuda")


@pytest.fixture
def tensorrt():
    return _device_or_skip("tensorrt")


def _device_or_skip(kind):
    device = Device(kind=kind)
    reason = availability.unavailable_reason(device)
    if reason:
        pytest.skip(f"{device}: {reason}")
    return device


@pytest.fixture(scope="session")
def root():
    """The repository, to start fresh Python processes in."""
    return Path(__file__).parents[2]


@pytest.fixture
def interrupted():
    """A context manager: Ctrl-C comes 50 ms into its block, which must end by it within a second."""

    @contextlib.contextmanager
    def block():
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        start = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - start < 1

    return block


@pytest.fixture
def no_thread_left():
    """None of our threads is there at the end of the test, and soon no other one that was not there before."""
    before = threading.active_count()
    yield
    assert our_threads() == []
    wait_until(lambda: threading.active_count() <= before)


@pytest.fixture
def single():
    """A result of one class."""
    return one_class()


@pytest.fixture
def several():
    """A result of three classes."""
    return three_classes()


@pytest.fixture
def overlapping():
    """A result of three classes that overlap."""
    return overlapping_classes()


@pytest.fixture
def cache(tmp_path):
    """An engine cache whose folder is not there yet."""
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def notes():
    """The lines that users were told."""
    return []


@pytest.fixture
def ready(cache, notes):
    """A cache with one engine."""
    assert cache.open(KEY, {"model": "m.onnx"}, Builder(), notes.append) == b"engine"
    assert notes == []
    return cache


@pytest.fixture
def inference(models):
    """ONNX Runtime's session of the softmax model on the CPU."""
    chain = [("CPUExecutionProvider", {})]
    return open_inference(models["softmax"], CPU, chain, session_options(1, ProviderOptions()))


@pytest.fixture
def card(make_card):
    """The card of the softmax model."""
    return make_card("softmax")


@pytest.fixture
def tensorrt_stand_in(models, card, monkeypatch, tmp_path):
    """Open "TensorRT": the real code around a CPU session that writes an engine into the folder it is told."""
    told = []

    def infer(path, device, chain, options):
        options_told = chain[0][1] if device.kind == "tensorrt" else {}
        if "trt_engine_cache_path" in options_told:
            told.append(options_told)
            folder = Path(options_told["trt_engine_cache_path"])
            if not (folder / "unet.engine").exists():
                (folder / "unet.engine").write_bytes(b"engine")
        return open_inference(path, CPU, [("CPUExecutionProvider", {})], options)

    real = cuda_module.CudaSession.__init__
    monkeypatch.setattr(
        cuda_module.CudaSession,
        "__init__",
        lambda self, *args, memory=None, **named: real(self, *args, memory="cpu", **named),
    )
    monkeypatch.setattr(backend, "open_inference", infer)
    monkeypatch.setattr(engine_facts, "gpu_facts", lambda index: {"gpu": "Some GPU", "driver": "1"})
    return told
