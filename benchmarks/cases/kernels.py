"""Calls that a processor can hardly do faster: matrix products and convolutions, by PyTorch and by ONNX Runtime.

PyTorch's convolutions on a CPU are oneDNN's. No one library has the fastest kernels on every machine, so all are tried.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from benchmarks.contestants.base import Arithmetic, torch_missing
from runtime.devices.session import session_options

PRODUCT, CONVOLUTION = "matrix product", "convolution"

Sides = tuple[int, int, int]
"""Sizes of a product, [rows, inner] x [inner, columns], or of a 3x3 convolution, (channels, height, width)."""

OPSET, IR_VERSION = 20, 9


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A product, or a 3x3 convolution of as many channels as it has filters, in a precision, by a library.

    Attributes:
        kind: PRODUCT or CONVOLUTION.
        library: "PyTorch" or "ONNX Runtime".
        precision: what is multiplied in.
        sides: the sizes.
    """

    kind: str
    library: str
    precision: Arithmetic
    sides: Sides

    @property
    def name(self) -> str:
        """The computation and the library."""
        return f"{self.kind} {'x'.join(map(str, self.sides))} in {self.precision}, {self.library}"

    @property
    def operations(self) -> float:
        """Multiplications and additions of a call."""
        first, second, third = self.sides
        return 2.0 * first * second * third * (9 * first if self.kind == CONVOLUTION else 1)

    def call_on(self, device: str, threads: int) -> Callable[[], object]:
        """Make a call, on "cpu" or a GPU of PyTorch's, that returns when the answer is there."""
        make = torch_call if self.library == "PyTorch" else onnx_call
        return make(self, device, threads)


def kernels_on_cpu(products: tuple[Sides, ...], convolutions: tuple[Sides, ...]) -> list[Kernel]:
    """List what can be tried on this CPU: in fp32 by both libraries, in bf16 by PyTorch where the CPU multiplies so."""
    ways: list[tuple[str, Arithmetic]] = [("ONNX Runtime", "fp32")]
    if torch_missing() is None:
        ways.insert(0, ("PyTorch", "fp32"))
        if import_module("torch").ops.mkldnn._is_mkldnn_bf16_supported():
            ways.append(("PyTorch", "bf16"))
    kinds = [(PRODUCT, one) for one in products] + [(CONVOLUTION, one) for one in convolutions]
    return [
        Kernel(kind=kind, library=library, precision=precision, sides=sides)
        for library, precision in ways
        for kind, sides in kinds
    ]


def torch_call(kernel: Kernel, device: str, threads: int) -> Callable[[], object]:  # noqa: ARG001 - `pinned` sets them
    """Make the call in PyTorch."""
    import torch

    from benchmarks.contestants.pytorch_calls import multiply_in

    types: dict[Arithmetic, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
    dtype, target = types.get(kernel.precision, torch.float32), torch.device(device)
    first, second, third = kernel.sides
    if kernel.kind == PRODUCT:
        left, right = (torch.rand(*shape, device=target).to(dtype) for shape in ((first, second), (second, third)))
        room = torch.empty(first, third, dtype=dtype, device=target)

        def compute() -> object:
            return torch.mm(left, right, out=room)
    else:
        layer = torch.nn.Conv2d(first, first, 3, padding=1, bias=False, device=target, dtype=dtype)
        layer = layer.to(memory_format=torch.channels_last)
        image = torch.rand(1, *kernel.sides, device=target).to(dtype).contiguous(memory_format=torch.channels_last)

        def compute() -> object:
            return layer(image)

    def call() -> object:
        with torch.inference_mode(), multiply_in("tf32" if kernel.precision == "tf32" else "fp32"):
            answer = compute()
        if target.type == "cuda":
            torch.cuda.synchronize(target)
        return answer

    return call


def onnx_call(kernel: Kernel, device: str, threads: int) -> Callable[[], object]:  # noqa: ARG001 - for the CPU alone
    """Make the call in ONNX Runtime, which packs the constant factor once, as it does for a network's weights."""
    random = np.random.default_rng(0)
    first, second, third = kernel.sides
    shape: tuple[int, ...] = (1, *kernel.sides)
    constant: tuple[int, ...] = (first, first, 3, 3)
    node = helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1, 1, 1, 1])
    if kernel.kind == PRODUCT:
        shape, constant = (first, second), (second, third)
        node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    weight = numpy_helper.from_array(random.random(constant, np.float32), "weight")
    graph = helper.make_graph(
        [node],
        "kernel",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session: Any = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )
    feed = {"x": random.random(shape, np.float32)}
    return lambda: session.run(None, feed)[0]
