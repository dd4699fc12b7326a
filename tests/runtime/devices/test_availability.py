"""The device that runs: parsing, the order, and not believing what ONNX Runtime claims."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from devices import CPU as CPU_DEVICE
from devices import GPU, TRT, provider_chain

from runtime.devices.availability import candidates, choose
from runtime.devices.device import Device
from runtime.devices.placement import Node, misplaced_nodes, node_placement, placement
from runtime.devices.registry import BACKENDS
from runtime.devices.report import Report, grouped
from runtime.devices.session import open_inference, session_options
from runtime.errors import DeviceError
from runtime.options import ProviderOptions
from runtime.predictor import Predictor

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


class FakeSession:
    """A session that claims `opened` and has nodes where `parts` says: {provider: [operator, ...]}."""

    def __init__(self, parts, opened=(CPU,)):
        self.parts, self.opened = parts, list(opened)

    def get_providers(self):
        return self.opened

    def get_inputs(self):
        return [SimpleNamespace(name="image", type="tensor(uint8)", shape=["n", "h", "w", 3])]

    def get_outputs(self):
        return [SimpleNamespace(name="probability", type="tensor(float)", shape=["n", 1, "h", "w"])]

    def get_provider_graph_assignment_info(self):
        return [
            SimpleNamespace(
                ep_name=name,
                get_nodes=lambda operators=operators: [
                    SimpleNamespace(op_type=operator, name=f"{operator.lower()}_{index}")
                    for index, operator in enumerate(operators)
                ],
            )
            for name, operators in self.parts
        ]


# Parsing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", ["tensorrt:0", "cuda:0", "openvino", "cpu"]),
        ("cpu", ["cpu"]),
        ("cuda", ["cuda:0"]),
        ("cuda:0", ["cuda:0"]),
        ("cuda:12", ["cuda:12"]),
        ("tensorrt", ["tensorrt:0"]),
        ("tensorrt:1", ["tensorrt:1"]),
        ("CUDA", ["cuda:0"]),
        ("gpu", ["tensorrt:0", "cuda:0"]),
        ("GPU:1", ["tensorrt:1", "cuda:1"]),
        (2, ["tensorrt:2", "cuda:2"]),
        ("2", ["tensorrt:2", "cuda:2"]),
        (np.int64(0), ["tensorrt:0", "cuda:0"]),
    ],
)
def test_device_is_parsed(text, expected):
    assert [str(device) for device in candidates(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpu:",
        "1000",
        -1,
        True,
        None,
        "cuda:",
        "cuda:-1",
        "cuda:one",
        "cuda:1:2",
        "cuda:1000",
        "cuda 1",
        "cpu:0",
        "cpu:",
        "auto:0",
        ":1",
    ],
)
def test_nonsense_is_not_a_device(text):
    with pytest.raises(DeviceError) as caught:
        candidates(text)
    assert (
        str(caught.value)
        == f"device {text!r}: expected auto, gpu, gpu:N, cpu, openvino, cuda, cuda:N, tensorrt or tensorrt:N"
    )


# The order


ALL = [TRT, GPU, CPU_DEVICE]


@pytest.mark.parametrize(
    ("works", "late", "tried", "skipped", "left"),
    [
        ([TRT, GPU, CPU_DEVICE], [], [TRT], [], []),
        ([GPU, CPU_DEVICE], [], [TRT, GPU], [TRT], []),
        ([CPU_DEVICE], [], [TRT, GPU, CPU_DEVICE], [TRT, GPU], []),
        ([TRT, GPU, CPU_DEVICE], [TRT], [GPU], [], [TRT]),
        ([TRT, CPU_DEVICE], [TRT], [GPU, TRT], [GPU], []),
        ([CPU_DEVICE], [TRT], [GPU, TRT, CPU_DEVICE], [TRT, GPU], []),
    ],
)
def test_best_device_that_works_is_chosen_and_what_takes_long_comes_later(works, late, tried, skipped, left):
    asked = []

    def attempt(device):
        asked.append(device)
        if device not in works:
            raise DeviceError(f"device {device}: it is raining")
        return str(device)

    chosen, found, refused, build_in_background = choose(ALL, attempt, lambda device: device in late)
    assert asked == tried
    assert (chosen, found) == (tried[-1], str(tried[-1]))
    assert refused == [(device, "it is raining") for device in skipped]
    assert build_in_background == left


def test_device_asked_for_by_name_is_never_put_off_and_its_error_is_told():
    def attempt(device):
        raise DeviceError(f"device {device}: it is raining")

    with pytest.raises(DeviceError, match=r"^device tensorrt:0: it is raining$"):
        choose([TRT], attempt, lambda device: True)


# Placement


def test_nodes_are_named_and_counted_by_provider():
    session = FakeSession([(CUDA, ["Conv", "Relu"]), (CPU, ["Shape"]), (CUDA, ["Sigmoid"])])
    nodes = node_placement(session)
    assert nodes[2] == Node(name="shape_0", operator="Shape", provider=CPU)
    assert placement(nodes) == {CUDA: 3, CPU: 1}


def test_strays_are_heavy_nodes_elsewhere():
    session = FakeSession([(CUDA, ["Conv", "Sigmoid"]), (CPU, ["Shape", "Gather", "Conv", "ConvTranspose", "Conv"])])
    nodes = node_placement(session)
    assert misplaced_nodes(nodes, CUDA) == {f"Conv on {CPU}": 2, f"ConvTranspose on {CPU}": 1}
    assert misplaced_nodes(nodes, CPU) == {f"Conv on {CUDA}": 1, f"Sigmoid on {CUDA}": 1}


def test_what_is_no_arithmetic_on_sizes_must_not_stray_to_the_cpu():
    nodes = node_placement(FakeSession([(CPU, ["InstanceNormalization", "Elu"]), (CUDA, ["Relu", "Gelu"])]))
    expected = {f"InstanceNormalization on {CPU}": 1, f"Elu on {CPU}": 1}
    assert misplaced_nodes(nodes, CUDA) == misplaced_nodes(nodes, TENSORRT) == expected
    assert misplaced_nodes(nodes, CPU) == {}


@pytest.mark.parametrize("operator", ["Shape", "Cast", "Add", "Pad", "Slice", "ReduceProd"])
def test_arithmetic_on_shapes_may_stray(operator):
    assert misplaced_nodes(node_placement(FakeSession([(CPU, [operator])])), CUDA) == {}


@pytest.fixture
def opened(monkeypatch, make_card):
    """Open a session on a device while ONNX Runtime gives back a fake; returns also what it was asked for."""
    asked = {}

    def open_with(session, device):
        def make(path, options, **named):
            asked.update(named, path=path)
            return session

        monkeypatch.setattr(onnxruntime, "InferenceSession", make)
        chain = provider_chain(device, make_card(), ProviderOptions())
        return open_inference(Path("m.onnx"), device, chain, session_options(1)), asked

    return open_with


def test_session_that_fell_back_to_the_cpu_is_refused(opened):
    with pytest.raises(DeviceError) as caught:
        opened(FakeSession([(CPU, ["Conv"])], opened=[CPU]), Device(kind="cuda", index=1))
    assert str(caught.value) == f"device cuda:1: ONNX Runtime opened the model on {CPU} instead"


def test_session_with_strays_is_refused(opened):
    session = FakeSession([(TENSORRT, ["Conv"]), (CUDA, ["Resize", "Resize"])], opened=[TENSORRT, CUDA, CPU])
    with pytest.raises(DeviceError) as caught:
        opened(session, Device(kind="tensorrt"))
    assert str(caught.value) == f"device tensorrt:0: 2 nodes would run elsewhere: {{'Resize on {CUDA}': 2}}"


@pytest.mark.parametrize(
    ("kind", "order"), [("tensorrt", [TENSORRT, CUDA, CPU]), ("cuda", [CUDA, CPU]), ("cpu", [CPU])]
)
def test_providers_are_asked_for_in_order_on_the_same_gpu_and_without_fallback(opened, kind, order):
    session = FakeSession([(order[0], ["Conv"]), (CPU, ["Shape"])], opened=order)
    result, asked = opened(session, Device(kind=kind, index=3))
    assert result is session
    assert [name for name, _ in asked["providers"]] == order
    assert [options.get("device_id") for _, options in asked["providers"]] == ["3"] * (len(order) - 1) + [None]
    assert asked["enable_fallback"] == 0


# The report


def test_report_reads_well():
    report = Report(
        requested="auto",
        device="cpu",
        provider=CPU,
        nodes={CPU: 4, CUDA: 2},
        golden_error=1.25e-7,
        golden_limit=1e-4,
        integrity="verified",
        threads=2,
        onnxruntime="1.31.1",
        skipped=(("tensorrt", "no driver"), ("cuda", "no driver")),
    )
    assert str(report).splitlines() == [
        f"cpu: {CPU}, nodes: 4 on {CPU}, 2 on {CUDA}; golden sample off by 1.2e-07, digest verified",
        "tensorrt and cuda skipped: no driver",
    ]


def test_different_reasons_are_told_apart():
    assert grouped([("tensorrt", "no libnvinfer"), ("cuda", "no driver")]) == [
        "tensorrt skipped: no libnvinfer",
        "cuda skipped: no driver",
    ]


# This machine


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "tensorrt"])
def test_gpu_without_a_driver_is_a_device_error_and_prints_nothing(no_gpu, models, capfd, device):
    with pytest.raises(DeviceError) as caught:
        Predictor(models["conv"], device)
    name = device if ":" in device else f"{device}:0"
    assert str(caught.value).startswith(f"device {name}: ")
    if CUDA in onnxruntime.get_available_providers():
        assert "no NVIDIA driver (libcuda.so.1: " in str(caught.value)
        assert str(caught.value).endswith("; install it, or start the container with --gpus all")
    else:
        assert "is built without" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def check_on_gpu(predictor, answers, provider, tolerance, operators):
    """The GPU answers as numpy does, and every heavy node is there."""
    assert predictor.report.provider == provider
    assert predictor.report.golden_error <= tolerance
    assert misplaced_nodes(predictor.report.node_placement, provider) == {}
    assert predictor.report.nodes[provider] >= operators
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
    assert np.abs(predictor.run(images) - answers(images)).max() <= tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["brightness", "softmax", "conv"])
def test_cuda_replays_the_golden_sample_and_keeps_its_nodes(cuda, models, answers, kind):
    predictor = Predictor(models[kind], "cuda")
    check_on_gpu(predictor, answers[kind], CUDA, BACKENDS["cuda"].tolerance, operators=1)


@pytest.mark.gpu
def test_auto_never_takes_the_cpu_where_cuda_works(cuda, models):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Predictor(models["conv"]).report.provider in (CUDA, TENSORRT)


@pytest.mark.gpu
def test_gpu_that_is_not_there_is_refused(cuda, models):
    with pytest.raises(DeviceError, match="device cuda:99: GPU 99 does not exist, the driver sees"):
        Predictor(models["conv"], "cuda:99")


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("kind", ["softmax", "conv"])
def test_tensorrt_replays_the_golden_sample_and_keeps_its_nodes(tensorrt, models, answers, kind):
    predictor = Predictor(models[kind], "tensorrt")
    check_on_gpu(predictor, answers[kind], TENSORRT, BACKENDS["tensorrt"].tolerance, operators=1)
