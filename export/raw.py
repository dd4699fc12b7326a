"""Running a raw export (float32 NCHW -> logits) with the pre- and post-processing that it leaves to others."""

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.providers import PROVIDER, available_threads, session_options


def raw_run(model: onnx.ModelProto, card: ModelCard) -> "RawRun":
    """A raw graph as a function of images, uint8 [batch, h, w, channels] -> probability [batch, classes, h, w]."""
    return RawRun(model, card)


class RawRun:
    """What a program has to do around a raw graph: normalise, pad to the stride, crop, sigmoid or softmax."""

    def __init__(self, model: onnx.ModelProto, card: ModelCard) -> None:
        self.card = card
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), session_options(available_threads()), providers=[PROVIDER["cpu"]]
        )

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        _, height, width, _ = images.shape
        stride = self.card.input.stride
        mean, std = (np.array(value, np.float32) for value in (self.card.input.mean, self.card.input.std))
        planes = ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        planes = np.pad(planes, ((0, 0), (0, 0), (0, -height % stride), (0, -width % stride)), mode="edge")
        logits: NDArray[np.float32] = self.session.run(["logits"], {"image": planes})[0][:, :, :height, :width]
        if self.card.output.activation == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)
