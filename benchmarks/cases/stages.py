"""Where the time of `predict` goes: its own `Times` over image files of several sizes."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from benchmarks.cases.image_files import write_jpeg
from benchmarks.measuring.timing import MIN_ROUNDS, pinned
from benchmarks.results import Measurement, Settings, Skipped
from runtime.predictor import Predictor
from runtime.result import Times
from unet_core.reporting.progress import Display

SIZES = ((160, 240), (640, 960), (1280, 1918))
STAGES = tuple(stage.name for stage in fields(Times))


def measure(
    model: Path,
    image: Path | None = None,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    device: str = "cpu",
    threads: int,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Milliseconds of each stage for JPEG files of (height, width), which take turns; the stages are the contestants.

    `image` is a real one that is brought to all sizes; without it a synthetic one is. A stage that never takes any time
    (transfer on a CPU) is left out. With `budget_s` seconds there are fewer `rounds`, but not fewer than `MIN_ROUNDS`.

    Raises:
        ModelError, ImageError, DeviceError: a file cannot be used, or the device does not run here.
    """
    (display or Display(quiet=True)).note(f"stages: {rounds} rounds of {len(sizes)} sizes in turns")
    found: dict[tuple[int, int], list[Times]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as folder, pinned(threads), Predictor(model, device, threads) as predictor:
        files = {
            size: write_jpeg(Path(folder) / f"{index}.jpg", size, predictor.card.input.channels, image)
            for index, size in enumerate(found)
        }
        runs_on = predictor.report.device
        started = time.perf_counter()
        for done in range(rounds):
            spent = time.perf_counter() - started
            if budget_s is not None and done >= MIN_ROUNDS and spent + spent / done > budget_s:
                break
            for size, file in files.items():
                predictor.predict(file)  # does not count: the one before it was of another size
                times = predictor.predict(file).times
                assert times is not None
                found[size].append(times)
    pictures = "synthetic" if image is None else "real"
    return [
        _measurement(stage, [getattr(one, stage) for one in times], size, pictures, runs_on, threads)
        for size, times in found.items()
        for stage in STAGES
        if any(getattr(one, stage) for one in times)
    ]


def _measurement(
    stage: str, values: Sequence[float], size: tuple[int, int], pictures: str, device: str, threads: int
) -> Measurement:
    settings: Settings = {
        "height": size[0],
        "width": size[1],
        "pictures": pictures,
        "device": device,
        "threads": threads,
    }
    return Measurement(
        part="stages", contestant=stage, settings=settings, unit="ms", values=tuple(values), group="stages"
    )
