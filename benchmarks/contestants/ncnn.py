"""ncnn as a contestant, where it is installed; it is not a dependency."""

import importlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import shape_inference
from onnx.utils import Extractor

from benchmarks.contestants.base import (
    BenchmarkModel,
    Contestant,
    LoadedContestant,
    Precisions,
    Shape,
    not_installed_reason,
    require,
)
from runtime.card import ModelCard
from runtime.devices.profiles import bucketed
from runtime.errors import DeviceError, one_line

CONVERSION_SECONDS = 300
"""Time limit of a conversion by pnnx, in seconds."""


@dataclass(frozen=True, kw_only=True)
class NcnnContestant(Contestant):
    """The exported file's network in ncnn, converted by pnnx, in float32.

    ncnn does all of the work: its functions read the pixels, subtract the mean, divide and pad, and its graph ends with
    the sigmoid or softmax. It has no batches, so images run one after another, each with all threads.
    """

    name = "ncnn"
    precisions: ClassVar[Precisions] = {"cpu": ("fp32",)}
    memory = 7.0  # it keeps its weights transformed, and room to transform the images
    whole_batch = False

    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return why it cannot run: ncnn or its converter is not installed, or the model takes no pictures."""
        if model.card.input.channels == "raw":
            return "reads the pixels of colour and grey pictures, and the model takes other channels"
        return not_installed_reason("ncnn", "pnnx") or self.missing_reason(model)

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:
        """Convert the network for the shape, and load it."""
        ncnn: Any = importlib.import_module("ncnn")
        net = ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_vulkan_compute = False
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        _, height, width = shape
        padded = bucketed((height, width), model.card.input.stride)
        with tempfile.TemporaryDirectory() as folder:
            parameters, weights = convert(model, padded, Path(folder))
            loaded = net.load_param(str(parameters)), net.load_model(str(weights))
        require(loaded, (0, 0), "ncnn: status of loading")
        planes_of = PixelReader(ncnn, model.card, (height, width), padded)
        held = [net]

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            answers = []
            for image in images:
                extractor = held[0].create_extractor()
                extractor.input("in0", planes_of(image))
                status, answer = extractor.extract("out0")
                require(status, 0, "ncnn: status")
                answers.append(np.array(answer)[:, :height, :width])
            return np.stack(answers)

        return LoadedContestant(run=run, provider="ncnn CPU", facts={"file": model.path.name}, close=held.clear)


class PixelReader:
    """Preprocessing by ncnn's own functions: uint8 [height, width, channels] -> an ncnn matrix of planes, padded."""

    def __init__(self, ncnn: Any, card: ModelCard, size: tuple[int, int], padded: tuple[int, int]) -> None:
        self._ncnn, self._size = ncnn, size
        self._down, self._right = padded[0] - size[0], padded[1] - size[1]
        pixels = ncnn.Mat.PixelType
        self._kind = pixels.PIXEL_RGB if card.architecture.in_channels == 3 else pixels.PIXEL_GRAY
        self._mean = [255 * value for value in card.input.mean]
        self._scale = [1 / (255 * value) for value in card.input.std]

    def __call__(self, image: NDArray[np.uint8]) -> Any:
        height, width = self._size
        planes = self._ncnn.Mat.from_pixels(image, self._kind, width, height)
        planes.substract_mean_normalize(self._mean, self._scale)
        if not self._down and not self._right:
            return planes
        edge = self._ncnn.BorderType.BORDER_REPLICATE
        return self._ncnn.copy_make_border(planes, 0, self._down, 0, self._right, edge, 0.0)


def convert(model: BenchmarkModel, size: tuple[int, int], folder: Path) -> tuple[Path, Path]:
    """Write the network for one size (height, width) into a folder, as ncnn's two files; return their paths.

    Raises:
        DeviceError: pnnx cannot convert it.
    """
    onnx.save(bare_network(onnx.load(model.path)), folder / "network.onnx")
    shape = f"[1,{model.card.architecture.in_channels},{size[0]},{size[1]}]f32"
    command = [str(converter()), "network.onnx", f"inputshape={shape}", "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=CONVERSION_SECONDS)
    files = folder / "network.ncnn.param", folder / "network.ncnn.bin"
    if done.returncode or not all(file.exists() for file in files):
        raise DeviceError(f"pnnx: cannot convert {model.path.name} ({one_line(done.stderr)[-200:]})")
    return files


def converter() -> Path:
    """Return the path of pnnx's program. It is not asked for it, since importing pnnx imports PyTorch."""
    found = find_spec("pnnx")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).with_name("pnnx.exe" if sys.platform == "win32" else "pnnx")


def bare_network(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cut the network out of an exported file: from its first to its last convolution, followed by the activation.

    Its input is float32 [batch, channels, height, width], normalised and padded to the stride; its output probability.
    """
    sized = shape_inference.infer_shapes(model)
    convolutions = [node for node in sized.graph.node if node.op_type == "Conv"]
    first, last, activation = convolutions[0].input[0], convolutions[-1].output[0], sized.graph.node[-1]
    network = Extractor(sized).extract_model([first], [last])
    node = network.graph.node.add()
    node.CopyFrom(activation)
    node.input[0] = last
    network.graph.output[0].name = activation.output[0]
    return network
