"""Which ONNX Runtime execution provider runs, with which options, and why not another.

ONNX Runtime lists providers that cannot run on the machine at hand and falls back to the CPU with no more than a log
line. So nothing it claims is believed: the driver and the libraries are looked for before a session is made, and the
provider of every node is looked up afterwards.
"""

import contextlib
import ctypes
import io
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import onnxruntime

from runtime.card import ModelCard
from runtime.errors import DeviceError
from runtime.golden import GOLDEN_SIZE

Kind = Literal["tensorrt", "cuda", "cpu"]

PROVIDER: Mapping[str, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}

HEAVY_OPERATORS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MaxPool", "Resize", "Gemm", "MatMul", "Sigmoid", "Softmax"}
)
"""What must run on the requested device. Arithmetic on shapes belongs on the CPU, and ONNX Runtime puts it there."""

TENSORRT_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
"""What ONNX Runtime's TensorRT provider is linked against, in the order of loading."""

ERRORS_ONLY = 3
"""ONNX Runtime's log severity: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One place to run: its kind, and which GPU."""

    kind: Kind
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What runs, and what was passed over.

    `nodes` counts the graph's nodes by execution provider; `golden_error` is the largest difference between this
    device's answer to the golden sample and the file's; `skipped` gives (device, reason) in the order they were tried.
    """

    requested: str
    device: str
    provider: str
    nodes: Mapping[str, int]
    golden_error: float
    threads: int
    onnxruntime: str
    skipped: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        places = ", ".join(f"{count} on {name}" for name, count in self.nodes.items())
        lines = [f"{self.device}: {self.provider}, nodes: {places}; golden sample off by {self.golden_error:.1e}"]
        return "\n".join([*lines, *grouped(self.skipped)])


def grouped(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """One sentence a reason: GPU providers mostly lack the same thing."""
    devices: dict[str, list[str]] = {}
    for device, reason in skipped:
        devices.setdefault(reason, []).append(device)
    return [f"{' and '.join(names)} skipped: {reason}" for reason, names in devices.items()]


def candidates(device: str) -> list[Device]:
    """Parse "auto", "cpu", "cuda", "cuda:1", "tensorrt" or "tensorrt:1" to the devices to try, best first.

    Raises:
        DeviceError: none of these.
    """
    if not isinstance(device, str):
        raise DeviceError(f"device {device!r}: expected auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N")
    if device == "auto":
        return [Device(kind="tensorrt"), Device(kind="cuda"), Device(kind="cpu")]
    kind, separator, index = device.partition(":")
    if kind not in get_args(Kind) or (separator and (kind == "cpu" or not index.isdecimal() or len(index) > 3)):
        raise DeviceError(f"device {device!r}: expected auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N")
    return [Device(kind=kind, index=int(index or 0))]  # type: ignore[arg-type]


def available_threads() -> int:
    """CPU cores that this process may use (its affinity), not those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def why_not(device: Device) -> str | None:
    """What keeps a device from running here, with the way to mend it; None if nothing was found missing."""
    if device.kind == "cpu":
        return None
    if PROVIDER[device.kind] not in onnxruntime.get_available_providers():
        return (
            f"the installed ONNX Runtime {onnxruntime.__version__} is built without {PROVIDER[device.kind]}; "
            "pip uninstall onnxruntime, then install unet-deploy with its extra [gpu] (Linux or Windows)"
        )
    return _driver_problem(device.index) or _library_problem(device.kind)


def _driver_problem(index: int) -> str | None:
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        return f"no NVIDIA driver ({error}); install it, or start the container with --gpus all"
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    status = status or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"the NVIDIA driver finds no usable GPU (CUDA driver error {status}); see nvidia-smi"
    if index >= count.value:
        return f"GPU {index} does not exist, the driver sees {count.value}; see nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


@cache
def _library_problem(kind: Kind) -> str | None:
    """Load the provider's own library as ONNX Runtime would, to learn the name of what is missing."""
    said = preload()
    windows = platform.system() == "Windows"
    pattern = "onnxruntime_providers_{}.dll" if windows else "libonnxruntime_providers_{}.so"
    folder = Path(onnxruntime.__file__).parent / "capi"
    extra = "gpu" if kind == "cuda" else "tensorrt"
    try:
        ctypes.CDLL(str(folder / pattern.format("shared")), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / pattern.format(kind)))
    except OSError as error:
        return f"{error}; install unet-deploy with its extra [{extra}]" + (f" ({said})" if windows and said else "")
    return None


@cache
def preload() -> str:
    """Load the CUDA and cuDNN libraries that pip installed; return what ONNX Runtime printed about it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        _preload_tensorrt()
    return " ".join(printed.getvalue().split())


def _preload_tensorrt() -> None:
    """pip puts TensorRT into a package of its own, where the loader does not look."""
    try:
        import tensorrt_libs  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return
    windows = platform.system() == "Windows"
    for name in TENSORRT_LIBRARIES:
        with contextlib.suppress(OSError):  # what is still missing then, `_library_problem` names
            file = f"{name}_10.dll" if windows else f"lib{name}.so.10"
            ctypes.CDLL(str(Path(tensorrt_libs.__path__[0]) / file), mode=ctypes.RTLD_GLOBAL)


def provider_options(device: Device, card: ModelCard, max_batch: int = 16) -> dict[str, str]:
    """Options of the device's provider (onnxruntime.ai, execution providers).

    For TensorRT they hold the profile: batches of 1 to `max_batch` at sizes from the golden sample's to the card's.
    Shapes outside it fail. Engines are not cached yet: ONNX Runtime names them after the graph, not after its weights.
    """
    if device.kind == "cpu":
        return {}
    if device.kind == "cuda":
        return {"device_id": str(device.index)}
    smallest, largest = (tuple(map(best, GOLDEN_SIZE, card.input.size)) for best in (min, max))
    shapes = {"min": (1, *smallest), "opt": (1, *card.input.size), "max": (max_batch, *largest)}
    return {"device_id": str(device.index)} | {
        f"trt_profile_{name}_shapes": f"image:{batch}x{height}x{width}x{card.architecture.in_channels}"
        for name, (batch, height, width) in shapes.items()
    }


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options common to all devices."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def open_session(path: Path, device: Device, card: ModelCard, threads: int) -> Any:
    """An `onnxruntime.InferenceSession` that runs on `device`, and is known to.

    Raises:
        DeviceError: it would run somewhere else, in whole or in a part that matters.
    """
    chosen = PROVIDER[device.kind]
    order: tuple[Kind, ...] = ("tensorrt", "cuda", "cpu")
    chain = [Device(kind=kind, index=device.index) for kind in order[order.index(device.kind) :]]
    session = onnxruntime.InferenceSession(
        str(path),
        session_options(threads),
        providers=[(PROVIDER[item.kind], provider_options(item, card)) for item in chain],
        enable_fallback=0,
    )
    if chosen not in session.get_providers():
        raise DeviceError(f"device {device}: ONNX Runtime opened the model on {session.get_providers()[0]} instead")
    strays = strays_of(session, chosen)
    if strays:
        raise DeviceError(f"device {device}: {sum(strays.values())} nodes would run elsewhere: {dict(strays)}")
    return session


def placement(session: Any) -> dict[str, int]:
    """Number of graph nodes by the execution provider that they were given to."""
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def strays_of(session: Any, provider: str) -> Counter[str]:
    """Heavy nodes that were not given to `provider`, counted as "operator on provider"."""
    return Counter(
        f"{node.op_type} on {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
        if node.op_type in HEAVY_OPERATORS
    )
