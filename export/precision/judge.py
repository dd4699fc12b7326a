"""Conversion to fp16 and int8, and the gate on real images that each copy has to pass."""

import copy
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.graph import layers_of
from export.options import Values
from export.precision.fp16 import PrecisionCost, emulate_half, layers_to_keep, overflowing, to_half
from export.precision.gate import FP16_FLIPPED, INT8_DICE, INT8_FLIPPED
from export.precision.int8 import Ranges, quantisable, to_int8, values_to_calibrate
from export.proof import cases, graph_run, open_graph
from export.samples import Examples, FittedImage, Samples, spread
from runtime.card import Gate, ModelCard
from runtime.errors import ConfigError
from runtime.image import place, restore
from runtime.model_file.golden import NetworkFunction
from runtime.result import mask_of
from unet_core.evaluation.metrics import Metrics
from unet_core.reporting.progress import Display

MEANINGFUL_DICE = 0.1
"""Smallest image Dice of fp32 that can show what a precision loses; it also has to be half of training's."""

FEW_PICTURES = 8
"""Number of pictures below which a gate says little."""

TRIED_PICTURES = 32
"""Number of pictures that a set of layers is tried on first. The gate is on all, and a second search if it fails."""

PERCENTILE = 99.99
"""Percentile of a value's elements in a picture; rarer ones are clipped when the value is held in 8 bits."""

TIMED_ROUNDS = 5
"""Number of rounds in `speed`."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A graph of lower precision, and what it lost.

    `run` answers as a device will. If it is not `model` itself, `twin` is a graph that has to answer as `model` does on
    a CPU. `costs` are the layers that cost most, worst first, if they were looked for. `doubt` says why the images can
    show nothing, if so. `notes` are lines that a user should read.
    """

    model: onnx.ModelProto
    run: NetworkFunction
    gate: Gate
    costs: Sequence[tuple[str, PrecisionCost]]
    doubt: str | None = None
    twin: onnx.ModelProto | None = None
    notes: tuple[str, ...] = ()

    def refusal(self) -> str:
        """Say why the gate failed."""
        gate = self.gate
        if set(gate.kept) == set(layers_of(self.model)):
            found = "all layers had to stay in fp32"
        elif self.doubt:
            return self.doubt
        else:
            found = f"it flips {gate.flipped:.4%} of the pixels"
        if gate.image_dice is not None and gate.image_dice_fp32 is not None:
            found += f" and takes the image Dice from {gate.image_dice_fp32:.4f} to {gate.image_dice:.4f}"
        worst = ", ".join(f"{layer} flips {flipped:.3%}" for layer, (flipped, _) in self.costs[:3])
        return found + (f"; alone, {worst}" if worst else "")


class Judge:
    """Comparison of answers with those of fp32, on some pictures."""

    def __init__(self, exact: NetworkFunction, pictures: Sequence[FittedImage], card: ModelCard) -> None:
        self.pictures, self.card = pictures, card
        self.expected = [exact(picture[None])[0] for picture in pictures]

    def cost(self, run: NetworkFunction) -> PrecisionCost:
        """Return share of flipped pixels and mean |p - p of fp32|; answers that are not finite flip all."""
        flipped = pixels = 0
        distance = 0.0
        for picture, expected in zip(self.pictures, self.expected, strict=True):
            answer = run(picture[None])[0]
            if not np.isfinite(answer).all():
                return 1.0, 1.0
            flipped += flipped_pixels(answer, expected, self.card)
            pixels += picture.shape[0] * picture.shape[1]
            distance += float(np.abs(answer - expected).mean())
        return flipped / pixels, distance / len(self.pictures)


def flipped_pixels(answer: NDArray[np.float32], expected: NDArray[np.float32], card: ModelCard) -> int:
    """Count the pixels whose class differs; both are probabilities [classes, height, width]."""
    return int(np.count_nonzero(mask_of(answer, card.output) != mask_of(expected, card.output)))


def convert_to_fp16(
    model: onnx.ModelProto,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    keep: Collection[str],
    display: Display,
) -> Converted:
    """Convert to fp16, and judge the result. Layers that overflow, or that flip too many pixels, stay in fp32.

    Raises:
        ConfigError: a layer to keep is not in the graph, or all are to be kept.
    """
    layers = layers_of(model)
    check_keep(keep, layers, layers)
    tried = samples.pictures(TRIED_PICTURES)
    seen = [*tried, *(image for case in cases(card) for image in case.images)]
    needed = {*keep, *overflowing(model, lambda names: extremes(model, names, seen))}
    kept, costs = search_layers(model, Judge(exact, tried, card), needed, display)

    def judged(kept: Sequence[str]) -> tuple[Gate, str | None]:
        def good(gate: Gate) -> bool:
            return gate.flipped <= FP16_FLIPPED and kept != layers

        return measured(graph_run(emulate_half(model, kept)), exact, card, samples, kept, good, display)

    gate, doubt = judged(kept)
    if gate.flipped > FP16_FLIPPED:
        kept, costs = search_layers(model, Judge(exact, samples.pictures(len(samples.measured)), card), needed, display)
        gate, doubt = judged(kept)
    return Converted(
        model=to_half(model, kept),
        run=graph_run(emulate_half(model, kept)),
        gate=gate,
        costs=costs,
        doubt=doubt,
        twin=emulate_half(model, kept, weights_only=True),
        notes=notes_on_images(gate),
    )


def search_layers(
    model: onnx.ModelProto, judge: Judge, needed: Collection[str], display: Display
) -> tuple[list[str], list[tuple[str, PrecisionCost]]]:
    """Search for the layers to keep in fp32 with `layers_to_keep`, judged by the graph that rounds."""
    layers = layers_of(model)
    with display.bar("finding layers that fp16 can hold", len(layers) + 1, unit="layer") as advance:

        def cost(kept: Collection[str]) -> PrecisionCost:
            advance(1)
            return judge.cost(graph_run(emulate_half(model, kept)))

        return layers_to_keep(layers, needed, cost, FP16_FLIPPED)


def convert_to_int8(
    model: onnx.ModelProto,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    keep: Collection[str],
    values: Values,
    display: Display,
) -> Converted:
    """Convert to int8, calibrated on the samples, and judge the result.

    Raises:
        ConfigError: as `convert_to_fp16`.
    """
    able = quantisable(model)
    check_keep(keep, layers_of(model), able)
    layers = [layer for layer in able if layer not in keep]
    found = calibrate(model, values_to_calibrate(model, layers, values), samples.calibration, display)
    tried = [samples.calibration[index][0] for index in spread(range(len(samples.calibration)), TRIED_PICTURES)]
    judge = Judge(exact, tried, card)
    ranges = min(found, key=lambda ranges: judge.cost(graph_run(to_int8(model, layers, ranges, values))))
    converted = to_int8(model, layers, ranges, values)
    run = graph_run(converted)
    kept = [layer for layer in layers_of(model) if layer not in layers]
    gate, doubt = measured(run, exact, card, samples, kept, int8_is_good, display)
    costs: list[tuple[str, PrecisionCost]] = []
    if not gate.passed:
        judge = Judge(exact, samples.pictures(TRIED_PICTURES), card)
        costs = [
            (layer, judge.cost(graph_run(to_int8(model, [layer], ranges, values))))
            for layer in display.through(layers, "finding layers that lose most", len(layers), unit="layer")
        ]
        costs.sort(key=lambda cost: cost[1], reverse=True)
    notes = (*notes_on_images(gate), *((speed(run, exact, samples.measured[0][0]),) if values == "u8" else ()))
    return Converted(model=converted, run=run, gate=gate, costs=costs, doubt=doubt, notes=notes)


def int8_is_good(gate: Gate) -> bool:
    """Return True if an int8 file lost no more than allowed: image Dice if there are masks, else flipped pixels."""
    if gate.image_dice is None or gate.image_dice_fp32 is None:
        return gate.flipped <= INT8_FLIPPED
    return gate.image_dice_fp32 - gate.image_dice <= INT8_DICE


def notes_on_images(gate: Gate) -> tuple[str, ...]:
    """Note if the gate had no real images, or few."""
    if gate.images == "synthetic":
        return ("judged on synthetic pictures, since there are no real ones; give --data",)
    if gate.count < FEW_PICTURES:
        return (f"judged on {gate.count} real image{'s' * (gate.count > 1)}, which is little; give more in --data",)
    return ()


def check_keep(keep: Collection[str], layers: Sequence[str], able: Collection[str]) -> None:
    """Raise a ConfigError if a layer to keep is not one of `layers`, or none of the `able` ones is left to convert."""
    for layer in keep:
        if layer not in layers:
            raise ConfigError(f"--keep {layer}: no such layer; expected some of {', '.join(layers)}")
    if set(able) <= set(keep):
        raise ConfigError(f"--keep: names all of {', '.join(able)}; leave out some, or give --precision fp32")


def measured(
    run: NetworkFunction,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    kept: Sequence[str],
    good: Callable[[Gate], bool],
    display: Display,
) -> tuple[Gate, str | None]:
    """Measure a conversion on all pictures; return the gate, and a doubt if the pictures can show nothing.

    The gate passes if its figures are `good`, all answers are finite, and there is no doubt.
    """
    flipped = pixels = 0
    finite = True
    seen: set[int] = set()
    lower, fp32 = Metrics(card.output.classes), Metrics(card.output.classes)
    count = len(samples.measured)
    for index in display.through(range(count), f"measuring {card.precision}", count):
        picture, truth = samples.measured[index]
        answer, expected = run(picture[None])[0], exact(picture[None])[0]
        size = picture.shape[0] * picture.shape[1]
        whole = bool(np.isfinite(answer).all())
        finite = finite and whole
        flipped += flipped_pixels(answer, expected, card) if whole else size
        seen.update(np.unique(mask_of(expected, card.output)).tolist())
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
    return replace(gate, passed=finite and doubt is None and good(gate)), doubt


def doubt_of(gate: Gate, card: ModelCard, seen: set[int]) -> str | None:
    """Say why the images can show nothing, if so; `seen` are the classes that fp32 answered."""
    if gate.images == "data" and len(seen) == 1:
        return "the network answers one class everywhere on the images of --data, so they show nothing; give others"
    if gate.image_dice_fp32 is None:
        return None
    trained = card.training.metrics.get("image_dice", 0.0) if card.training else 0.0
    if gate.image_dice_fp32 >= max(MEANINGFUL_DICE, trained / 2):
        return None
    known = f", in training {trained:.4f}" if trained else ""
    return (
        f"the image Dice of fp32 on --data is {gate.image_dice_fp32:.4f}{known}, so it cannot show what is lost; give "
        "images and masks of what the network was trained for"
    )


def speed(run: NetworkFunction, exact: NetworkFunction, picture: FittedImage) -> str:
    """Say in a line how fast a graph is on this CPU beside the fp32 one: the best of some rounds each."""
    best = [float("inf"), float("inf")]
    for _ in range(TIMED_ROUNDS):
        for index, one in enumerate((run, exact)):
            started = time.perf_counter()
            one(picture[None])
            best[index] = min(best[index], 1000 * (time.perf_counter() - started))
    verdict = "faster" if best[0] < best[1] else "no faster"
    return f"u8 is {verdict} than fp32 on this CPU: {best[0]:.1f} ms an image against {best[1]:.1f} ms"


def extremes(model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[FittedImage]) -> dict[str, float]:
    """Return the largest |value| of each named value over some pictures."""
    # The graph computes it, since the values themselves may take gigabytes.
    nodes = [
        node
        for name in names
        for node in (
            helper.make_node("Abs", [name], [f"{name}.abs"]),
            helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.largest"], keepdims=0),
        )
    ]
    observed = observer(model, [f"{name}.largest" for name in names], nodes)
    largest = np.max([observed(picture) for picture in pictures], axis=0)
    return dict(zip(names, largest.tolist(), strict=True))


def calibrate(
    model: onnx.ModelProto, names: Sequence[str], pictures: Examples, display: Display
) -> tuple[Ranges, Ranges]:
    """Return two ranges of each named value: mean and widest, over the pictures, of where 99.99 % of its elements are.

    The mean is finer, but clips what only few pictures show.
    """
    observed = observer(model, names, [])
    bounds = [
        [np.percentile(value, [100 - PERCENTILE, PERCENTILE]) for value in observed(pictures[index][0])]
        for index in display.through(range(len(pictures)), "calibrating", len(pictures))
    ]
    lows, highs = np.moveaxis(np.array(bounds), 2, 0)  # each [pictures, names]
    means = zip(lows.mean(axis=0).tolist(), highs.mean(axis=0).tolist(), strict=True)
    widest = zip(lows.min(axis=0).tolist(), highs.max(axis=0).tolist(), strict=True)
    return dict(zip(names, means, strict=True)), dict(zip(names, widest, strict=True))


def observer(
    model: onnx.ModelProto, names: Sequence[str], nodes: Sequence[onnx.NodeProto]
) -> Callable[[FittedImage], list[NDArray[np.float32]]]:
    """Return the function from a picture to the named values of a graph with some more nodes."""
    extended = copy.deepcopy(model)
    extended.graph.node.extend(nodes)
    del extended.graph.output[:]
    extended.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = open_graph(extended)

    def observed(picture: FittedImage) -> list[NDArray[np.float32]]:
        values: list[NDArray[np.float32]] = session.run(list(names), {"image": picture[None]})
        return values

    return observed
