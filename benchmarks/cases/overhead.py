"""The cost of the runtime around the network: `Predictor.run` and `predict` against a bare session."""

import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime

from benchmarks.measuring.rounds import interleave
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped, measurements_of
from runtime.devices.session import session_options
from runtime.image import load_image
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor
from unet_core.reporting.progress import Display

BARE, RUN, PREDICT = "bare session.run", "Predictor.run", "Predictor.predict, from a decoded image of "


def measure(
    model: Path,
    image: Path | None = None,
    *,
    threads: int,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Measure milliseconds of one image of the trained size on the CPU, with the contestants of `overhead_calls`.

    Raises:
        ModelError, ImageError: a file cannot be used.
    """
    (display or Display(quiet=True)).note(f"overhead: {rounds} rounds, contestants alternating")
    with pinned(threads), Predictor(model, "cpu", threads) as predictor:
        height, width = predictor.card.input.size
        settings: Settings = {
            "batch": 1,
            "height": height,
            "width": width,
            "device": "cpu",
            "threads": predictor.report.threads,
        }
        times = interleave(overhead_calls(predictor, image), rounds, budget_s=budget_s)
    return [*measurements_of(times, part="overhead", settings=settings, unit="ms", group="overhead")]


def overhead_calls(predictor: Predictor, image: Path | None) -> dict[str, Callable[[], object]]:
    """Make the contestants: a bare session with the predictor's options, `run`, and `predict` from a decoded image.

    The image is a synthetic one of the trained size if none is given.
    """
    options = session_options(predictor.report.threads)
    session = onnxruntime.InferenceSession(os.fspath(predictor.path), options, providers=["CPUExecutionProvider"])
    card = predictor.card
    batch = synthetic_image(*card.input.size, card.architecture.in_channels, 0)[None]
    pixels = batch[0] if image is None else load_image(image, card.input.channels)
    return {
        BARE: lambda: session.run(["probability"], {"image": batch}),
        RUN: lambda: predictor.run(batch),
        f"{PREDICT}{pixels.shape[1]}x{pixels.shape[0]}": lambda: predictor.predict(pixels),
    }
