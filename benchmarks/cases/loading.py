"""Loading: time and memory until each file of a network is open and has answered, each in a fresh process."""

import json
import time
from pathlib import Path

from benchmarks.contestants.base import BenchmarkModel
from benchmarks.contestants.onnx_runtime import FOR_CPUS, OURS
from benchmarks.measuring.rounds import MIN_ROUNDS
from benchmarks.measuring.subprocesses import MEMORY, memory_unavailable_reason, run_script
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped
from unet_core.reporting.progress import Display

PART = "loading"

MAX_ROUNDS = 7
"""Maximum number of rounds: a round starts a process for each file."""

STAGES = ("opened", "first answer")

SCRIPT = (
    MEMORY
    + """
import json, sys, time
import numpy as np, onnxruntime
from runtime import Predictor
model, threads, height, width, channels = sys.argv[1], *map(int, sys.argv[2:6])
image = np.full((height, width, channels), 128, np.uint8)
forget_peak()
before = megabytes("VmHWM")
found = []
start = time.perf_counter_ns()
predictor = Predictor(model, "cpu", threads)
found.append([(time.perf_counter_ns() - start) / 1e9, megabytes("VmHWM") - before])
predictor.run(image[None])
found.append([(time.perf_counter_ns() - start) / 1e9, megabytes("VmHWM") - before])
print(json.dumps(found))
"""
)


def measure(
    benchmark_model: BenchmarkModel,
    *,
    threads: int,
    rounds: int = 5,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Seconds until a file is open and until its first image is answered, and MB at the peak; files take turns.

    The file is in the page cache. MB (10^6 bytes) are beyond a process that has imported the libraries. With a budget
    of `budget_s` seconds there are fewer `rounds`, but at least `MIN_ROUNDS`; there are never more than `MAX_ROUNDS`.

    Raises:
        DeviceError: a process failed, so there is nothing to compare.
    """
    rounds = min(rounds, MAX_ROUNDS)
    reason = memory_unavailable_reason()
    if reason:
        return [Skipped(part=PART, contestant="all", settings={}, reason=reason)]
    files = [(OURS, "fp32", benchmark_model.path)]
    files += [(FOR_CPUS, "fp32", benchmark_model.for_cpus)] if benchmark_model.for_cpus else []
    files += [(OURS, precision, path) for precision, path in benchmark_model.files.items()]
    card = benchmark_model.card.input
    common = (threads, *card.size, benchmark_model.card.architecture.in_channels)
    taken: dict[tuple[str, str, Path], list[list[list[float]]]] = {file: [] for file in files}
    with pinned(threads), (display or Display(quiet=True)).bar(PART, rounds * len(files), unit="process") as advance:
        started = time.perf_counter()
        for done in range(rounds):
            if budget_s is not None and done >= MIN_ROUNDS and time.perf_counter() - started > budget_s:
                break
            for file, own in taken.items():
                own.append(json.loads(run_script(SCRIPT, file[2], *common)))
                advance(1)
    found: list[Measurement | Skipped] = []
    for (name, precision, path), own in taken.items():
        for stage, stage_name in enumerate(STAGES):
            settings: Settings = {"until": stage_name, "precision": precision, "device": "cpu", "threads": threads}
            for place, unit in enumerate(("s", "MB")):
                found.append(
                    Measurement(
                        part=PART,
                        contestant=name,
                        settings=settings,
                        unit=unit,
                        values=tuple(values[stage][place] for values in own),
                        group=PART,
                        facts={"file_mb": path.stat().st_size / 1e6},
                    )
                )
    return found
