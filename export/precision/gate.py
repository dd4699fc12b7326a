"""fp16 and int8 exports that pass a gate on real images, or say which layers hurt."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.precision.fp16 import Loss, convolutions, emulate_half, layers_to_keep, named_costs, overflowing, to_half
from export.precision.int8 import Ranges, Values, quantisable, to_int8, values_to_calibrate
from export.proof import cases, graph_run, open_graph
from export.samples import Examples, Picture, Samples, spread
from runtime.card import Gate, ModelCard
from runtime.errors import ConfigError
from runtime.image import place, restore
from runtime.model_file.golden import NetworkFunction
from runtime.result import mask_of
from unet_core.evaluation.metrics import Metrics
from unet_core.reporting.progress import Display

FP16_FLIPPED = 1e-4
"""Largest share of pixels that an fp16 file may answer otherwise than fp32."""

INT8_FLIPPED, INT8_DICE = 5e-3, 2e-3
"""The same of an int8 file without masks to measure on, and the image Dice that it may lose where there are masks."""

MEANINGFUL_DICE = 0.1
"""A smaller image Dice of fp32 on the images, or one below half of training's, cannot show what a precision loses."""

FEW_PICTURES = 8
"""With fewer a gate says little."""

TRIED_PICTURES = 32
"""Pictures that a set of layers is tried on first; the gate is on all, and so is a second search where it fails."""

PERCENTILE = 99.99
"""Of a value's elements in a picture: rarer ones are cut off when it is held in 8 bits."""

TIMED_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A graph of lower precision, its answers as a device will give them, and what it lost.

    Where `run` is not `model` itself, `twin` is a graph that must answer as `model` does on a CPU. `costs` are the
    layers that hurt, worst first, where it was looked for them; `doubt` says why the gate's images can show nothing,
    if so, and `notes` are what a user has to know.
    """

    model: onnx.ModelProto
    run: NetworkFunction
    gate: Gate
    costs: Sequence[tuple[str, Loss]]
    doubt: str | None = None
    twin: onnx.ModelProto | None = None
    notes: tuple[str, ...] = ()

    def refusal(self) -> str:
        """What is wrong, where the gate is not passed."""
        gate = self.gate
        if set(gate.kept) == set(convolutions(self.model)):
            found = "all layers had to stay in fp32"
        elif self.doubt:
            return self.doubt
        else:
            found = f"it flips {gate.flipped:.4%} of the pixels"
        if gate.image_dice is not None and gate.image_dice_fp32 is not None:
            found += f" and takes the image Dice from {gate.image_dice_fp32:.4f} to {gate.image_dice:.4f}"
        worst = ", ".join(named_costs(self.costs))
        return found + (f"; alone, {worst}" if worst else "")


class Judge:
    """Compares answers with those of fp32 on some pictures."""

    def __init__(self, exact: NetworkFunction, pictures: Sequence[Picture], card: ModelCard) -> None:
        self.pictures, self.card = pictures, card
        self.expected = [exact(picture[None])[0] for picture in pictures]

    def loss(self, run: NetworkFunction) -> Loss:
        """Share of pixels whose class differs, and mean |p - p of fp32|; answers that are not finite flip all."""
        flipped = pixels = 0
        distance = 0.0
        for picture, expected in zip(self.pictures, self.expected, strict=True):
            answer = run(picture[None])[0]
            if not np.isfinite(answer).all():
                return 1.0, 1.0
            flipped += _flips(answer, expected, self.card)
            pixels += picture.shape[0] * picture.shape[1]
            distance += float(np.abs(answer - expected).mean())
        return flipped / pixels, distance / len(self.pictures)


def fp16(
    model: onnx.ModelProto,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    keep: Collection[str],
    display: Display,
) -> Converted:
    """Convert to fp16; layers that overflow, or that flip too many pixels, stay in fp32.

    Raises:
        ConfigError: a layer to keep is none of the graph's, or nothing is left to convert.
    """
    layers = convolutions(model)
    _check_keep(keep, layers, layers)
    tried = samples.pictures(TRIED_PICTURES)
    seen = [*tried, *(image for case in cases(card) for image in case.images)]
    needed = {*keep, *overflowing(model, lambda names: extremes(model, names, seen))}
    kept, costs = _search(model, Judge(exact, tried, card), needed, display)

    def judged(kept: Sequence[str]) -> tuple[Gate, str | None]:
        def good(gate: Gate) -> bool:
            return gate.flipped <= FP16_FLIPPED and kept != layers

        return measured(graph_run(emulate_half(model, kept)), exact, card, samples, kept, good, display)

    gate, doubt = judged(kept)
    if gate.flipped > FP16_FLIPPED:
        kept, costs = _search(model, Judge(exact, samples.pictures(len(samples.measured)), card), needed, display)
        gate, doubt = judged(kept)
    return Converted(
        model=to_half(model, kept),
        run=graph_run(emulate_half(model, kept)),
        gate=gate,
        costs=costs,
        doubt=doubt,
        twin=emulate_half(model, kept, weights_only=True),
        notes=_notes(gate),
    )


def _notes(gate: Gate) -> tuple[str, ...]:
    if gate.images == "synthetic":
        return ("judged on synthetic pictures, having no real ones; give --data",)
    if gate.count < FEW_PICTURES:
        return (f"judged on {gate.count} real image{'s' * (gate.count > 1)}, which is little; give more in --data",)
    return ()


def _search(
    model: onnx.ModelProto, judge: Judge, needed: Collection[str], display: Display
) -> tuple[list[str], list[tuple[str, Loss]]]:
    """`layers_to_keep`, judged by the graph that rounds."""
    layers = convolutions(model)
    with display.bar("finding layers that fp16 can hold", len(layers) + 1, unit="layer") as advance:

        def loss(kept: Collection[str]) -> Loss:
            advance(1)
            return judge.loss(graph_run(emulate_half(model, kept)))

        return layers_to_keep(layers, needed, loss, FP16_FLIPPED)


def int8(
    model: onnx.ModelProto,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    keep: Collection[str],
    values: Values,
    display: Display,
) -> Converted:
    """Convert to int8, calibrated on the samples; raises as `fp16`."""
    able = quantisable(model)
    _check_keep(keep, convolutions(model), able)
    layers = [layer for layer in able if layer not in keep]
    found = calibrate(model, values_to_calibrate(model, layers, values), samples.calibration, display)
    tried = [samples.calibration[index][0] for index in spread(range(len(samples.calibration)), TRIED_PICTURES)]
    judge = Judge(exact, tried, card)
    ranges = min(found, key=lambda ranges: judge.loss(graph_run(to_int8(model, layers, ranges, values))))
    converted = to_int8(model, layers, ranges, values)
    run = graph_run(converted)
    kept = [layer for layer in convolutions(model) if layer not in layers]
    gate, doubt = measured(run, exact, card, samples, kept, _int8_is_good, display)
    costs: list[tuple[str, Loss]] = []
    if not gate.passed:
        judge = Judge(exact, samples.pictures(TRIED_PICTURES), card)
        costs = [
            (layer, judge.loss(graph_run(to_int8(model, [layer], ranges, values))))
            for layer in display.through(layers, "finding layers that hurt", len(layers), unit="layer")
        ]
        costs.sort(key=lambda cost: cost[1], reverse=True)
    notes = (speed(run, exact, samples.measured[0][0]),) if values == "u8" else ()
    return Converted(model=converted, run=run, gate=gate, costs=costs, doubt=doubt, notes=(*_notes(gate), *notes))


def _int8_is_good(gate: Gate) -> bool:
    if gate.image_dice is None or gate.image_dice_fp32 is None:
        return gate.flipped <= INT8_FLIPPED
    return gate.image_dice_fp32 - gate.image_dice <= INT8_DICE


def _check_keep(keep: Collection[str], layers: Sequence[str], able: Collection[str]) -> None:
    for layer in keep:
        if layer not in layers:
            raise ConfigError(f"--keep {layer}: no such layer; expected some of {', '.join(layers)}")
    if set(able) <= set(keep):
        raise ConfigError(f"--keep: names all of {', '.join(able)}; leave out some, or give --precision fp32")


def _flips(answer: NDArray[np.float32], expected: NDArray[np.float32], card: ModelCard) -> int:
    return int(np.count_nonzero(mask_of(answer, card.output) != mask_of(expected, card.output)))


def measured(
    run: NetworkFunction,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    kept: Sequence[str],
    good: Callable[[Gate], bool],
    display: Display,
) -> tuple[Gate, str | None]:
    """Measure a conversion on all pictures, and say why they can show nothing, if so.

    The gate is passed if `good` says so of its figures, all answers are finite and nothing is in doubt.
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
        flipped += _flips(answer, expected, card) if whole else size
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
    doubt = _doubt(gate, card, seen)
    return replace(gate, passed=finite and doubt is None and good(gate)), doubt


def _doubt(gate: Gate, card: ModelCard, seen: set[int]) -> str | None:
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


def speed(run: NetworkFunction, exact: NetworkFunction, picture: Picture) -> str:
    """A line that says how fast a graph is on this CPU, beside that of fp32: the best of some turns each."""
    best = [float("inf"), float("inf")]
    for _ in range(TIMED_ROUNDS):
        for place_of, one in enumerate((run, exact)):
            started = time.perf_counter()
            one(picture[None])
            best[place_of] = min(best[place_of], 1000 * (time.perf_counter() - started))
    verdict = "faster" if best[0] < best[1] else "no faster"
    return f"u8 is {verdict} than fp32 on this CPU: {best[0]:.1f} ms an image against {best[1]:.1f} ms"


def extremes(model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[Picture]) -> dict[str, float]:
    """The largest |value| of each named value over some pictures."""
    # Computed in the graph: the values themselves may be some gigabytes.
    nodes = [
        node
        for name in names
        for node in (
            helper.make_node("Abs", [name], [f"{name}.abs"]),
            helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.largest"], keepdims=0),
        )
    ]
    observed = _observed(model, [f"{name}.largest" for name in names], nodes)
    largest = np.max([observed(picture) for picture in pictures], axis=0)
    return dict(zip(names, largest.tolist(), strict=True))


def calibrate(
    model: onnx.ModelProto, names: Sequence[str], pictures: Examples, display: Display
) -> tuple[Ranges, Ranges]:
    """Two ranges of each named value: the mean and the widest over the pictures of where 99.99 % of its elements are.

    The mean is finer, but what only few pictures show is cut off.
    """
    observed = _observed(model, names, [])
    bounds = [
        [np.percentile(value, [100 - PERCENTILE, PERCENTILE]) for value in observed(pictures[index][0])]
        for index in display.through(range(len(pictures)), "calibrating", len(pictures))
    ]
    lows, highs = np.moveaxis(np.array(bounds), 2, 0)  # each [pictures, names]
    means = zip(lows.mean(axis=0).tolist(), highs.mean(axis=0).tolist(), strict=True)
    widest = zip(lows.min(axis=0).tolist(), highs.max(axis=0).tolist(), strict=True)
    return dict(zip(names, means, strict=True)), dict(zip(names, widest, strict=True))


def _observed(
    model: onnx.ModelProto, names: Sequence[str], nodes: Sequence[onnx.NodeProto]
) -> Callable[[Picture], list[NDArray[np.float32]]]:
    """What the named values are for a picture, in a graph with some more nodes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.node.extend(nodes)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = open_graph(copy)

    def observed(picture: Picture) -> list[NDArray[np.float32]]:
        values: list[NDArray[np.float32]] = session.run(list(names), {"image": picture[None]})
        return values

    return observed
