"""Proof that a graph answers as the network it was made from."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from runtime.card import ModelCard, OutputSpec, Parity, Proof, ProofRow
from runtime.errors import ProofError
from runtime.golden import Golden, golden_image, synthetic_image
from runtime.providers import PROVIDER, available_threads, session_options
from runtime.result import mask_of
from unet_core.model import Segmenter

MAX_ERROR = 1e-4
"""Largest |p - PyTorch's p| that an fp32 graph may show; 1e-7 is usual."""

MAX_PROOF_SIDE = 256
"""Sides of the batches of three are cut to this: batches of large images take much memory and prove no more."""

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 [batch, h, w, channels] -> probability float32 [batch, classes, h, w]."""


def parity(answer: NDArray[np.float32], reference: NDArray[np.float32], output: OutputSpec) -> Parity:
    """Compare probabilities [classes, ...]; NaN in either counts as the largest error."""
    error = float(np.abs(answer - reference).max())
    if not np.isfinite(error):
        return Parity(max_abs_error=1.0, flipped=1.0, iou=0.0, flip_distance=1.0)
    ours, theirs = mask_of(answer, output), mask_of(reference, output)
    flipped = ours != theirs
    return Parity(
        max_abs_error=min(error, 1.0),
        flipped=float(flipped.mean()),
        iou=_mask_iou(ours, theirs, output),
        flip_distance=float(_margin(reference, output)[flipped].max(initial=0.0)),
    )


def _mask_iou(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], output: OutputSpec) -> float:
    """IoU of the foreground; with several classes the mean over those that occur in either mask."""
    labels = [1] if output.activation == "sigmoid" else range(len(output.classes))
    values = []
    for label in labels:
        union = np.count_nonzero((ours == label) | (theirs == label))
        if union:
            values.append(np.count_nonzero((ours == label) & (theirs == label)) / union)
    return float(np.mean(values)) if values else 1.0


def _margin(probability: NDArray[np.float32], output: OutputSpec) -> NDArray[np.float32]:
    """How far each pixel's decision is from tipping: |p - threshold|, or the lead of the most probable class."""
    if output.activation == "sigmoid":
        margin: NDArray[np.float32] = np.abs(probability[0] - np.float32(output.threshold))
        return margin
    highest = np.sort(probability, axis=0)
    lead: NDArray[np.float32] = highest[-1] - highest[-2]
    return lead


def worst(parities: Sequence[Parity]) -> Parity:
    """The worst of each figure over several images."""
    return Parity(
        max_abs_error=max(item.max_abs_error for item in parities),
        flipped=max(item.flipped for item in parities),
        iou=min(item.iou for item in parities),
        flip_distance=max(item.flip_distance for item in parities),
    )


def proof_shapes(card: ModelCard) -> list[tuple[int, int, int]]:
    """The (batch, height, width) that are checked: one pixel, thin, odd, below, at and off the stride, as trained."""
    stride, (height, width) = card.input.stride, card.input.size
    small_height, small_width = min(height, MAX_PROOF_SIDE), min(width, MAX_PROOF_SIDE)
    return [
        (1, 1, 1),
        (1, 3, 101),
        (2, stride - 1, stride + 1),
        (1, 2 * stride, 3 * stride),
        (3, 2 * stride + 3, stride + 5),
        (1, height, width),
        (3, small_height, small_width),
        (1, small_height + 1, max(1, small_width - 1)),
    ]


def prove(segmenter: Segmenter, model: onnx.ModelProto, card: ModelCard) -> Proof:
    """Run graph and network side by side, on the CPU, at every shape of `proof_shapes`.

    Raises:
        ProofError: they differ by more than `MAX_ERROR` somewhere, or the graph cannot be run.
    """
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), session_options(available_threads()), providers=[PROVIDER["cpu"]]
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ProofError(f"the exported graph cannot be loaded ({' '.join(str(error).split())[:300]})") from error
    rows = []
    for batch, height, width in proof_shapes(card):
        images = np.stack(
            [synthetic_image(height, width, card.architecture.in_channels, seed) for seed in range(batch)]
        )
        answers, references = session.run(["probability"], {"image": images})[0], network_run(segmenter)(images)
        if answers.shape != references.shape:
            raise ProofError(f"input {images.shape}: the graph answers {answers.shape}, PyTorch {references.shape}")
        pairs = zip(answers, references, strict=True)
        found = worst([parity(answer, reference, card.output) for answer, reference in pairs])
        rows.append(ProofRow(shape=(batch, height, width), parity=found))
    proof = Proof(
        provider=PROVIDER["cpu"],
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        tolerance=MAX_ERROR,
        rows=tuple(rows),
    )
    bad = max(rows, key=lambda row: row.parity.max_abs_error)
    if bad.parity.max_abs_error > MAX_ERROR:
        raise ProofError(
            f"the exported graph is not the network: at (batch, height, width) {bad.shape} it is off by "
            f"{bad.parity.max_abs_error:.2g}, expected at most {MAX_ERROR:g}; nothing was written, please report this"
        )
    return proof


def network_run(segmenter: Segmenter) -> Run:
    """PyTorch's side of a comparison, as a function of arrays."""

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            device = segmenter.mean.device
            answer: NDArray[np.float32] = segmenter(torch.from_numpy(images).to(device)).cpu().numpy()
        return answer

    return run


def make_golden(segmenter: Segmenter, card: ModelCard) -> Golden:
    """PyTorch's answer to the golden image."""
    image = golden_image(card.architecture.in_channels)
    return Golden(image=image, probability=network_run(segmenter)(image[None])[0])
