"""Measurement of what a copy of lower precision lost, on real images; `gate.py` holds the limits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from export.layers import layers_of
from export.precision.gate import PrecisionCost, describe_refusal, doubt_of
from export.proof import answers_in, flipped_pixels
from export.samples import FittedImage, Samples
from runtime.card import Gate, ModelCard
from runtime.image import place, restore
from runtime.model_file.golden import NetworkFunction
from runtime.result import mask_of
from unet_core.evaluation.metrics import Counts, Metrics
from unet_core.reporting.progress import Display

TRIED_PICTURES = 32
"""Number of pictures that a set of layers is tried on first. The gate is on all, and a second search if it fails."""

MOST_TRIED = 24
"""Number of tries in a search for the costliest layers: each opens a session and runs all pictures. A U-Net of four
levels has 23 layers."""


class Judgement(NamedTuple):
    """The gate of a conversion; why its pictures can show nothing, if so; False if an answer was not finite."""

    gate: Gate
    doubt: str | None
    finite: bool


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A graph of lower precision, and what it lost.

    `run` answers as a device will. If it is not `model` itself, `twin` is a graph that has to answer as `model` does on
    a CPU. `gate`, `doubt` and `finite` are those of `Judgement`. `costs` are the layers that cost most, worst first,
    if they were looked for. `notes` are lines that a user should read.
    """

    model: onnx.ModelProto
    run: NetworkFunction
    gate: Gate
    doubt: str | None
    finite: bool
    costs: Sequence[tuple[str, PrecisionCost]]
    twin: onnx.ModelProto | None = None
    notes: tuple[str, ...] = ()

    def refusal(self) -> str:
        """Say why the gate failed."""
        return describe_refusal(self.gate, layers_of(self.model), self.costs, self.doubt)


class Judge:
    """Comparison of answers with those of fp32, on some pictures."""

    def __init__(
        self, exact: NetworkFunction | Sequence[NDArray[np.float32]], pictures: Sequence[FittedImage], card: ModelCard
    ) -> None:
        """Take the fp32 network, or its answers to the pictures, each probability [classes, height, width]."""
        self.pictures, self.card = pictures, card
        self.expected = [exact(picture[None])[0] for picture in pictures] if callable(exact) else exact

    def cost(self, run: NetworkFunction) -> PrecisionCost:
        """Return share of flipped pixels and mean |p - p of fp32|; answers that are not finite flip all."""
        flipped = pixels = 0
        distance = 0.0
        for picture, expected in zip(self.pictures, self.expected, strict=True):
            answer = run(picture[None])[0]
            if not np.isfinite(answer).all():
                return 1.0, 1.0
            flipped += count_flipped(answer, expected, self.card)
            pixels += picture.shape[0] * picture.shape[1]
            distance += float(np.abs(answer - expected).mean())
        return flipped / pixels, distance / len(self.pictures)


def tried_together(layers: Sequence[str]) -> dict[str, list[str]]:
    """Split layers into at most `MOST_TRIED` groups of neighbours, by their names: "layer", or "first to last"."""
    many = -(-len(layers) // MOST_TRIED)
    groups = [list(layers[start : start + many]) for start in range(0, len(layers), many or 1)]
    return {" to ".join(dict.fromkeys((group[0], group[-1]))): group for group in groups}


def count_flipped(answer: NDArray[np.float32], expected: NDArray[np.float32], card: ModelCard) -> int:
    """Count the pixels whose class differs; both are probabilities [classes, height, width]."""
    return int(np.count_nonzero(flipped_pixels(mask_of(answer, card.output), mask_of(expected, card.output))))


def image_dices(run: NetworkFunction, card: ModelCard, samples: Samples, display: Display) -> tuple[float, float]:
    """Return the image Dice (0..1) of a network on labelled pictures, and of the best answer that is one class."""
    network = Metrics(card.output.classes)
    count = len(samples.measured)
    for index in display.through(range(count), "measuring image Dice", count):
        picture, truth = samples.measured[index]
        fitted = place(picture, (truth.shape[0], truth.shape[1]), card.input)
        network.add(mask_of(restore(run(picture[None])[0], fitted), card.output), truth, index)
    constants = []
    for label in range(max(2, len(card.output.classes))):
        state = {index: counts_of_one_label(label, there) for index, (_, _, there) in network.state().items()}
        constants.append(Metrics.from_state(card.output.classes, state).image_dice)
    return network.image_dice, max(constants)


def counts_of_one_label(label: int, there: NDArray[np.int64]) -> Counts:
    """Return the counts of `Metrics` for an answer of one label everywhere; `there` are the pixels of each in truth."""
    counts = np.zeros((3, len(there)), np.int64)
    counts[:, label] = there[label], there.sum(), 0
    counts[2] = there
    return counts


def measured(
    run: NetworkFunction,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    kept: Sequence[str],
    good: Callable[[Gate], bool],
    display: Display,
    what: str = "",
) -> Judgement:
    """Measure a conversion on all pictures; `what` names it for the display, by default by the card's precision.

    The gate passes if its figures are `good`, all answers are finite, and there is no doubt.
    """
    flipped = pixels = 0
    finite = True
    seen: set[tuple[int, int]] = set()
    lower, fp32 = Metrics(card.output.classes), Metrics(card.output.classes)
    count = len(samples.measured)
    for index in display.through(range(count), f"measuring {what or card.precision}", count):
        picture, truth = samples.measured[index]
        answer, expected = run(picture[None])[0], exact(picture[None])[0]
        size = picture.shape[0] * picture.shape[1]
        whole = bool(np.isfinite(answer).all())
        finite = finite and whole
        flipped += count_flipped(answer, expected, card) if whole else size
        seen |= answers_in([mask_of(expected, card.output)])
        pixels += size
        fitted = place(picture, (truth.shape[0], truth.shape[1]), card.input)
        for metrics, probability in ((lower, answer), (fp32, expected)) if samples.labelled else ():
            metrics.add(mask_of(restore(probability, fitted), card.output), truth, index)
    dices = (lower.image_dice, fp32.image_dice) if samples.labelled else None
    gate = Gate(
        images=samples.images,
        count=count,
        flipped=flipped / pixels,
        image_dice=None if dices is None else dices[0],
        image_dice_fp32=None if dices is None else dices[1],
        kept=tuple(kept),
        passed=False,
    )
    doubt = doubt_of(gate, card, seen)
    return Judgement(replace(gate, passed=finite and doubt is None and good(gate)), doubt, finite)
