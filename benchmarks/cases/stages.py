"""The time of each stage of `predict`, by its own `Times`, over image files of several sizes."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from benchmarks.cases.image_files import write_jpeg
from benchmarks.measuring.rounds import MIN_ROUNDS
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped
from runtime.image_files.limits import LIMITS, Limits
from runtime.predictor import Predictor
from runtime.result import Times
from unet_core.reporting.progress import Display

SIZES = ((160, 240), (640, 960), (1280, 1918))
"""(height, width) of the image files."""


def measure(
    model: Path,
    image: Path | None = None,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    device: str = "cpu",
    threads: int,
    limits: Limits = LIMITS,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Measure milliseconds of each stage of `predict`; the stages are the contestants.

    Stages that never take any time, as transfer on a CPU, are left out.

    Args:
        model: an .onnx file.
        image: an image file that is resized to all sizes; a synthetic image is made if it is None.
        sizes: (height, width) of the JPEG files, which alternate.
        device: device of the predictor.
        threads: threads of every prediction.
        limits: largest image to decode.
        rounds: rounds, each with two predictions of every file, of which the second counts.
        budget_s: seconds for all rounds; fewer are made if they would take longer, but at least `MIN_ROUNDS`.
        display: shows what is being measured; nothing is drawn while times are taken.

    Raises:
        ModelError, ImageError, DeviceError: a file cannot be used, or the device does not run here.
    """
    (display or Display(quiet=True)).note(f"stages: {rounds} rounds of {len(sizes)} sizes, alternating")
    found: dict[tuple[int, int], list[Times]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as folder, pinned(threads), Predictor(model, device, threads) as predictor:
        files = {
            size: write_jpeg(Path(folder) / f"{index}.jpg", size, predictor.card.input.channels, image, limits)
            for index, size in enumerate(found)
        }
        runs_on = predictor.report.device
        started = time.perf_counter()
        for done in range(rounds):
            spent = time.perf_counter() - started
            if budget_s is not None and done >= MIN_ROUNDS and spent + spent / done > budget_s:
                break
            for size, file in files.items():
                predictor.predict(file)  # untimed, since the prediction before it was of another size
                times = predictor.predict(file).times
                assert times is not None
                found[size].append(times)
    common: Settings = {
        "pictures": "synthetic" if image is None else "real",
        "device": runs_on,
        "threads": threads,
    }
    return [
        Measurement(
            part="stages",
            contestant=stage.name,
            settings={"height": height, "width": width, **common},
            unit="ms",
            values=tuple(getattr(one, stage.name) for one in times),
            group="stages",
        )
        for (height, width), times in found.items()
        for stage in fields(Times)
        if any(getattr(one, stage.name) for one in times)
    ]
