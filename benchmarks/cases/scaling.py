"""Cost against size: latency and peak memory over image areas and batch sizes, and exponents fitted to them.

cost = scale * size ** exponent, by least squares of the logarithms; an exponent of 1 means twice the cost for twice the
pixels. Contestants alternate while latency is timed, so each round has an exponent of its own. The peak of each size is
measured in a process of its own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants.base import Shape
from benchmarks.measuring.rounds import interleave, least_seconds
from benchmarks.measuring.subprocesses import MEMORY, available_megabytes, memory_unavailable_reason, run_script
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped, measurements_of
from runtime.card import InputSpec
from runtime.errors import DeviceError
from runtime.model_file.golden import synthetic_image
from runtime.model_file.reader import read_model
from runtime.predictor import Predictor
from unet_core.reporting.progress import Display

PART, OURS = "scaling", "Predictor.run"
AREAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Default areas, as multiples of the trained area."""

BATCHES = (1, 2, 4, 8)
MIN_POINTS = 3
"""Least number of sizes of a fit, since two lie on any curve."""

MAX_MEMORY_SHARE = 0.8
"""Largest share of the available memory that a shape may be expected to take."""

PEAK_SCRIPT = (
    MEMORY
    + """
import json, sys, time
import numpy as np, onnxruntime
from runtime.model_file.reader import read_model
from runtime.devices.session import session_options
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
    """The cost of a shape in a process of its own, in a session with the options of `runtime`.

    `megabytes` is the peak beyond the memory before the call, when the model was loaded and had computed 16x16 pixels;
    `seconds` is the duration of the call.
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
    """Measure milliseconds and peak MB of the runtime on the CPU over sizes (one image) and batches (trained size).

    MB are given only for shapes that take more than the size of the model's file. Loading leaves up to that much free
    memory in the process; smaller shapes find room in it and would seem to cost next to nothing.

    Args:
        model: an .onnx file.
        sizes: (height, width); by default the multiples `AREAS` of the trained area.
        batches: numbers of images that run together.
        threads: threads of each call.
        rounds: rounds of the timing, in which the shapes alternate.
        budget_s: seconds for the timing. Shapes that would exceed it, or the available memory, are skipped; both are
            estimated from the next smaller shape.
        display: shows progress; nothing is drawn while times are taken.
    """
    reason = memory_unavailable_reason()
    if reason:
        return [Skipped(part=PART, contestant=OURS, settings={}, reason=reason)]
    display = display or Display(quiet=True)
    expected = read_model(model)[0].input
    alone = [(1, height, width) for height, width in sizes or default_sizes(expected)]
    together = [(batch, *expected.size) for batch in batches]
    shapes = sorted({*alone, *together}, key=math.prod)
    costs: dict[Shape, Cost] = {}
    found: list[Measurement | Skipped] = []
    with pinned(threads):
        for shape in display.through(shapes, "peak memory", len(shapes), unit="shape"):
            try:
                check_affordable(shape, costs, budget_s)
                costs[shape] = Cost(*json.loads(run_script(PEAK_SCRIPT, model, threads, *shape)))
            except DeviceError as error:
                settings = settings_of(shape, threads)
                found.append(Skipped(part=PART, contestant=OURS, settings=settings, reason=str(error)))
        display.note(f"scaling: {rounds} rounds of {len(costs)} shapes, alternating")
        times = time_shapes(model, list(costs), threads, rounds, budget_s)
    measured = {shape: cost for shape, cost in costs.items() if cost.megabytes > model.stat().st_size / 1e6}
    for shape in costs:
        milliseconds, settings = {OURS: times[shape]}, settings_of(shape, threads)
        found += measurements_of(milliseconds, part=PART, settings=settings, unit="ms", group=PART)
        if shape in measured:
            megabytes = {OURS: np.array([costs[shape].megabytes])}
            found += measurements_of(megabytes, part=PART, settings=settings, unit="MB")
    for over, shapes in (("pixels", alone), ("images", together)):
        kept = [shape for shape in dict.fromkeys(shapes) if shape in costs]
        found.append(exponent_of(over, "ms", {shape: times[shape] for shape in kept}, threads))
        peaks = {shape: np.array([costs[shape].megabytes]) for shape in kept if shape in measured}
        found.append(exponent_of(over, "MB", peaks, threads))
    return found


def default_sizes(expected: InputSpec) -> list[tuple[int, int]]:
    """Return (height, width) of `AREAS`, with about the trained aspect ratio, in multiples of the stride."""
    stride = expected.stride
    scales = [math.sqrt(area) for area in AREAS]
    sides = [
        [
            max(-(-least // stride), round(side * scale / stride)) * stride
            for least, side in zip(expected.min_size, expected.size, strict=True)
        ]
        for scale in scales
    ]
    return list(dict.fromkeys((height, width) for height, width in sides))


def check_affordable(shape: Shape, costs: Mapping[Shape, Cost], budget_s: float | None) -> None:
    """Raise `DeviceError` if memory or budget is too small, assuming that the cost grows with the pixels."""
    if not costs:
        return
    before, cost = list(costs.items())[-1]
    growth = math.prod(shape) / math.prod(before)
    available, megabytes = available_megabytes(), growth * cost.megabytes
    if available is not None and megabytes > MAX_MEMORY_SHARE * available:
        expected = f"at most {MAX_MEMORY_SHARE:.0%} of the {available:.0f} MB free"
        raise DeviceError(f"would take about {megabytes:.0f} MB, expected {expected}")
    seconds = sum(map(least_seconds, (growth * cost.seconds, *(one.seconds for one in costs.values()))))
    if budget_s is not None and seconds > budget_s:
        raise DeviceError(f"the sweep up to here would take about {seconds:.0f} s, the budget is {budget_s:.0f} s")


def time_shapes(
    model: Path, shapes: Sequence[Shape], threads: int, rounds: int, budget_s: float | None
) -> dict[Shape, NDArray[np.float64]]:
    """Time each shape, alternating; returns milliseconds float64 [rounds]."""
    with Predictor(model, "cpu", threads) as predictor:
        channels = predictor.card.architecture.in_channels
        calls = {}
        for batch, height, width in shapes:
            images = np.stack([synthetic_image(height, width, channels, seed) for seed in range(batch)])
            calls[str((batch, height, width))] = partial(predictor.run, images)
        times = interleave(calls, rounds, budget_s=budget_s)
    return {shape: times[str(shape)] for shape in shapes}


def settings_of(shape: Shape, threads: int) -> Settings:
    """Return the settings of a shape's measurements."""
    batch, height, width = shape
    return {"batch": batch, "height": height, "width": width, "device": "cpu", "threads": threads}


def exponent_of(
    over: str, unit: str, costs: Mapping[Shape, NDArray[np.float64]], threads: int
) -> Measurement | Skipped:
    """Fit a power law to the costs [rounds] of each shape over its pixels or images; its exponents are the values."""
    settings: Settings = {"of": unit, "over": over, "device": "cpu", "threads": threads}
    if len(costs) < MIN_POINTS:
        reason = f"found {len(costs)} shapes, expected at least {MIN_POINTS} to fit a curve to"
        return Skipped(part=PART, contestant=OURS, settings=settings, reason=reason)
    sizes = np.array([shape[0] if over == "images" else math.prod(shape) for shape in costs], np.float64)
    fitted = fit_power_law(sizes, np.array(list(costs.values())))
    return Measurement(
        part=PART,
        contestant=OURS,
        settings=settings,
        unit="exponent",
        values=fitted.exponents,
        group=PART if len(fitted.exponents) > 1 else "",
        facts={"scale": fitted.scale, "miss": fitted.miss},
    )


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """cost = scale * size ** exponent: the exponent of each round, and the scale that suits their median.

    `miss` is the largest share by which the median cost of a size is off the curve; it tells whether there is one.
    """

    exponents: tuple[float, ...]
    scale: float
    miss: float


def fit_power_law(sizes: NDArray[np.float64], costs: NDArray[np.float64]) -> PowerLaw:
    """Fit sizes [n] and costs [n, rounds], both above 0; exponents below 0 count as 0, since larger is not cheaper."""
    x, y = np.log(sizes), np.log(costs)
    centred = x - x.mean()
    slopes = np.maximum(centred @ y / (centred @ centred), 0.0)  # [rounds]
    median = float(np.median(slopes))
    middle = np.log(np.median(costs, axis=1))
    intercept = float((middle - median * x).mean())
    miss = np.abs(np.expm1(middle - (intercept + median * x))).max()
    return PowerLaw(exponents=tuple(slopes.tolist()), scale=math.exp(intercept), miss=float(miss))
