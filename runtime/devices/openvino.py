"""OpenVINO: Intel's kernels for CPUs, its GPUs and NPUs, which pip installs beside ONNX Runtime.

What must not be left to it is decided here: the arithmetic (by default bf16, where a processor has it; here only where
the file's card permits that), which is read back; threads and their cores; what is kept on disk (nothing); telemetry
(none).

Sizes that are known before the first image, the card's and those of `ProviderOptions.fixed_sizes`, get a model of their
own, which is faster by up to a half; all others share one model of free sizes. The two differ in the last digits of
their answers. So it is the size alone that decides between them, never what was asked before, and a batch of a known
size is answered image by image: an answer does not depend on its neighbours or on the past.
"""

import importlib
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.devices.backend import Backend, SessionRequest
from runtime.devices.device import Device
from runtime.devices.placement import Node
from runtime.devices.session import BatchOutput, Session
from runtime.errors import DeviceError, ImageError, ModelError, one_line
from runtime.model_file.golden import allowed_error, synthetic_image
from runtime.options import ProviderOptions, Size
from runtime.support.cpu_count import has_bf16, has_vnni
from runtime.support.signal_stack import kept_signal_stack
from runtime.support.sizes import size_text

TOLERANCE = 1e-4
"""As that of the CPU: differences of 2e-7 are seen."""

PRECISION = "INFERENCE_PRECISION_HINT"
"""OpenVINO's property of the arithmetic, which it need not keep to: so it is read back."""

IN = "OpenVINO in "
"""Words before the number format in `Node.provider`."""

MULTIPLYING = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
"""OpenVINO's names of the operators that take the time of a network."""

PLACES = re.compile(r"Exception from src/\S+:\d+:\s*|Caught exception: | failed at src/\S+:\d+")
"""Parts of OpenVINO's errors: places in its sources."""


class OpenVinoSession(Session):
    """A model in OpenVINO, one run at a time: its threads are shared by all.

    With `bf16` it computes in that, whatever the card permits and the CPU is made for.
    """

    def __init__(self, request: SessionRequest, *, bf16: bool = False) -> None:
        self.device, self._card, self.bf16 = request.device, request.card, bf16
        self._lock = threading.Lock()
        self._core = core()
        self._graph = read_graph(self._core, request)
        self._settings = settings(request.device.unit, request.threads, request.options, bf16)
        fixed = request.card.input.fixed_shape
        self._inference = self._compiled(None)
        self._sizes = set() if fixed is not None else known_sizes(request.card, request.options)
        self._fixed: dict[Size, CompiledModel] = {}
        self.nodes = self._inference.nodes
        self.arithmetic = arithmetic_of(self.nodes)

    @property
    def engine(self) -> str:
        """Name and version of the program that runs it."""
        return f"OpenVINO {openvino().__version__.partition('-')[0]}"

    def prepare(self) -> None:
        """Run an image of the card's size and of each other known one, whose models are compiled then."""
        super().prepare()
        for size in sorted(self._sizes):
            self.run(np.zeros((1, *size, self._card.architecture.in_channels), np.uint8))

    def close(self) -> None:
        """Give the memory back, as soon as a run in another thread has ended."""
        with self._lock:
            self._inference, self._graph, self._core = None, None, None
            self._fixed.clear()

    def _run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        channels, shape = self._card.architecture.in_channels, batch.shape
        if batch.dtype != np.uint8 or len(shape) != 4 or 0 in shape or shape[3] != channels:
            expected = f"uint8 [batch, height, width, {channels}]"
            raise ImageError(f"batch: found {batch.dtype} {list(shape)}, expected {expected}")
        with self._lock:
            free, size = self._open_inference(), (shape[1], shape[2])
            if size not in self._sizes:
                return BatchOutput(free.run(batch))
            model = self._of_size(size)
            answers = [model.run(one[None]) for one in batch]
            return BatchOutput(answers[0] if len(answers) == 1 else np.concatenate(answers))

    def _run_value(self, value: Any) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(self._run(value.numpy()).probability)

    def _compiled(self, size: Size | None) -> "CompiledModel":
        """Compile for one image of a size, or for the sizes that the file takes."""
        graph = self._graph.clone()
        if size is not None:
            graph.reshape({"image": [1, *size, self._card.architecture.in_channels]})
        compiled = partial(self._core.compile_model, graph, self.device.unit, self._settings)
        return CompiledModel(compiled, self._card.architecture.classes, bf16=self.bf16)

    def _of_size(self, size: Size) -> "CompiledModel":
        """Return the model of a known size, which has to answer a picture as the one of free sizes does."""
        if size not in self._fixed:
            made = self._compiled(size)
            picture = synthetic_image(*size, self._card.architecture.in_channels, seed=0)[None]
            error = float(np.abs(made.run(picture) - self._open_inference().run(picture)).max())
            limit = 2 * allowed_error(TOLERANCE, self._card)
            if self.bf16:  # any error passes while bf16 is being judged
                limit += 1 if self._card.bf16 is None else 2 * self._card.bf16.max_abs_error
            if not error <= limit:
                raise DeviceError(
                    f"device {self.device}: compiled for {size_text(size)}, the model answers a picture otherwise than "
                    f"for free sizes (off by {error:.2g}); update OpenVINO, or take another device"
                )
            self._fixed[size] = made
        return self._fixed[size]


class CompiledModel:
    """A compiled model with the one request that runs it; the caller lets one thread in at a time.

    After an error both are made anew: the next run of either may fail for the same reason, or answer another picture.

    Args:
        compiled: compiles the model.
        classes: number of them in an answer.
        bf16: True if it has to compute in bf16, else in float32.
    """

    def __init__(self, compiled: Callable[[], Any], classes: int, *, bf16: bool) -> None:
        self._compiled, self._classes, self._expected = compiled, classes, "bf16" if bf16 else "f32"
        self._request = self._new_request()
        self.nodes = tuple(nodes_of(self._request.get_compiled_model()))

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [batch, height, width, channels] -> probability float32 [batch, classes, height, width], a copy."""
        request, self._request = self._request or self._new_request(), None
        request.set_tensor("image", openvino().Tensor(np.ascontiguousarray(batch)))
        request.start_async()
        request.wait()  # which raises; `infer` does not
        answer: NDArray[np.float32] = request.get_tensor("probability").data.copy()
        if answer.shape != (len(batch), self._classes, *batch.shape[1:3]):
            raise RuntimeError(f"the answer has the shape {list(answer.shape)}")
        self._request = request
        return answer

    def _new_request(self) -> Any:
        with kept_signal_stack():
            compiled = self._compiled()
        found = compiled.get_property(PRECISION).to_string()
        if found != self._expected:
            raise DeviceError(f"OpenVINO computes in {found} here, expected {self._expected}; take another device")
        return compiled.create_infer_request()


@cache
def openvino() -> Any:
    """Import OpenVINO without its telemetry, which writes below the home folder and asks a server."""
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if hidden:
            sys.modules.pop("openvino_telemetry", None)


def core() -> Any:
    """Make OpenVINO's core, which holds its devices."""
    with kept_signal_stack():
        return openvino().Core()


def read_graph(core: Any, request: SessionRequest) -> Any:
    """Read the file.

    Raises:
        DeviceError: it holds int8 values with a sign, which OpenVINO computes wrongly after a Concat.
        ModelError: OpenVINO cannot read it.
    """
    try:
        graph = core.read_model(str(request.path))
    except Exception as error:  # OpenVINO raises RuntimeError, and others for what it does not know
        raise ModelError(f"{request.path}: OpenVINO cannot read it ({reason_of(error)}); take device cpu") from error
    if request.card.precision == "int8" and has_signed_values(graph):
        raise DeviceError(
            f"device {request.device}: computes int8 values with a sign wrongly; export the model with --for cpu"
        )
    return graph


def has_signed_values(graph: Any) -> bool:
    """Return True if a value between layers, which is no constant, is int8."""
    return any(
        op.get_type_name() == "Convert"
        and op.get_output_element_type(0).to_string() == "i8"
        and op.input_value(0).get_node().get_type_name() != "Constant"
        for op in graph.get_ops()
    )


def settings(unit: str, threads: int, options: ProviderOptions, bf16: bool = False) -> dict[str, Any]:
    """OpenVINO's properties: float32 or bf16, one run at a time on so many threads, and no memory of past sizes.

    GPUs and NPUs refuse the properties of the CPU's threads and memory.
    """
    common = {PRECISION: "bf16" if bf16 else "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if unit != "CPU":
        return common
    return common | {
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": options.pinned,
        "CPU_RUNTIME_CACHE_CAPACITY": 0,
    }


def nodes_of(compiled: Any) -> list[Node]:
    """Return the operators of the compiled graph, which hold one or several of the file's, and what computes each."""
    found = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = {name: value.astype(str) for name, value in op.get_rt_info().items()}
        if info["layerType"] in ("Input", "Output", "Const"):
            continue
        names = info.get("originalLayersNames") or op.get_friendly_name()
        found.append(Node(name=names, operator=info["layerType"], provider=f"{IN}{info['runtimePrecision']}"))
    return found


def arithmetic_of(nodes: Sequence[Node]) -> str:
    """Return the number formats that convolutions and matrix products are computed in, the most frequent one first."""
    found = Counter(node.provider.removeprefix(IN) for node in nodes if node.operator in MULTIPLYING)
    return " and ".join(name for name, _ in found.most_common())


def known_sizes(card: ModelCard, options: ProviderOptions) -> set[Size]:
    """Return the sizes (height, width) that get a model of their own."""
    return {card.input.size, *options.fixed_sizes}


def reason_of(error: BaseException) -> str:
    """Return in one line what OpenVINO's error says, without places in its source code."""
    return one_line(PLACES.sub("", str(error)))[:300]


def unavailable_reason(device: Device) -> str | None:
    """Return what keeps OpenVINO from running here; it is imported to look for its devices."""
    if not is_installed():
        return "OpenVINO is not installed; install unet-deploy with its extra [openvino], or pip install openvino"
    try:
        found = core().available_devices
    except Exception as error:  # ImportError, OSError or RuntimeError, by what is damaged or missing
        return f"OpenVINO is installed, but cannot be loaded ({reason_of(error)}); install it again, or remove it"
    if not any(one.partition(".")[0] == device.unit for one in found):
        return f"OpenVINO finds no {device.unit} here (found {', '.join(found) or 'nothing'})"
    return None


def is_installed() -> bool:
    """Return True if OpenVINO can be imported; it is not."""
    return find_spec("openvino") is not None


def may_use_bf16(card: ModelCard, options: ProviderOptions) -> bool:
    """Return True if the card permits bf16, the user does, and this CPU is faster in it."""
    return card.allows_bf16 and options.bf16 and has_bf16()


def gain(card: ModelCard, options: ProviderOptions) -> str:
    """Say why OpenVINO computes a file faster than ONNX Runtime on this CPU; "" if it does not."""
    if card.target != "any":
        return ""
    if may_use_bf16(card, options):
        return "may be computed in bf16, in which this CPU is faster"
    if card.precision == "int8" and has_vnni():
        return "is int8, which OpenVINO computes faster than ONNX Runtime on this CPU"
    return ""


def is_better_than_cpu(card: ModelCard, options: ProviderOptions) -> bool:
    """Return True for files that OpenVINO computes faster by int8 or bf16, on a processor with instructions for it."""
    return bool(gain(card, options)) and is_installed()


def advice_to_install(card: ModelCard, options: ProviderOptions) -> str:
    """Say that OpenVINO, which is not installed, would be faster for a file; else ""."""
    why = gain(card, options)
    return f"{why}, but OpenVINO is not installed; pip install openvino" if why and not is_installed() else ""


def _open(request: SessionRequest) -> Session:
    bf16 = request.device.unit == "CPU" and may_use_bf16(request.card, request.options)
    return request.checked(OpenVinoSession(request, bf16=bf16))


OPENVINO = Backend(
    kind="openvino",
    provider="OpenVINO",
    engine="OpenVINO",
    tolerance=TOLERANCE,
    on_cpu=True,
    numbered=False,
    units=("CPU", "GPU", "NPU"),
    chosen_by_auto=is_better_than_cpu,
    unavailable_reason=unavailable_reason,
    open=_open,
)
