"""Running a raw export (float32 NCHW -> logits) with the pre- and post-processing that it leaves to others."""

import numpy as np
import onnx
from numpy.typing import NDArray

from export.proof import Run, open_graph
from runtime.card import ModelCard


def raw_run(model: onnx.ModelProto, card: ModelCard, *, logits: bool = False) -> Run:
    """A raw graph as a function of images, with what a program has to do around it; or only up to its logits.

    Raises:
        ProofError: ONNX Runtime cannot load it.
    """
    session, stride = open_graph(model), card.input.stride
    mean, std = (np.array(value, np.float32) for value in (card.input.mean, card.input.std))

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        _, height, width, _ = images.shape
        planes = ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        planes = np.pad(planes, ((0, 0), (0, 0), (0, -height % stride), (0, -width % stride)), mode="edge")
        answer: NDArray[np.float32] = session.run(["logits"], {"image": planes})[0][:, :, :height, :width]
        if logits:
            return answer
        with np.errstate(over="ignore", invalid="ignore"):  # exp(-x) may be infinite, and NaN shows in the answer
            return _activated(answer, card)

    return run


def _activated(logits: NDArray[np.float32], card: ModelCard) -> NDArray[np.float32]:
    if card.output.activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)
