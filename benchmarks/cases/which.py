"""Which file and device: every export of networks of several widths, in ONNX Runtime and in OpenVINO.

Networks are trained ones that are given, or else have random weights: then there is speed, size and memory, and no
Dice. Files that lie beside a checkpoint under the names that `unet-export` gives them are taken, all others are
exported.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants.base import BenchmarkModel, torch_missing
from benchmarks.measuring.rounds import interleave
from benchmarks.measuring.subprocesses import MEMORY, memory_unavailable_reason, run_script
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped, measurements_of
from runtime.card import ModelCard, UNetConfig
from runtime.devices.availability import candidates, unavailable_reason
from runtime.errors import ConfigError, DeviceError, UnetError, one_line
from runtime.image import place, restore
from runtime.image_files.limits import LIMITS, Limits
from runtime.model_file.golden import synthetic_image
from runtime.model_file.reader import read_model
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from runtime.result import mask_of
from unet_core.reporting.progress import Display

PART = "which"
BASES = (8, 16, 32, 64)
"""Channels of the first level; each further one of four levels has twice as many as the one above it."""

KINDS: Mapping[str, Mapping[str, Any]] = {
    "fp32": {},
    "cpu": {"target": "cpu"},
    "fp16": {"precision": "fp16"},
    "u8": {"precision": "int8", "int8_for": "cpu"},
    "bf16": {"allow": "bf16"},
}
"""Arguments of `export_onnx` by the name of the file; "bf16" is the fp32 file with the permission to compute so."""

BESIDE = {"fp32": "", "cpu": ".cpu", "fp16": ".fp16", "u8": ".int8-cpu", "bf16": ""}
"""Addition of `unet-export` to a checkpoint's name, by kind."""

ENGINES = {"ONNX Runtime": "cpu", "OpenVINO": "openvino"}
"""The device of `Predictor` by the engine that computes on it."""

RANDOM = "random weights"

SCRIPT = (
    MEMORY
    + """
import sys
import numpy as np, onnxruntime
from runtime import Predictor, ProviderOptions
from runtime.devices.openvino import is_installed, openvino
model, device, threads, bf16, height, width, channels = *sys.argv[1:3], *map(int, sys.argv[3:8])
if device == "openvino" and is_installed():
    openvino()
image = np.full((height, width, channels), 128, np.uint8)
forget_peak()
before = megabytes("VmHWM")
predictor = Predictor(model, device, threads, ProviderOptions(bf16=bool(bf16)))
predictor.run(image[None])
print(megabytes("VmHWM") - before)
"""
)
"""MB at the peak until the first answer, beyond a process that has imported the libraries."""


@dataclass(frozen=True, kw_only=True)
class WhichFile:
    """A file of a network, and the engine to run it in.

    Attributes:
        base: channels of the network's first level.
        kind: name in `KINDS`.
        engine: name in `ENGINES`.
        path: the .onnx file.
        weights: "trained" or RANDOM.
    """

    base: int
    kind: str
    engine: str
    path: Path
    weights: str

    @property
    def options(self) -> ProviderOptions:
        """The options of its predictor."""
        return ProviderOptions(bf16=self.kind == "bf16")

    @property
    def is_auto(self) -> bool:
        """True if "auto" takes this engine for the file on this machine."""
        places = candidates("auto", read_model(self.path)[0], self.options)
        return next(one for one in places if not unavailable_reason(one)).kind == ENGINES[self.engine]


def measure(
    benchmark_model: BenchmarkModel,
    folder: Path,
    *,
    data: Path | None = None,
    trained: Sequence[Path] = (),
    bases: Sequence[int] = (),
    threads: int,
    limits: Limits = LIMITS,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Measure milliseconds, image Dice, and MB at the peak of each file in each engine; files of one width take turns.

    Args:
        benchmark_model: its card is that of the networks with random weights.
        folder: folder for exported files.
        data: data set with val_images/ and val_masks/, for calibration and Dice.
        trained: checkpoints of trained networks.
        bases: channels of the first level of each network; by default those of `trained`, or else `BASES`.
        threads: threads of every file.
        limits: largest image to decode.
        rounds: rounds of timing.
        budget_s: seconds for all of it; there are fewer rounds if time is short.
        display: shows progress; nothing is drawn while times are taken.

    Returns:
        Facts: file_mb; auto, True where `device="auto"` takes this engine; weights; widths;
        provider, with its arithmetic.

    Raises:
        ConfigError: a checkpoint is no U-Net.
    """
    display = display or Display(quiet=True)
    checkpoints = by_base(trained)
    found: list[Measurement | Skipped] = []
    wanted = bases or tuple(checkpoints) or BASES
    for base in wanted:
        own = folder / f"which-{base}"
        own.mkdir(parents=True, exist_ok=True)
        files, skipped = files_of(base, checkpoints.get(base), benchmark_model.card, own, data, limits, display)
        found += skipped
        share = None if budget_s is None else budget_s / len(wanted)
        display.note(f"{PART}: widths from {base}, {rounds} rounds of {len(files)} files and engines, alternating")
        with pinned(threads):
            found += measure_width(files, data, threads, limits, rounds, share, display)
    return found


def by_base(trained: Sequence[Path]) -> dict[int, Path]:
    """Find the first width of each checkpoint, by the .onnx file beside it, or else by its own card.

    Raises:
        ConfigError: it is no U-Net of this library, or there are two of a width.
    """
    found: dict[int, Path] = {}
    for path in trained:
        if path.with_suffix(".onnx").exists():
            card = read_model(path.with_suffix(".onnx"))[0]
        else:
            from unet_core.checkpoint import load_checkpoint

            card = load_checkpoint(path).card
        if not isinstance(card.architecture, UNetConfig):
            raise ConfigError(f"--trained {path}: found {card.architecture.summary}, expected a U-Net of this library")
        base = card.architecture.widths[0]
        if base in found:
            raise ConfigError(f"--trained {path}: is a second network of first width {base}, expected one of each")
        found[base] = path
    return found


def files_of(
    base: int,
    checkpoint: Path | None,
    like: ModelCard,
    folder: Path,
    data: Path | None,
    limits: Limits,
    display: Display,
) -> tuple[list[WhichFile], list[Skipped]]:
    """Find or export all files of a network; return them in each engine, and what could not be exported."""
    weights = RANDOM if checkpoint is None else "trained"
    files, skipped = list[WhichFile](), list[Skipped]()
    for kind, arguments in KINDS.items():
        beside = checkpoint and checkpoint.with_name(f"{checkpoint.stem}{BESIDE[kind]}.onnx")
        path = beside if beside is not None and serves(beside, kind) else None
        if path is None:
            try:
                if (missing := torch_missing()) is not None:
                    raise DeviceError(f"exporting {missing}; or give checkpoints with their files beside them")
                from benchmarks.cases.which_export import export

                path = export(base, checkpoint, like, folder / f"{kind}.onnx", arguments, data, limits, display)
            except UnetError as error:
                settings: Settings = {"base": base, "file": kind}
                skipped.append(Skipped(part=PART, contestant="all", settings=settings, reason=one_line(str(error))))
                continue
        for engine in ENGINES:
            files.append(WhichFile(base=base, kind=kind, engine=engine, path=path, weights=weights))
    return files, skipped


def serves(path: Path, kind: str) -> bool:
    """Return True if there is such a file, and it permits bf16 where that is asked for."""
    return path.exists() and (kind != "bf16" or read_model(path)[0].allows_bf16)


def measure_width(
    files: Sequence[WhichFile],
    data: Path | None,
    threads: int,
    limits: Limits,
    rounds: int,
    budget_s: float | None,
    display: Display,
) -> list[Measurement | Skipped]:
    """Measure all files of one width."""
    found: list[Measurement | Skipped] = []
    with ExitStack() as stack:
        opened: dict[str, tuple[WhichFile, Predictor]] = {}
        for index, one in enumerate(files):
            try:
                opened[str(index)] = one, open_file(one, threads, stack)
            except UnetError as error:
                settings: Settings = {"base": one.base, "file": one.kind}
                found.append(Skipped(part=PART, contestant=one.engine, settings=settings, reason=one_line(str(error))))
        if not opened:
            return found
        card = opened[next(iter(opened))][1].card
        batch = synthetic_image(*card.input.size, card.architecture.in_channels, 0)[None]
        calls = {name: partial(predictor.run, batch) for name, (_, predictor) in opened.items()}
        times = interleave(calls, rounds, budget_s=budget_s)
        dices = dices_of(opened, data, limits, display)
    for name, (one, predictor) in opened.items():
        settings = settings_of(one, predictor, threads)
        facts: Settings = {
            "file_mb": one.path.stat().st_size / 1e6,
            "auto": one.is_auto,
            "weights": one.weights,
            "widths": widths_text(card),
            "provider": ", ".join(filter(None, (predictor.report.provider, predictor.report.arithmetic))),
        }
        named: dict[str, Any] = {"part": PART, "settings": settings, "facts": facts}
        found += measurements_of({one.engine: times[name]}, unit="ms", group=f"{PART} {one.base}", **named)
        if name in dices:
            found += measurements_of({one.engine: np.array([dices[name]])}, unit="Dice", **named)
        if memory_unavailable_reason() is None:
            shape = (*card.input.size, card.architecture.in_channels)
            printed = run_script(SCRIPT, one.path, ENGINES[one.engine], threads, int(one.kind == "bf16"), *shape)
            found += measurements_of({one.engine: np.array([max(0.0, json.loads(printed))])}, unit="MB", **named)
    return found


def open_file(one: WhichFile, threads: int, stack: ExitStack) -> Predictor:
    """Open a file in its engine.

    Raises:
        DeviceError: it does not run there, or not in the arithmetic that its name says.
    """
    if one.kind == "bf16" and one.engine != "OpenVINO":
        raise DeviceError("computes in fp32 whatever the file permits, so it is the fp32 file's row")
    predictor = stack.enter_context(Predictor(one.path, ENGINES[one.engine], threads, one.options))
    if one.kind == "bf16" and "bf16" not in predictor.report.arithmetic:
        raise DeviceError(f"computes in {predictor.report.arithmetic} here; see unet-doctor")
    return predictor


def settings_of(one: WhichFile, predictor: Predictor, threads: int) -> Settings:
    """The settings of a file's measurements."""
    height, width = predictor.card.input.size
    return {
        "base": one.base,
        "file": one.kind,
        "batch": 1,
        "height": height,
        "width": width,
        "device": predictor.report.device,
        "threads": threads,
    }


def widths_text(card: ModelCard) -> str:
    """Write the widths of a U-Net."""
    assert isinstance(card.architecture, UNetConfig)
    return ",".join(map(str, card.architecture.widths))


def dices_of(
    opened: Mapping[str, tuple[WhichFile, Predictor]], data: Path | None, limits: Limits, display: Display
) -> dict[str, float]:
    """Image Dice of each file on the images that exports are judged on; none for random weights or without masks."""
    if data is None or any(one.weights == RANDOM for one, _ in opened.values()) or torch_missing() is not None:
        return {}
    from export.samples import load_samples
    from unet_core.evaluation.metrics import Metrics

    card = next(iter(opened.values()))[1].card
    samples = load_samples(data, card, calibrate=False, limits=limits, display=display)
    if not samples.labelled:
        return {}
    metrics = {name: Metrics(card.output.classes) for name in opened}
    for index in display.through(range(len(samples.measured)), f"{PART}: Dice", len(samples.measured), unit="image"):
        picture, truth = samples.measured[index]
        fitted = place(picture, (truth.shape[0], truth.shape[1]), card.input)
        for name, (_, predictor) in opened.items():
            answer = predictor.run(picture[None])[0]
            metrics[name].add(mask_of(restore(answer, fitted), card.output), truth, index)
    return {name: one.image_dice for name, one in metrics.items()}
