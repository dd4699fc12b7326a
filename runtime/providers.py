"""Which ONNX Runtime execution provider runs, and why not another.

ONNX Runtime lists providers that cannot run on the machine at hand and falls back to the CPU with no more than a log
line. So nothing it claims is believed: the driver and the libraries are looked for before a session is made, and the
provider of every node is looked up afterwards.
"""

import contextlib
import ctypes
import io
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import onnxruntime

from runtime.cores import available_threads as available_threads
from runtime.errors import DeviceError

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


@dataclass(frozen=True, kw_only=True)
class Device:
    """One place to run: its kind, and which GPU."""

    kind: Kind
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the graph: its name in the file, its operator, and the execution provider that computes it."""

    name: str
    operator: str
    provider: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What runs, and what was passed over.

    `nodes` counts the graph's nodes by execution provider and `node_placement` names each; `golden_error` is the
    largest difference between this device's answer to the golden sample and the file's; `skipped` gives (device,
    reason), best device first; `switch` says what became of an engine that was built while another device served.
    """

    requested: str
    device: str
    provider: str
    nodes: Mapping[str, int]
    golden_error: float
    threads: int
    onnxruntime: str
    skipped: tuple[tuple[str, str], ...] = ()
    switch: str = ""
    node_placement: tuple[Node, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        places = ", ".join(f"{count} on {name}" for name, count in self.nodes.items())
        lines = [f"{self.device}: {self.provider}, nodes: {places}; golden sample off by {self.golden_error:.1e}"]
        return "\n".join([*lines, *grouped(self.skipped), *([self.switch] if self.switch else [])])


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


def node_placement(session: Any) -> tuple[Node, ...]:
    """Where `onnxruntime.InferenceSession` put each node of the graph, as it was before it joined some."""
    return tuple(
        Node(name=node.name, operator=node.op_type, provider=part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )


def placement(nodes: Iterable[Node]) -> dict[str, int]:
    """Number of graph nodes by the execution provider that they were given to."""
    return dict(Counter(node.provider for node in nodes))


def strays_of(nodes: Iterable[Node], provider: str) -> Counter[str]:
    """Heavy nodes that were not given to `provider`, counted as "operator on provider"."""
    return Counter(
        f"{node.operator} on {node.provider}"
        for node in nodes
        if node.provider != provider and node.operator in HEAVY_OPERATORS
    )


T = TypeVar("T")


def choose(
    devices: Sequence[Device], attempt: Callable[[Device], T], put_off: Callable[[Device], bool]
) -> tuple[Device, T, list[tuple[Device, str]], list[Device]]:
    """Try devices, best first; of several, one that is `put_off` comes after the next one, and only if that fails.

    Returns the device, what `attempt` gave for it, what was passed over and why (in the order of `devices`), and what
    was put off and not tried.

    Raises:
        DeviceError: `attempt` raised it for the last device.
    """
    order = list(devices)
    late = [device for device in order[:-1] if put_off(device)]
    for device in late:
        place = order.index(device)
        order[place], order[place + 1] = order[place + 1], order[place]
    refused: dict[Device, str] = {}
    for device in order:
        try:
            found = attempt(device)
        except DeviceError as refusal:
            if device == order[-1]:
                raise
            refused[device] = str(refusal).removeprefix(f"device {device}: ")
            continue
        skipped = [(other, refused[other]) for other in devices if other in refused]
        return device, found, skipped, [other for other in late if other != device and other not in refused]
    raise AssertionError("no device was given")


COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76
"""Of CUdevice_attribute in cuda.h."""


def gpu_facts(index: int) -> dict[str, str]:
    """What an engine depends on beside its model: GPU, compute capability, driver and the versions of the libraries.

    Raises:
        DeviceError: the driver or TensorRT does not tell.
    """
    preload()
    windows = platform.system() == "Windows"
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if windows else "libcuda.so.1")
        tensorrt = ctypes.CDLL("nvinfer_10.dll" if windows else "libnvinfer.so.10")
        device, version = ctypes.c_int(), ctypes.c_int()
        major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
        status = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), index)
        status = status or cuda.cuDeviceGetName(name, len(name), device)
        status = status or cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_MAJOR, device)
        status = status or cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_MINOR, device)
        status = status or cuda.cuDriverGetVersion(ctypes.byref(version))
        if status:
            raise DeviceError(
                f"device cuda:{index}: the NVIDIA driver does not describe it (CUDA driver error {status})"
            )
        return {
            "gpu": name.value.decode(errors="replace"),
            "compute_capability": f"{major.value}.{minor.value}",
            "driver": _driver_version(windows),
            "driver_cuda": str(version.value),
            "cuda": str(getattr(onnxruntime, "cuda_version", "")),
            "tensorrt": str(tensorrt.getInferLibVersion()),
            "onnxruntime": onnxruntime.__version__,
        }
    except (OSError, AttributeError) as error:
        raise DeviceError(f"device cuda:{index}: its versions cannot be told ({error}); see nvidia-smi") from error


def _driver_version(windows: bool) -> str:
    """The driver's own version ("580.65.06"), by NVML; "" where that does not tell, as in some containers."""
    text = ctypes.create_string_buffer(96)
    try:
        management = ctypes.CDLL("nvml.dll" if windows else "libnvidia-ml.so.1")
        status = management.nvmlInit_v2() or management.nvmlSystemGetDriverVersion(text, len(text))
    except (OSError, AttributeError):
        return ""
    return "" if status else text.value.decode(errors="replace")
