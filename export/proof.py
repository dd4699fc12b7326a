"""Proof that a graph answers as the network it was made from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from runtime.card import Images, ModelCard, OutputSpec, Parity, ProofRow, Target
from runtime.devices.registry import PROVIDER
from runtime.devices.session import session_options
from runtime.errors import ProofError
from runtime.model_file.golden import Golden, NetworkFunction, golden_image, synthetic_image
from runtime.result import mask_of
from runtime.support.cpu_count import available_threads
from unet_core.model import Segmenter

MAX_ERROR = 1e-4
"""Largest |p - PyTorch's p| that an fp32 graph may show; 1e-7 is usual."""

MAX_LOGITS_ERROR: Mapping[Target, float] = {"any": 1e-3, "cpu": 1e-5}
"""Largest |logit - PyTorch's logit| that an fp32 graph may show, as a share of the range of PyTorch's; 1e-6 is usual.
Near 0 and 1 a probability shows nothing of what is wrong before it. Winograd's filtering loses a digit, and not two."""

MAX_PROOF_SIDE = 256
"""Sides of the batches of three are cut to this: batches of large images take much memory and prove no more."""

MOST_IN_BATCH = 3
"""Real pictures that are also compared as one batch."""


NOT_FINITE = Parity(max_abs_error=1.0, flipped=1.0, iou=0.0, flip_distance=1.0)
"""Parity of answers with NaN."""


def parity(answer: NDArray[np.float32], reference: NDArray[np.float32], output: OutputSpec) -> Parity:
    """Compare probabilities [classes, ...]; NaN in either counts as the largest error."""
    error = float(np.abs(answer - reference).max())
    if not np.isfinite(error):
        return NOT_FINITE
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
    small_height, small_width = _small(card)
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


def _small(card: ModelCard) -> tuple[int, int]:
    """The trained height and width, cut where they are large."""
    height, width = card.input.size
    return min(height, MAX_PROOF_SIDE), min(width, MAX_PROOF_SIDE)


@dataclass(frozen=True)
class Case:
    """A batch to compare on, uint8 [batch, height, width, channels], and where its pictures are from."""

    images: NDArray[np.uint8]
    source: Images


Answered = tuple[Case, NDArray[np.float32]]
"""A case and the probability float32 [batch, classes, height, width] that is expected."""


def cases(card: ModelCard, pictures: Sequence[NDArray[np.uint8]] = ()) -> Iterator[Case]:
    """What is compared: synthetic batches at every shape of `proof_shapes`, flat and noisy ones, and real pictures.

    `pictures` are uint8 [height, width, channels], as the network sees them.
    """
    channels = card.architecture.in_channels
    for batch, height, width in proof_shapes(card):
        yield Case(np.stack([synthetic_image(height, width, channels, seed) for seed in range(batch)]), "synthetic")
    yield Case(_hard_pictures(*_small(card), channels), "synthetic")
    for picture in pictures:
        yield Case(picture[None], "data")
    same = [picture for picture in pictures if picture.shape == pictures[0].shape]
    if len(same) >= MOST_IN_BATCH:
        yield Case(np.stack(same[:MOST_IN_BATCH]), "data")


def _hard_pictures(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Black, white, a checkerboard of single pixels, and noise: [4, height, width, channels]."""
    shape = (height, width, channels)
    board = np.broadcast_to((np.indices((height, width)).sum(axis=0) % 2 * 255)[:, :, None], shape)
    noise = np.random.default_rng(0).integers(0, 256, shape)
    return np.stack([np.zeros(shape), np.full(shape, 255), board, noise]).astype(np.uint8)


def answered(reference: NetworkFunction, checked: Iterable[Case]) -> Iterator[Answered]:
    """Each case with the reference's answer."""
    return ((case, reference(case.images)) for case in checked)


def compare(run: NetworkFunction, checked: Iterable[Answered], output: OutputSpec) -> list[ProofRow]:
    """Parity of a run on each case; those of one shape and source are one row, the worst of each figure.

    Raises:
        ProofError: the answers differ in shape.
    """
    found: dict[tuple[tuple[int, int, int], Images], list[Parity]] = {}
    for case, expected in checked:
        answers = run(case.images)
        if answers.shape != expected.shape:
            raise ProofError(f"input {case.images.shape}: the graph answers {answers.shape}, PyTorch {expected.shape}")
        batch, height, width, _ = case.images.shape
        figures = [parity(*pair, output) for pair in zip(answers, expected, strict=True)]
        found.setdefault(((batch, height, width), case.source), []).extend(figures)
    return [ProofRow(shape=shape, images=source, parity=worst(figures)) for (shape, source), figures in found.items()]


def depends_on_batch(run: NetworkFunction, card: ModelCard, tolerance: float | None = None) -> bool:
    """Whether an image's answer changes, by more than the tolerance, with its place in a batch or the others there.

    The tolerance is none by default, and `MAX_ERROR` for files for CPUs, which sum other blocks in another order.
    """
    if tolerance is None:
        tolerance = MAX_ERROR if card.target == "cpu" else 0.0
    height, width = _small(card)
    pictures = [synthetic_image(height, width, card.architecture.in_channels, seed) for seed in range(3)]
    together, turned = run(np.stack(pictures)), run(np.stack([pictures[2], pictures[0], pictures[1]]))
    alone = np.concatenate([run(picture[None]) for picture in pictures])
    others = (together, turned[[1, 2, 0]])
    return not all(bool((np.abs(alone - answers) <= tolerance).all()) for answers in others)


def logits_error(
    run: NetworkFunction, reference: NetworkFunction, card: ModelCard, pictures: Sequence[NDArray[np.uint8]]
) -> float:
    """Largest |difference| of two runs' logits, as a share of the reference's range; NaN is infinite.

    On flat and noisy pictures and on a real one; the range counts as a tenth of the largest |logit| at least.
    """
    checked = [_hard_pictures(*_small(card), card.architecture.in_channels), *(one[None] for one in pictures[:1])]
    expected = [reference(images) for images in checked]
    highest, lowest = max(float(one.max()) for one in expected), min(float(one.min()) for one in expected)
    error = max(float(np.abs(run(images) - one).max()) for images, one in zip(checked, expected, strict=True))
    # Where logits are alike, the rounding of fp32 to the next value it can hold (6e-8 of the logit) is no error.
    share = error / max(highest - lowest, 0.1 * max(abs(highest), abs(lowest)), 1e-6)
    return share if np.isfinite(share) else float("inf")


def open_graph(model: onnx.ModelProto, *, optimised: bool = True) -> Any:
    """A session of a graph on the CPU, where it is computed node by node unless `optimised`.

    Raises:
        ProofError: ONNX Runtime cannot load it.
    """
    options = session_options(available_threads())
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER["cpu"]])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ProofError(f"the exported graph cannot be loaded ({' '.join(str(error).split())[:300]})") from error


def graph_run(model: onnx.ModelProto, *, optimised: bool = True) -> NetworkFunction:
    """A graph's side of a comparison, on the CPU; arguments and errors as of `open_graph`."""
    return _run_to("probability", open_graph(model, optimised=optimised))


def logits_run(model: onnx.ModelProto) -> NetworkFunction:
    """A graph up to its logits, before sigmoid or softmax."""
    (activation,) = (node for node in model.graph.node if "probability" in node.output)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output[0].name = activation.input[0]
    return _run_to(activation.input[0], open_graph(copy))


def _run_to(name: str, session: Any) -> NetworkFunction:
    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = session.run([name], {"image": images})[0]
        return answer

    return run


def versions() -> dict[str, str]:
    """What a proof was made with."""
    return {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def network_run(segmenter: Segmenter, *, logits: bool = False) -> NetworkFunction:
    """PyTorch's side of a comparison, as a function of arrays."""
    network = segmenter.logits if logits else segmenter

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            device = segmenter.mean.device
            answer: NDArray[np.float32] = network(torch.from_numpy(images).to(device)).cpu().numpy()
        return answer

    return run


def make_golden(segmenter: Segmenter, card: ModelCard) -> Golden:
    """PyTorch's answer to the golden image."""
    image = golden_image(card.architecture.in_channels)
    return Golden(image=image, probability=network_run(segmenter)(image[None])[0])


def raw_run(model: onnx.ModelProto, card: ModelCard, *, logits: bool = False) -> NetworkFunction:
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
