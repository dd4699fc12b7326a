"""Memory of a process over many predictions of varied sizes, and of a large image, whole and in tiles."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.measuring.subprocesses import LIMIT_S, MEMORY, memory_unavailable_reason, run_script
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped
from runtime.errors import DeviceError
from runtime.predictor import Predictor
from unet_core.reporting.progress import Display

MANY = "Predictor.predict, varied sizes"
WHOLE = "whole"
TILES: Mapping[str, int] = {WHOLE: 0, "tiles of 512x512": 512, "tiles of 256x256": 256}
"""Side of the tiles in pixels, by contestant; 0 is the whole image."""

SMALLEST, LARGEST = 32, 512
"""Bounds of the varied sides, in pixels; the upper one is excluded."""

LATE = 10
"""Multiple of the expected time after which the predictions are stopped."""

TENTHS = 10
"""Number of values of the process that predicts, and least number of its predictions."""

MANY_SCRIPT = (
    MEMORY
    + """
import json, sys
import numpy as np
from runtime import Predictor
model, threads, count, smallest, largest, tenths = sys.argv[1], *map(int, sys.argv[2:7])
predictor = Predictor(model, "cpu", threads)
random = np.random.default_rng(0)
found = []
for index in range(count):
    height, width = random.integers(smallest, largest, 2)
    predictor.predict(random.integers(0, 256, (height, width, 3), np.uint8), size="native")
    if (index + 1) * tenths // count > len(found):
        found.append(megabytes("VmRSS"))
print(json.dumps(found))
"""
)

TILES_SCRIPT = (
    MEMORY
    + """
import json, sys, time
import numpy as np
from runtime import Predictor
model, threads, side, tile = sys.argv[1], *map(int, sys.argv[2:5])
predictor = Predictor(model, "cpu", threads)
pattern, count = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8), -(-side // 256)
image = np.ascontiguousarray(np.tile(pattern, (count, count, 1))[:side, :side])
forget_peak()
before = megabytes("VmHWM")
start = time.perf_counter_ns()
predictor.predict(image, **({"tile": (tile, tile)} if tile else {"size": "native"}))
seconds = (time.perf_counter_ns() - start) / 1e9
print(json.dumps([seconds, megabytes("VmHWM") - before]))
"""
)


def measure(
    model: Path,
    *,
    threads: int,
    predictions: int = 2000,
    side: int = 2048,
    rounds: int = 5,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Measure memory on the CPU, in processes of their own; parts "memory" and "tiles".

    Args:
        model: an .onnx file.
        threads: threads of each prediction.
        predictions: number of predictions of varied sizes. The values are the resident memory of the process in MB
            after each tenth of them.
        side: side of the large image in pixels. The values are the peak in MB beyond the process before it, and the
            seconds of the first prediction of a process, once a round; the contestants alternate.
        rounds: rounds of the large image.
        budget_s: seconds, half of them for the predictions, of which at least `TENTHS` are made. The rounds of the
            large image are not limited, since they are as few as an interval needs.
        display: shows progress.

    Raises:
        DeviceError: a process failed that needs little memory.
    """
    reason = memory_unavailable_reason()
    if reason:
        return [Skipped(part=part, contestant="all", settings={}, reason=reason) for part in ("memory", "tiles")]
    display = display or Display(quiet=True)
    with pinned(threads):
        seconds = seconds_of_one(model, threads)
        if budget_s is not None:
            predictions = min(predictions, max(TENTHS, int(budget_s / 2 / seconds)))
        display.note(f"memory: {predictions} predictions in one process")
        given, limit_s = (model, threads, predictions, SMALLEST, LARGEST, TENTHS), LATE * predictions * seconds
        values = json.loads(run_script(MANY_SCRIPT, *given, limit_s=max(LIMIT_S, limit_s)))
        settings: Settings = {"images": predictions, "device": "cpu", "threads": threads}
        many = Measurement(part="memory", contestant=MANY, settings=settings, unit="MB", values=tuple(values))
        return [many, *measure_tiles(model, threads, side, rounds, display)]


def seconds_of_one(model: Path, threads: int) -> float:
    """Time a prediction of the varied sizes' mean area, after an untimed one."""
    side = (SMALLEST + LARGEST) // 2
    image = np.zeros((side, side, 3), np.uint8)
    with Predictor(model, "cpu", threads) as predictor:
        predictor.predict(image, size="native")
        started = time.perf_counter()
        predictor.predict(image, size="native")
        return time.perf_counter() - started


def measure_tiles(model: Path, threads: int, side: int, rounds: int, display: Display) -> list[Measurement | Skipped]:
    """Measure the large image; a contestant that fails, perhaps out of memory, is skipped and not tried again."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TILES}
    settings: Settings = {"height": side, "width": side, "overlap": 0.25, "device": "cpu", "threads": threads}
    skipped: list[Measurement | Skipped] = []
    with display.bar("tiles", rounds * len(TILES), unit="process") as advance:
        for _ in range(rounds):
            for name in list(found):
                try:
                    found[name].append(json.loads(run_script(TILES_SCRIPT, model, threads, side, TILES[name])))
                except DeviceError as error:
                    del found[name]
                    skipped.append(Skipped(part="tiles", contestant=name, settings=settings, reason=str(error)))
                advance(1)
    return skipped + [
        Measurement(
            part="tiles",
            contestant=name,
            settings=settings,
            unit=unit,
            values=tuple(pair[index] for pair in pairs),
            group="tiles",
        )
        for name, pairs in found.items()
        for index, unit in enumerate(("s", "MB"))
    ]
