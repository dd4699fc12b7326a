"""fp16 and int8 exports that pass a gate on real images, or say which layers hurt."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.half import Loss, convolutions, emulate_half, layers_to_keep, named_costs, overflowing, to_half
from export.proof import Run, graph_run, open_graph
from export.quantise import Ranges, Values, quantisable, to_int8, values_to_calibrate
from export.samples import Samples, metrics_of
from runtime.card import Gate, Images, ModelCard
from runtime.errors import ConfigError
from runtime.result import mask_of
from unet_core.display import Display

FP16_FLIPPED = 1e-4
"""Largest share of pixels that an fp16 file may answer otherwise than fp32."""

INT8_FLIPPED, INT8_DICE = 5e-3, 2e-3
"""The same of an int8 file without masks to measure on, and the image Dice that it may lose where there are masks."""

TRIED_PICTURES = 32
"""Pictures that a set of layers is tried on; the gate itself is on all."""

PERCENTILE = 99.99
"""Of a value's elements in a picture: rarer ones are cut off when it is held in 8 bits."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A graph of lower precision, its answers as a device will give them, and what it lost.

    `costs` are the layers that hurt, worst first, where it was looked for them.
    """

    model: onnx.ModelProto
    run: Run
    gate: Gate
    costs: Sequence[tuple[str, Loss]]

    def refusal(self) -> str:
        """What is wrong, where the gate is not passed."""
        gate = self.gate
        found = f"flips {gate.flipped:.3%} of the pixels"
        if gate.image_dice is not None and gate.image_dice_fp32 is not None:
            found += f" and takes the image Dice from {gate.image_dice_fp32:.4f} to {gate.image_dice:.4f}"
        worst = ", ".join(named_costs(self.costs))
        return found + (f"; alone, {worst}" if worst else "")


def fp16(
    model: onnx.ModelProto, card: ModelCard, source: "Source", keep: Collection[str], display: Display
) -> Converted:
    """Convert to fp16; layers that overflow, or that flip too many pixels, stay in fp32."""
    layers = _known(keep, convolutions(model))
    judge = Judge(graph_run(model), source.pictures[:TRIED_PICTURES], card)
    needed = {*keep, *overflowing(model, lambda names: extremes(model, names, judge.pictures))}
    with display.bar("finding layers that fp16 can hold", len(layers) + 1, unit="layer") as advance:

        def loss(kept: Collection[str]) -> Loss:
            advance(1)
            return judge.loss(graph_run(emulate_half(model, kept)))

        kept, costs = layers_to_keep(layers, needed, loss, FP16_FLIPPED)
    run = graph_run(emulate_half(model, kept))

    def good(flipped: float, _: float | None) -> bool:
        return flipped <= FP16_FLIPPED and kept != layers

    gate = _gate(run, card, source, model, kept, good)
    return Converted(model=to_half(model, kept), run=run, gate=gate, costs=costs)


def int8(
    model: onnx.ModelProto,
    card: ModelCard,
    source: "Source",
    keep: Collection[str],
    values: Values,
    display: Display,
) -> Converted:
    """Convert to int8, calibrated on the source's pictures."""
    able = quantisable(model)
    _known(keep, convolutions(model))
    layers = [layer for layer in able if layer not in keep]
    ranges = calibrate(model, values_to_calibrate(model, layers), source.calibration, display)
    converted = to_int8(model, layers, ranges, values)
    run = graph_run(converted)
    kept = [layer for layer in convolutions(model) if layer not in layers]

    def good(flipped: float, lost: float | None) -> bool:
        return flipped <= INT8_FLIPPED if lost is None else lost <= INT8_DICE

    gate = _gate(run, card, source, model, kept, good)
    costs: list[tuple[str, Loss]] = []
    if not gate.passed:
        judge = Judge(graph_run(model), source.pictures[:TRIED_PICTURES], card)
        costs = [
            (layer, judge.loss(graph_run(to_int8(model, [layer], ranges, values))))
            for layer in display.through(layers, "finding layers that hurt", len(layers), unit="layer")
        ]
        costs.sort(key=lambda cost: cost[1], reverse=True)
    return Converted(model=converted, run=run, gate=gate, costs=costs)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures as the network sees them, to measure and to calibrate on, and where they are from."""

    pictures: Sequence[Picture]
    calibration: Sequence[Picture]
    images: Images
    samples: Samples | None = None


class Judge:
    """Compares answers with those of fp32 on some pictures."""

    def __init__(self, reference: Run, pictures: Sequence[Picture], card: ModelCard) -> None:
        self.pictures, self.output = pictures, card.output
        self.expected = [reference(picture[None])[0] for picture in pictures]

    def loss(self, run: Run) -> Loss:
        """Share of pixels whose class differs, and mean |p - p of fp32|; answers that are not finite flip all."""
        flipped = pixels = 0
        distance = 0.0
        for picture, expected in zip(self.pictures, self.expected, strict=True):
            answer = run(picture[None])[0]
            if not np.isfinite(answer).all():
                return 1.0, 1.0
            changed = mask_of(answer, self.output) != mask_of(expected, self.output)
            flipped += int(np.count_nonzero(changed))
            pixels += changed.size
            distance += float(np.abs(answer - expected).mean())
        return flipped / pixels, distance / len(self.pictures)


def _gate(
    run: Run,
    card: ModelCard,
    source: Source,
    model: onnx.ModelProto,
    kept: Sequence[str],
    good: Callable[[float, float | None], bool],
) -> Gate:
    """Measure a conversion on all pictures; `good` is asked with the share flipped and the image Dice lost."""
    exact = graph_run(model)
    flipped, _ = Judge(exact, source.pictures, card).loss(run)
    dice = exact_dice = lost = None
    if source.samples is not None and source.samples.labelled:
        dice, exact_dice = (metrics_of(one, source.samples.measured, card).image_dice for one in (run, exact))
        lost = exact_dice - dice
    return Gate(
        images=source.images,
        count=len(source.pictures),
        flipped=flipped,
        image_dice=dice,
        image_dice_fp32=exact_dice,
        kept=tuple(kept),
        passed=good(flipped, lost),
    )


def _known(keep: Collection[str], layers: list[str]) -> list[str]:
    for layer in keep:
        if layer not in layers:
            raise ConfigError(f"--keep {layer}: no such layer; expected some of {', '.join(layers)}")
    return layers


def extremes(model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[Picture]) -> dict[str, float]:
    """The largest |value| of each named value over some pictures."""
    largest = dict.fromkeys(names, 0.0)
    for values in _observed(model, names, pictures):
        for name, value in values.items():
            largest[name] = max(largest[name], float(np.abs(value).max()))
    return largest


def calibrate(model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[Picture], display: Display) -> Ranges:
    """The range of each named value: the mean over the pictures of where all but 0.01 % of its elements are."""
    bounds: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for values in display.through(_observed(model, names, pictures), "calibrating", len(pictures)):
        for name, value in values.items():
            bounds[name].append(np.percentile(value, [100 - PERCENTILE, PERCENTILE]))
    means = {name: np.mean(bound, axis=0) for name, bound in bounds.items()}
    return {name: (float(low), float(high)) for name, (low, high) in means.items()}


def _observed(
    model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[Picture]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """What the named values are for each picture."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = open_graph(copy)
    for picture in pictures:
        yield dict(zip(names, session.run(list(names), {"image": picture[None]}), strict=True))
