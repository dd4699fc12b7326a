"""The cost of the runtime around the network: `Predictor.run` and `predict` against a bare session, in each engine."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import onnxruntime

from benchmarks.contestants.base import BenchmarkModel
from benchmarks.contestants.openvino import OpenVinoContestant
from benchmarks.measuring.rounds import interleave
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped, measurements_of
from runtime.devices.session import session_options
from runtime.image import load_image
from runtime.image_files.limits import LIMITS, Limits
from runtime.model_file.golden import synthetic_image
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from unet_core.reporting.progress import Display

PART = "overhead"
BARE, RUN, PREDICT = "bare session.run", "Predictor.run", "Predictor.predict, from a decoded image of "
BARE_OPENVINO = "bare request.infer"

DEVICE_OF = {"ONNX Runtime": "cpu", "OpenVINO": "openvino"}
"""The device of `Predictor` by the engine that it runs in."""

Calls = dict[str, Callable[[], object]]


def measure(
    benchmark_model: BenchmarkModel,
    image: Path | None = None,
    *,
    threads: int,
    limits: Limits = LIMITS,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Measure milliseconds of one image of the trained size on the CPU, with the contestants of `overhead_calls`.

    OpenVINO is skipped where it is not installed. All contestants take turns.

    Raises:
        ModelError, ImageError: a file cannot be used.
    """
    (display or Display(quiet=True)).note(f"overhead: {rounds} rounds, contestants alternating")
    found: list[Measurement | Skipped] = []
    engines: dict[str, Calls] = {}
    with ExitStack() as stack:
        stack.enter_context(pinned(threads))
        for engine, device in DEVICE_OF.items():
            reason = OpenVinoContestant().unavailable_reason(benchmark_model) if device == "openvino" else None
            if reason is not None:
                found.append(Skipped(part=PART, contestant="all", settings={"engine": engine}, reason=reason))
                continue
            predictor = stack.enter_context(
                Predictor(benchmark_model.path, device, threads, ProviderOptions(bf16=False))
            )
            engines[engine] = overhead_calls(benchmark_model, predictor, image, limits)
        named = {f"{engine}: {name}": call for engine, own in engines.items() for name, call in own.items()}
        times = interleave(named, rounds, budget_s=budget_s)
    height, width = benchmark_model.card.input.size
    for engine, own in engines.items():
        settings: Settings = {
            "engine": engine,
            "batch": 1,
            "height": height,
            "width": width,
            "device": "cpu",
            "threads": threads,
        }
        of_engine = {name: times[f"{engine}: {name}"] for name in own}
        found += measurements_of(of_engine, part=PART, settings=settings, unit="ms", group=PART)
    return found


def overhead_calls(model: BenchmarkModel, predictor: Predictor, image: Path | None, limits: Limits = LIMITS) -> Calls:
    """Make the contestants: the bare engine with the predictor's options, `run`, and `predict` from a decoded image.

    The image is a synthetic one of the trained size if none is given.
    """
    card, threads = predictor.card, predictor.report.threads
    batch = synthetic_image(*card.input.size, card.architecture.in_channels, 0)[None]
    pixels = (
        batch[0] if image is None else load_image(image, card.input.channels, limits=limits, levels=card.input.levels)
    )
    if predictor.report.device == "cpu":
        session = onnxruntime.InferenceSession(
            os.fspath(predictor.path), session_options(threads), providers=["CPUExecutionProvider"]
        )
        bare: Calls = {BARE: lambda: session.run(["probability"], {"image": batch})}
    else:
        request = OpenVinoContestant().load(model, threads, (1, *card.input.size))
        bare = {BARE_OPENVINO: lambda: request(batch)}
    return {
        **bare,
        RUN: lambda: predictor.run(batch),
        f"{PREDICT}{pixels.shape[1]}x{pixels.shape[0]}": lambda: predictor.predict(pixels),
    }
