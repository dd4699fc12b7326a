"""Proof that a graph answers as the network it was made from."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from export.golden_choice import CANDIDATES, choose_pictures, tf32_error
from runtime.card import (
    Gate,
    Images,
    ModelCard,
    OutputSpec,
    Parity,
    Proof,
    ProofRow,
    Reference,
    Target,
    UNetConfig,
)
from runtime.devices.profiles import bucketed, full_batches
from runtime.devices.registry import PROVIDER
from runtime.devices.session import session_options
from runtime.errors import ProofError, one_line
from runtime.model_file.golden import (
    Golden,
    NetworkFunction,
    extended,
    golden_image,
    golden_size,
    synthetic_image,
)
from runtime.result import mask_of
from runtime.support.cpu_count import available_threads
from unet_core.model import Segmenter

MAX_ERROR = 1e-4
"""Largest error |p - PyTorch's p| allowed in an fp32 graph; 1e-7 is usual."""

MAX_TOLERANCE = 1e-2
"""Largest error that may pass for a network of coarse rounding; beyond it, any graph would."""

OWN_ROUNDING = 4.0
"""Multiple of a network's own rounding, fp32 against fp64, that its graph may be off by."""

MAX_LOGITS_ERROR: Mapping[Target, float] = {"any": 1e-3, "cpu": 1e-5}
"""Largest error |logit - PyTorch's logit| allowed in an fp32 graph, as a share of the range of PyTorch's logits.

1e-6 is usual. Probabilities near 0 and 1 hide errors before the sigmoid, so logits are compared too. Winograd's
filtering loses one digit, not two.
"""

MAX_PROOF_SIDE = 256
"""Longest side, in pixels, of the batches of three: larger ones take much memory and prove no more."""

PROOF_PICTURES = 8
"""Number of real pictures that are compared, when a file is exported and when it is checked again."""

MOST_IN_BATCH = 3
"""Number of real pictures that are also compared as one batch."""

MOST_ANSWER_BYTES = 2**18
"""Largest answer, in bytes, of which a golden sample has several: that of 13 classes."""

NOT_FINITE = Parity(max_abs_error=1.0, flipped=1.0, iou=0.0, flip_distance=1.0)
"""Parity of answers that hold NaN."""


def parity(answer: NDArray[np.float32], reference: NDArray[np.float32], output: OutputSpec) -> Parity:
    """Compare probabilities float32 [classes, height, width]; NaN in either counts as the largest error."""
    error = float(np.abs(answer - reference).max())
    if not np.isfinite(error):
        return NOT_FINITE
    ours, theirs = mask_of(answer, output), mask_of(reference, output)
    if output.thresholded:  # [classes, height, width]
        regions = [(one > 0, other > 0) for one, other in zip(planes_of(ours), planes_of(theirs), strict=True)]
        margin = np.abs(reference - np.float32(output.threshold))[planes_of(ours != theirs)]
    else:
        regions = [(ours == label, theirs == label) for label in range(len(output.classes))]
        ranked = np.sort(reference, axis=0)
        margin = (ranked[-1] - ranked[-2])[ours != theirs]  # lead of the most probable class
    unions = [np.count_nonzero(one | other) for one, other in regions]
    ious = [np.count_nonzero(one & other) / union for (one, other), union in zip(regions, unions, strict=True) if union]
    return Parity(
        max_abs_error=min(error, 1.0),
        flipped=float(flipped_pixels(ours, theirs).mean()),
        iou=float(np.mean(ious)) if ious else 1.0,
        flip_distance=float(margin.max(initial=0.0)),
    )


def planes_of(mask: NDArray[Any]) -> NDArray[Any]:
    """Return a mask [height, width] or [classes, height, width] as planes, [1 or classes, height, width]."""
    return mask.reshape(-1, *mask.shape[-2:])


def flipped_pixels(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels whose class differs in two masks, bool [height, width]; of classes that overlap, any of them."""
    return np.asarray(planes_of(ours != theirs).any(axis=0), np.bool_)


def answers_in(masks: Iterable[NDArray[Any]]) -> set[tuple[int, int]]:
    """Return the (plane, value) pairs that occur in masks. As many as planes: the same answer at every pixel."""
    return {
        (index, value)
        for mask in masks
        for index, plane in enumerate(planes_of(mask))
        for value in np.unique(plane).tolist()
    }


def worst(parities: Sequence[Parity]) -> Parity:
    """Return the worst of each figure over several images."""
    return Parity(
        max_abs_error=max(item.max_abs_error for item in parities),
        flipped=max(item.flipped for item in parities),
        iou=min(item.iou for item in parities),
        flip_distance=max(item.flip_distance for item in parities),
    )


def proof_shapes(card: ModelCard) -> list[tuple[int, int, int]]:
    """List shapes (batch, height, width) to check: one pixel, thin, odd, below, at and off the stride, as trained.

    Where the network takes no smaller picture than `min_size`, sides are raised to that. Where its pictures are never
    padded, they are raised to multiples of the stride.
    A file of one shape is checked with whole batches, and with one image, with which a batch is filled up.
    """
    if card.input.fixed_shape is not None:
        return list(dict.fromkeys([(1, *card.input.size), card.input.fixed_shape]))
    stride, (height, width), least = card.input.stride, card.input.size, card.input.min_size
    small_height, small_width = proof_size(card)
    shapes = [
        (1, 1, 1),
        (1, 3, 101),
        (2, stride - 1, stride + 1),
        (1, 2 * stride, 3 * stride),
        (3, 2 * stride + 3, stride + 5),
        (1, height, width),
        (3, small_height, small_width),
        (1, small_height + 1, small_width - 1),
    ]
    taken = [(batch, max(h, least[0]), max(w, least[1])) for batch, h, w in shapes]
    if not card.input.padded:
        taken = [(batch, *bucketed((h, w), stride)) for batch, h, w in taken]
    return list(dict.fromkeys(taken))


def proof_size(card: ModelCard) -> tuple[int, int]:
    """Return the trained (height, width), each at most `MAX_PROOF_SIDE` or the next size that the network takes."""
    if card.input.fixed_size is not None:
        return card.input.fixed_size
    (height, width), least = card.input.size, card.input.min_size
    size = max(least[0], min(height, MAX_PROOF_SIDE)), max(least[1], min(width, MAX_PROOF_SIDE))
    return size if card.input.padded else bucketed(size, card.input.stride)


@dataclass(frozen=True)
class Case:
    """A batch of pictures to compare on, uint8 [batch, height, width, channels], and where they are from."""

    images: NDArray[np.uint8]
    source: Images


ExpectedAnswer = tuple[Case, NDArray[np.float32]]
"""A case, and the probabilities float32 [batch, classes, height, width] that a graph has to answer."""


def cases(card: ModelCard, pictures: Sequence[NDArray[np.uint8]] = ()) -> Iterator[Case]:
    """Give the batches to compare on: synthetic ones in all `proof_shapes`, flat and noisy ones, real pictures.

    `pictures` are uint8 [height, width, channels], fitted to the network.
    """
    channels = card.architecture.in_channels
    for batch, height, width in proof_shapes(card):
        yield Case(np.stack([synthetic_image(height, width, channels, seed) for seed in range(batch)]), "synthetic")
    yield Case(hard_pictures(card), "synthetic")
    for picture in pictures:
        yield Case(picture[None], "data")
    same = [picture for picture in pictures if picture.shape == pictures[0].shape]
    if len(same) >= MOST_IN_BATCH:
        yield Case(np.stack(same[:MOST_IN_BATCH]), "data")


def hard_pictures(card: ModelCard) -> NDArray[np.uint8]:
    """Make a black, a white, a checkered (single pixels) and a noisy picture: uint8 [n, height, width, channels].

    A network that normalises over the picture gets noisy ones alone. Others may be of one value after a convolution,
    and it would divide by a deviation that is rounding alone: PyTorch itself answers them one way in fp32 and another
    way in fp64.
    """
    height, width = proof_size(card)
    shape = (height, width, card.architecture.in_channels)
    board = np.broadcast_to((np.indices((height, width)).sum(axis=0) % 2 * 255)[:, :, None], shape)
    noise = np.random.default_rng(0).integers(0, 256, shape)
    regular = [np.zeros(shape), np.full(shape, 255), board] if card.input.padded else [synthetic_image(*shape, seed=0)]
    return np.stack([*regular, noise]).astype(np.uint8)


def expected_answers(reference: NetworkFunction, checked: Iterable[Case]) -> Iterator[ExpectedAnswer]:
    """Give each case with the reference's answer."""
    return ((case, reference(case.images)) for case in checked)


def proof_rows(run: NetworkFunction, checked: Iterable[ExpectedAnswer], output: OutputSpec) -> list[ProofRow]:
    """Compare a function's answers on each case; cases of one shape and source make one row of their worst figures.

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


def add_proof(
    card: ModelCard,
    run: NetworkFunction,
    expected: Sequence[ExpectedAnswer],
    golden: Golden,
    rows: Sequence[ProofRow] = (),
    gate: Gate | None = None,
    replay: NetworkFunction | None = None,
    *,
    reference: Reference = "module",
    tolerance: float = MAX_ERROR,
) -> ModelCard:
    """Return the card with the proof of `run`, after `rows` of one that was made before.

    The golden sample is replayed on `replay` if it is given.
    """
    rounding = " rounding to fp16" if card.precision == "fp16" else ""
    proof = Proof(
        provider=f"{PROVIDER['cpu']}{rounding}",
        versions=library_versions(),
        tolerance=tolerance if gate is None else None,
        rows=(*rows, *proof_rows(run, expected, card.output)),
        golden_error=min(golden.largest_error(replay or run, card.input.fixed_size), 1.0),
        gate=gate,
        reference=reference,
    )
    return replace(card, proof=proof)


def allowed_error(segmenter: Segmenter, card: ModelCard) -> float:
    """Return the largest error that passes: `MAX_ERROR`, or more for a deep network whose own rounding is coarse.

    The yardstick is PyTorch in fp32 against PyTorch in fp64, times `OWN_ROUNDING`.

    Raises:
        ProofError: that is more than `MAX_TOLERANCE`.
    """
    if isinstance(card.architecture, UNetConfig):
        return MAX_ERROR
    images = hard_pictures(card)
    exact = network_run(copy.deepcopy(segmenter).double())(images)
    own = float(np.abs(network_run(segmenter)(images) - exact).max())
    if OWN_ROUNDING * own > MAX_TOLERANCE:
        raise ProofError(
            f"the network's own rounding, PyTorch in fp32 against fp64, is {own:.2g}, expected at most "
            f"{MAX_TOLERANCE / OWN_ROUNDING:g}; no file can be proved equal to it"
        )
    return max(MAX_ERROR, OWN_ROUNDING * own)


def depends_on_batch(run: NetworkFunction, card: ModelCard, tolerance: float | None = None) -> bool:
    """Return True if an image's answer changes by more than `tolerance` with its place in a batch or the other images.

    By default the tolerance is 0 for U-Nets of this library. It is `MAX_ERROR` for files for CPUs, for other networks
    and for widths that are no multiples of 4: there the order of sums may depend on the batch.
    """
    if tolerance is None:
        unet = card.architecture
        whole = isinstance(unet, UNetConfig) and not any(width % 4 for width in unet.widths)
        tolerance = 0.0 if whole and card.target == "any" else MAX_ERROR
    height, width = proof_size(card)
    pictures = [synthetic_image(height, width, card.architecture.in_channels, seed) for seed in range(3)]
    together, turned = run(np.stack(pictures)), run(np.stack([pictures[2], pictures[0], pictures[1]]))
    alone = np.concatenate([run(picture[None]) for picture in pictures])
    others = (together, turned[[1, 2, 0]])
    return not all(bool((np.abs(alone - answers) <= tolerance).all()) for answers in others)


def logits_error(
    run: NetworkFunction, reference: NetworkFunction, card: ModelCard, pictures: Sequence[NDArray[np.uint8]]
) -> float:
    """Return the largest |difference| of logits as a share of the range of the reference's logits; infinity for NaN.

    Measured on flat and noisy pictures and a real one. The range counts as at least a tenth of the largest |logit|.
    """
    checked = [hard_pictures(card), *(one[None] for one in pictures[:1])]
    expected = [reference(images) for images in checked]
    highest, lowest = max(float(one.max()) for one in expected), min(float(one.min()) for one in expected)
    error = max(float(np.abs(run(images) - one).max()) for images, one in zip(checked, expected, strict=True))
    # If logits are all alike, rounding to the next fp32 value (6e-8 of the logit) must not count as an error.
    share = error / max(highest - lowest, 0.1 * max(abs(highest), abs(lowest)), 1e-6)
    return share if np.isfinite(share) else float("inf")


def open_graph(model: onnx.ModelProto, *, optimised: bool = True) -> Any:
    """Open a session of a graph on the CPU; unless `optimised`, each node is computed as it stands.

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
    """Return the function from images to probabilities that a graph computes on the CPU; raises as `open_graph`."""
    return output_function(open_graph(model, optimised=optimised), "probability")


def logits_run(model: onnx.ModelProto) -> NetworkFunction:
    """Return the function from images to logits, before sigmoid or softmax, that a graph computes on the CPU."""
    (activation,) = (node for node in model.graph.node if "probability" in node.output)
    changed = copy.deepcopy(model)
    changed.graph.output[0].name = activation.input[0]
    return output_function(open_graph(changed), activation.input[0])


def run_session(session: Any, name: str, images: NDArray[Any]) -> NDArray[np.float32]:
    """Return one output of a session for images [n, ...], in whole batches if it takes no others."""
    count = session.get_inputs()[0].shape[0]
    if not isinstance(count, int):
        answer: NDArray[np.float32] = session.run([name], {"image": images})[0]
        return answer
    answers = [session.run([name], {"image": part})[0] for part in full_batches(images, count)]
    return np.concatenate(answers)[: len(images)]


def output_function(session: Any, name: str) -> NetworkFunction:
    """Return the function from images to one output of a session; it raises a ProofError where the session fails."""

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            answer = run_session(session, name, images)
        except Exception as error:  # ONNX Runtime's errors share no base class
            reason = one_line(str(error))[-300:]
            raise ProofError(f"the exported graph fails on a batch of {list(images.shape)} ({reason})") from error
        return answer

    return run


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a proof depends on."""
    return {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def network_run(segmenter: Segmenter, *, logits: bool = False) -> NetworkFunction:
    """Return the function from images to probabilities, or `logits`, that PyTorch computes."""
    network = segmenter.logits if logits else segmenter

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            device = segmenter.mean.device
            answer: NDArray[np.float32] = network(torch.from_numpy(images).to(device)).cpu().numpy()
        return answer

    return run


def make_golden(segmenter: Segmenter, card: ModelCard, candidates: int = CANDIDATES) -> Golden:
    """Make the golden sample: pictures chosen of `candidates`, PyTorch's answers, and its largest error in TF32."""
    channels, fixed, run = card.architecture.in_channels, card.input.fixed_size, network_run(segmenter)
    if fixed is None:
        usual = golden_image(channels, golden_size(card.input))
    else:  # a part of the picture that the file is shown, so that the sample stays small
        usual = golden_image(channels)[: fixed[0], : fixed[1]].copy()
    pictures = choose_pictures(segmenter, usual, lambda picture: extended(picture, fixed), candidates)
    first, *others = (Golden.made(picture, run, fixed) for picture in pictures)
    others = others if first.probability.nbytes <= MOST_ANSWER_BYTES else []
    errors = [tf32_error(segmenter, one.shown(fixed), one.probability) for one in (first, *others)]
    known = [error for error in errors if error is not None]
    return replace(first, others=tuple(others), tf32_error=max(known) if len(known) == len(errors) else None)


def raw_run(model: onnx.ModelProto, card: ModelCard, *, logits: bool = False) -> NetworkFunction:
    """Return the function from images to probabilities, or `logits`, of a raw graph, with its pre- and post-processing.

    Raises:
        ProofError: ONNX Runtime cannot load it.
    """
    session, stride = open_graph(model), card.input.stride
    mean, std = (np.array(value, np.float32) for value in (card.input.mean, card.input.std))

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        _, height, width, _ = images.shape
        planes = ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        planes = np.pad(planes, ((0, 0), (0, 0), (0, -height % stride), (0, -width % stride)), mode="edge")
        answer = run_session(session, "logits", planes)[:, :, :height, :width]
        if logits:
            return answer
        with np.errstate(over="ignore", invalid="ignore"):  # exp(-x) may be infinite, and NaN shows in the answer
            if card.output.activation != "softmax":
                return np.asarray(1 / (1 + np.exp(-answer)), np.float32)
            raised = np.exp(answer - answer.max(axis=1, keepdims=True))
            return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)

    return run
