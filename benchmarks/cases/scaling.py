"""Cost against size: latency and peak memory over image areas and batch sizes, and exponents fitted to them.

cost = scale * size ** exponent, by least squares of the logarithms; an exponent of 1 means twice the cost for twice the
pixels. Latency is timed in turns, so each round has an exponent of its own; the peak of each size is taken in a process
of its own.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring.subprocesses import MEMORY, available_megabytes, memory_unavailable_reason, run_script
from benchmarks.measuring.timing import interleave, least_seconds, pinned
from benchmarks.results import Measurement, Settings, Skipped
from runtime.card import InputSpec
from runtime.errors import DeviceError
from runtime.model_file.golden import synthetic_image
from runtime.model_file.reader import read_model
from runtime.predictor import Predictor
from unet_core.reporting.progress import Display

OURS = "Predictor.run"
AREAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Areas by default, in those of the trained size."""

BATCHES = (1, 2, 4, 8)
MIN_POINTS = 3
"""Sizes of a fit, at least: two lie on any curve."""

ROOM = 0.8
"""Share of the memory that is there which a shape may be expected to take."""

Shape = tuple[int, int, int]
"""Batch, height and width."""

PEAK_SCRIPT = (
    MEMORY
    + """
import json, sys, time
import numpy as np, onnxruntime
from runtime.model_file.reader import read_model
from runtime.options import session_options
model, threads, batch, height, width = sys.argv[1], *map(int, sys.argv[2:6])
session = onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
images = np.full((batch, height, width, read_model(model)[0].architecture.in_channels), 128, np.uint8)
give_back = onnxruntime.RunOptions()
give_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
session.run(["probability"], {"image": images[:1, :16, :16]}, give_back)
forget_peak()
before = megabytes("VmHWM")
start = time.perf_counter_ns()
session.run(["probability"], {"image": images})
seconds = (time.perf_counter_ns() - start) / 1e9
print(json.dumps([megabytes("VmHWM") - before, seconds]))
"""
)


@dataclass(frozen=True)
class Cost:
    """What a shape took in a process of its own, with a session of `runtime`'s options: MB, and seconds of its call.

    The MB are the peak beyond the process before it, which has loaded the model and computed 16x16 pixels.
    """

    megabytes: float
    seconds: float


def measure(
    model: Path,
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
    batches: Sequence[int] = BATCHES,
    threads: int,
    rounds: int = 10,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Milliseconds and peak MB of our runtime on the CPU over sizes (one image) and batches (of the trained size).

    MB are told of shapes that take more than the model's file has: loading leaves free memory behind, as much as the
    weights have at most, in which smaller ones find room, so that they would seem to cost next to nothing.

    Args:
        model: an .onnx file.
        sizes: (height, width); by default as many times the trained area as `AREAS` says.
        batches: images that run together.
        threads: of each call.
        rounds: of the timing, in turns.
        budget_s: seconds for the timing; shapes that would not fit into it are skipped, as are those that would not
            fit into memory, both by what the next smaller one took.
        display: where progress is shown; nothing is drawn while a clock runs.
    """
    reason = memory_unavailable_reason()
    if reason:
        return [Skipped(part="scaling", contestant=OURS, settings={}, reason=reason)]
    display = display or Display(quiet=True)
    expected = read_model(model)[0].input
    alone = [(1, height, width) for height, width in sizes or default_sizes(expected)]
    together = [(batch, *expected.size) for batch in batches]
    with pinned(threads):
        costs, skipped = _costs(model, sorted({*alone, *together}, key=math.prod), threads, budget_s, display)
        display.note(f"scaling: {rounds} rounds of {len(costs)} shapes in turns")
        times = _times(model, list(costs), threads, rounds, budget_s)
    least = model.stat().st_size / 1e6
    told = [shape for shape, cost in costs.items() if cost.megabytes > least]
    found: list[Measurement | Skipped] = [*skipped]
    for shape, cost in costs.items():
        settings = _settings(shape, threads)
        found.append(_measurement(settings, "ms", times[shape].tolist()))
        if shape in told:
            found.append(_measurement(settings, "MB", [cost.megabytes]))
    for over, shapes in (("pixels", alone), ("images", together)):
        kept = [shape for shape in dict.fromkeys(shapes) if shape in costs]
        found += _exponent(over, "ms", kept, np.array([times[shape] for shape in kept]), threads)
        kept = [shape for shape in kept if shape in told]
        found += _exponent(over, "MB", kept, np.array([[costs[shape].megabytes] for shape in kept]), threads)
    return found


def default_sizes(expected: InputSpec) -> list[tuple[int, int]]:
    """(height, width) of `AREAS`, with about the trained aspect ratio, in multiples of the stride."""
    stride = expected.stride
    scales = [math.sqrt(area) for area in AREAS]
    sides = [[max(1, round(side * scale / stride)) * stride for side in expected.size] for scale in scales]
    return list(dict.fromkeys((height, width) for height, width in sides))


def _costs(
    model: Path, shapes: Sequence[Shape], threads: int, budget_s: float | None, display: Display
) -> tuple[dict[Shape, Cost], list[Skipped]]:
    """What each shape takes, from the smallest on; those that are expected not to fit are not tried."""
    costs: dict[Shape, Cost] = {}
    skipped = []
    for shape in display.through(shapes, "peak memory", len(shapes), unit="shape"):
        try:
            _check_room(shape, costs, budget_s)
            costs[shape] = Cost(*json.loads(run_script(PEAK_SCRIPT, model, threads, *shape)))
        except DeviceError as error:
            settings = _settings(shape, threads)
            skipped.append(Skipped(part="scaling", contestant=OURS, settings=settings, reason=str(error)))
    return costs, skipped


def _check_room(shape: Shape, costs: Mapping[Shape, Cost], budget_s: float | None) -> None:
    """Raise `DeviceError` where memory or budget will not do, if the cost grows with the pixels."""
    if not costs:
        return
    before, cost = list(costs.items())[-1]
    growth = math.prod(shape) / math.prod(before)
    room, megabytes = available_megabytes(), growth * cost.megabytes
    if room is not None and megabytes > ROOM * room:
        raise DeviceError(f"would take about {megabytes:.0f} MB, expected at most {ROOM:.0%} of the {room:.0f} MB free")
    seconds = sum(map(least_seconds, (growth * cost.seconds, *(one.seconds for one in costs.values()))))
    if budget_s is not None and seconds > budget_s:
        raise DeviceError(f"the sweep up to here would take about {seconds:.0f} s, the budget is {budget_s:.0f} s")


def _times(
    model: Path, shapes: Sequence[Shape], threads: int, rounds: int, budget_s: float | None
) -> dict[Shape, NDArray[np.float64]]:
    """Milliseconds float64 [rounds] of each shape, in turns."""
    with Predictor(model, "cpu", threads) as predictor:
        channels = predictor.card.architecture.in_channels
        calls = {str(shape): _call(predictor, shape, channels) for shape in shapes}
        times = interleave(calls, rounds, budget_s=budget_s)
    return {shape: times[str(shape)] for shape in shapes}


def _call(predictor: Predictor, shape: Shape, channels: int) -> Callable[[], object]:
    batch, height, width = shape
    images = np.stack([synthetic_image(height, width, channels, seed) for seed in range(batch)])
    return lambda: predictor.run(images)


def _settings(shape: Shape, threads: int) -> Settings:
    batch, height, width = shape
    return {"batch": batch, "height": height, "width": width, "device": "cpu", "threads": threads}


def _measurement(settings: Settings, unit: str, values: Sequence[float], facts: Settings | None = None) -> Measurement:
    return Measurement(
        part="scaling",
        contestant=OURS,
        settings=settings,
        unit=unit,
        values=tuple(values),
        group="scaling" if len(values) > 1 else "",
        facts=facts or {},
    )


def _exponent(
    over: str, unit: str, shapes: Sequence[Shape], costs: NDArray[np.float64], threads: int
) -> list[Measurement | Skipped]:
    """The exponent of costs [shapes, rounds] over pixels or images: one value a round; see `fit` for the facts."""
    settings: Settings = {"of": unit, "over": over, "device": "cpu", "threads": threads}
    if len(shapes) < MIN_POINTS:
        reason = f"found {len(shapes)} shapes, expected at least {MIN_POINTS} to fit a curve to"
        return [Skipped(part="scaling", contestant=OURS, settings=settings, reason=reason)]
    sizes = np.array([shape[0] if over == "images" else math.prod(shape) for shape in shapes], np.float64)
    fitted = fit(sizes, costs)
    return [_measurement(settings, "exponent", fitted.exponents, {"scale": fitted.scale, "miss": fitted.miss})]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """cost = scale * size ** exponent: the exponent of each round, and the scale that suits their median.

    `miss` is the largest share by which the median cost of a size is off the curve; it tells whether there is one.
    """

    exponents: tuple[float, ...]
    scale: float
    miss: float


def fit(sizes: NDArray[np.float64], costs: NDArray[np.float64]) -> Fit:
    """Fit sizes [n] and costs [n, rounds], both above 0; exponents below 0 count as 0, since larger is not cheaper."""
    x, y = np.log(sizes), np.log(costs)
    centred = x - x.mean()
    slopes = np.maximum(centred @ y / (centred @ centred), 0.0)  # [rounds]
    median = float(np.median(slopes))
    middle = np.log(np.median(costs, axis=1))
    intercept = float((middle - median * x).mean())
    miss = np.abs(np.expm1(middle - (intercept + median * x))).max()
    return Fit(
        exponents=tuple(slopes.tolist()),
        scale=math.exp(intercept),
        miss=float(miss),
    )
