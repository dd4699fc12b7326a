"""The parts of `unet-doctor`: each checks one thing, returns plain data and notes the problems.

The parts that need ONNX Runtime import it themselves, so that the others work where it does not.
"""

import importlib
import importlib.util
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from runtime.card import ModelCard, UNetConfig
from runtime.commands import system_info
from runtime.errors import DeviceError, UnetError, one_line
from runtime.support.cpu_count import INSTRUCTIONS, has_bf16, has_vnni, listed_instructions

if TYPE_CHECKING:
    from runtime.predictor import Predictor

SECONDS, PAUSE = 2.0, 0.5
"""Duration of the latency measurement on one device, and of looking at other programs, in seconds."""

BUSY_SHARE = 0.1
"""Share of a prediction's cores that other programs use on a machine that is called busy."""

SLOW_MS, GAIN = 1.0, 0.9
"""Latency from which on advice about speed is worth its while; what another way takes at most to be called faster."""

OF_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables with numbers of threads. They do not concern ONNX Runtime, see `available_threads`."""

REPORT = "fix it, or report it"
OTHERWISE = {"model": "give another file, or export the model again: unet-export model.pth"}
"""Advice for a part that failed with an error without advice."""

KINDS = ("tensorrt", "cuda", "openvino", "cpu")
"""Kinds of device, best first; OpenVINO, which nobody has to install, only where it is."""

PROBE = (
    "from runtime.devices.availability import unavailable_reason; from runtime.devices.device import Device; "
    "[unavailable_reason(Device(kind=kind)) for kind in ('tensorrt', 'cuda')]"
)

Severity = Literal["error", "advice"]


@dataclass(frozen=True)
class Problem:
    """A problem and its solution: an "error" if something does not work, an "advice" if it could work better."""

    severity: Severity
    what: str
    do: str


@dataclass
class Findings:
    """Facts by part, ready for JSON, and problems."""

    parts: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    usable: bool = True
    """True if ONNX Runtime can be loaded without a crash."""

    def look(self, part: str, find: Callable[["Findings"], Any], *, by_onnxruntime: bool = False) -> None:
        """Run one part; a failure becomes a line, never a crash."""
        if by_onnxruntime and not self.usable:
            self.parts[part] = {"failed": "not checked, since ONNX Runtime cannot be used"}
            return
        try:
            self.parts[part] = find(self)
        except UnetError as error:
            self.parts[part] = {"failed": one_line(str(error))}
            self.error(*parted(str(error), OTHERWISE.get(part, REPORT)))
        except Exception as error:
            what = one_line(f"{part}: cannot be checked ({type(error).__name__}: {error})")
            self.parts[part] = {"failed": what}
            self.error(what, REPORT)

    def error(self, what: str, do: str) -> None:
        """Note something that does not work."""
        self.problems.append(Problem("error", one_line(what), do))

    def advise(self, what: str, do: str) -> None:
        """Note something that could work better."""
        self.problems.append(Problem("advice", one_line(what), do))

    def ranked(self) -> list[Problem]:
        """Return the problems, errors first, each kind in the order of its discovery."""
        return sorted(self.problems, key=lambda problem: problem.severity != "error")


def parted(message: str, otherwise: str) -> tuple[str, str]:
    """Split the message of a `UnetError` into problem and advice, which follows the last semicolon.

    A message without advice gets `otherwise`.
    """
    what, _, do = one_line(message).rpartition("; ")
    # Elsewhere the semicolon belongs to a path or to another library's message.
    is_whole = ": " in what and what.count("(") == what.count(")")
    return (what, do) if is_whole else (one_line(message), otherwise)


def installed(findings: Findings) -> dict[str, Any]:
    """Check versions, distributions that overwrite each other, and the import of ONNX Runtime."""
    for folder in system_info.SHARED:
        clash = system_info.clashes_of(folder)
        if len(clash) < 2:
            continue
        what = f"{' and '.join(clash)} are installed together and overwrite each other's files in {folder}/"
        do = f"pip uninstall {' '.join(clash)}, then install unet-deploy again"
        if folder == "onnxruntime":
            findings.error(what, f"{do}; without the GPU's libraries: docs/container.md")
        else:
            findings.advise(what, do)
    found = {"python": system_info.python(), "packages": system_info.packages(), "onnxruntime": None}
    death = system_info.death_by("import onnxruntime")
    try:
        if death is None:
            found["onnxruntime"] = importlib.import_module("onnxruntime").__version__
            return found
    except Exception as error:  # of any type, where its libraries do not load
        death = f"cannot be imported ({error})"
    findings.usable = False
    brought = system_info.clashes_of("onnxruntime")
    for_system = "onnxruntime" if platform.system() == "Darwin" else "onnxruntime-gpu"
    here = f"--force-reinstall {brought[0]}" if brought else for_system
    findings.error(f"onnxruntime {death}", f"pip install {here}")
    return found


def gpu(findings: Findings) -> dict[str, Any]:
    """Check the NVIDIA driver and its GPUs."""
    found = {"plugged_in": system_info.nvidia_cards(), "driver": None, "gpus": [], **system_info.gpus()}
    found["cuda_gpus"] = system_info.cuda_gpus()
    if found["plugged_in"] and not found["gpus"] and found["cuda_gpus"] is None:
        findings.advise(
            f"{found['plugged_in']} NVIDIA GPUs are installed, but their driver is missing",
            "install the NVIDIA driver, or start the container with --gpus all",
        )
    return found


def devices(findings: Findings) -> dict[str, str | None]:
    """Return {device: None if it is available, else the reason}, for the first GPU."""
    death = system_info.death_by(PROBE)
    if death is not None:
        findings.usable = False
        raise DeviceError(f"CUDA and TensorRT: loading the libraries {death}; install the extra [gpu] again")
    from runtime.devices.availability import candidates, unavailable_reason

    kinds = [kind for kind in KINDS if kind != "openvino" or importlib.util.find_spec(kind)]
    found: dict[str, str | None] = {kind: unavailable_reason(candidates(kind)[0]) for kind in kinds}
    gpus = findings.parts.get("gpu", {})
    if not gpus.get("gpus") and not gpus.get("cuda_gpus"):
        return found
    if found["cuda"]:
        findings.error("there is a GPU, but device cuda does not work", found["cuda"])
    if found["tensorrt"] and importlib.util.find_spec("tensorrt_libs"):
        findings.error("TensorRT is installed, but device tensorrt does not work", found["tensorrt"])
    elif found["tensorrt"] and not found["cuda"]:
        findings.advise("device tensorrt does not work; it may be faster than cuda", found["tensorrt"])
    return found


def threads(findings: Findings) -> dict[str, Any]:
    """Check the CPU cores and the environment variables for threads and devices."""
    cores, variables = system_info.cores(), system_info.variables()
    for name in OF_THREADS:
        count = variables.get(name, "").strip()
        if count.isdecimal() and int(count) > cores["threads"]:
            findings.advise(
                f"{name}={count}: NumPy and PyTorch start {count} threads, but this process may use "
                f"{cores['threads']} cores, so the threads slow each other down",
                f"set {name}={cores['threads']}",
            )
    others = system_info.OtherPrograms()
    time.sleep(PAUSE)
    used = others.cores()
    if is_busy(used):
        findings.advise(
            f"this machine is busy: other programs use {used:.1f} of the {cores['allowed']} cores, so predictions and "
            "the times of this report are longer than on an idle one",
            "close them, and run unet-doctor again",
        )
    explained = {name: system_info.meaning_of(name) for name in variables}
    listed = listed_instructions()
    return {
        **cores,
        "instructions": [name for name in INSTRUCTIONS if name in listed],
        "other_programs": used,
        "environment": variables,
        "explained": explained,
    }


def is_busy(used: float | None) -> TypeGuard[float]:
    """Return True if other programs leave too few cores for a prediction's threads; None: the system does not say."""
    cores = system_info.cores()
    return used is not None and used > cores["allowed"] - (1 - BUSY_SHARE) * cores["threads"]


def engines(_: Findings, prune: bool, unused_days: float) -> dict[str, Any]:
    """List the engine cache; with `prune`, first delete engines that have been unused for `unused_days`."""
    from runtime.engine_store.engine_cache import EngineCache

    cache = EngineCache()
    removed = cache.prune(unused_days=unused_days) if prune else []
    if cache.folder.is_dir():
        cache.make_safe()
    kept = [
        {"key": entry.key, "bytes": entry.bytes, "used": entry.used, "about": dict(entry.about)}
        for entry in cache.entries()
    ]
    return {"folder": str(cache.folder), "engines": kept, "removed": [entry.key for entry in removed]}


def model(findings: Findings, path: Path) -> dict[str, Any]:
    """Check the file's safety, card and digest, then the model on each available device."""
    from runtime.model_file.digest import check_digest
    from runtime.model_file.reader import read_model

    card, _ = read_model(path)
    found: dict[str, Any] = {"path": str(path), "bytes": path.stat().st_size, "safe": True, "card": facts_of(card)}
    found |= {"digest": check_digest(path).told, "devices": {}}
    for kind, missing in findings.parts.get("devices", {}).items():
        if missing is None and (card.target == "any" or kind == card.target):
            found["devices"][kind] = check_on_device(findings, path, kind, card)
    advise_on_speed(findings, path, card, found["devices"])
    return found


def advise_on_speed(findings: Findings, path: Path, card: ModelCard, devices: dict[str, dict[str, Any]]) -> None:
    """Suggest another device, number of threads or file if the model would be faster with it on this machine."""
    from runtime.devices.availability import candidates

    taken = {kind: one["latency"]["median_ms"] for kind, one in devices.items() if "latency" in one}
    if not taken or min(taken.values()) < SLOW_MS:
        return
    best = min(taken, key=lambda kind: taken[kind])
    chosen = next((device.kind for device in candidates("auto", card) if device.kind in taken), best)
    on_cpu = best in ("openvino", "cpu")
    if on_cpu and is_busy(devices[best]["latency"]["other_programs"]):
        if not any(problem.what.startswith("this machine is busy") for problem in findings.problems):
            findings.advise(
                "this machine was busy while the model ran, so its times are longer than on an idle one",
                "close other programs, and run unet-doctor again",
            )
        return  # what is measured now says little
    if taken[best] < GAIN * taken[chosen]:
        findings.advise(
            f"device {best} is faster here: {taken[best]:.1f} ms an image instead of {chosen}'s {taken[chosen]:.1f} ms",
            f"give --device {best}, in Python device={best!r}; auto takes {chosen}",
        )
    if on_cpu and "openvino" not in devices:
        advise_on_openvino(findings, path, card)
    if best == "cpu":
        advise_on_threads(findings, path, devices["cpu"])
    if on_cpu and card.precision == "fp32" and card.target == "any":
        advise_on_file(findings, path, card, taken[best])


def advise_on_openvino(findings: Findings, path: Path, card: ModelCard) -> None:
    """Suggest OpenVINO, which is not installed, where "auto" would take it."""
    from runtime.devices.openvino import advice_to_install
    from runtime.options import ProviderOptions

    if advice := advice_to_install(card, ProviderOptions()):
        findings.advise(*parted(f"{path}: {advice}", REPORT))


def advise_on_threads(findings: Findings, path: Path, found: dict[str, Any]) -> None:
    """Measure the model with fewer threads, which are faster for small networks and where cores share their units."""
    from runtime.predictor import Predictor

    before, found["fewer_threads_ms"] = found["latency"]["median_ms"], {}
    for count in sorted({1, found["threads"] // 2} - {0, found["threads"]}):
        with Predictor(path, "cpu", threads=count) as predictor:
            found["fewer_threads_ms"][count] = latency(predictor, SECONDS / 4)["median_ms"]
    best = min(found["fewer_threads_ms"].items(), key=lambda item: item[1], default=(0, math.inf))
    if best[1] < GAIN * before:
        findings.advise(
            f"{best[0]} threads are faster here: {best[1]:.1f} ms an image instead of {before:.1f} ms with "
            f"{found['threads']}".replace("1 threads are", "1 thread is"),
            f"give --threads {best[0]}, in Python threads={best[0]}",
        )


def advise_on_file(findings: Findings, path: Path, card: ModelCard, before: float) -> None:
    """Suggest the files for CPUs in place of one for any device."""
    target = "unet-export CHECKPOINT --target cpu --tune, which measures here what is fastest"
    if not has_vnni():
        findings.advise(f"{path}: is for any device ({before:.1f} ms an image); a file for CPUs may be faster", target)
        return
    findings.advise(
        f"{path}: is fp32, and this CPU has VNNI: int8 for CPUs takes about half of these {before:.1f} ms an image",
        "unet-export CHECKPOINT --precision int8 --for cpu --data FOLDER, which says what it loses; "
        + "less is lost in bf16, by OpenVINO: --allow bf16 --data FOLDER; " * (has_bf16() and not card.allows_bf16)
        + f"without loss: {target}",
    )


def facts_of(card: ModelCard) -> dict[str, Any]:
    """Summary of a card."""
    height, width = card.input.size
    metrics = dict(card.training.metrics) if card.training else {}
    return {
        "name": card.name,
        "size": [height, width],
        "fixed_shape": None if card.input.fixed_shape is None else list(card.input.fixed_shape),
        "fit": card.input.fit,
        "scale": card.input.scale,
        "channels": card.input.channels,
        "levels": None if card.input.levels is None else list(card.input.levels),
        "classes": list(card.output.classes),
        "threshold": card.output.threshold if card.output.thresholded else None,
        "activation": card.output.activation,
        "precision": card.precision,
        "target": card.target,
        "bf16": card.allows_bf16,
        "architecture": card.architecture.summary,
        "widths": list(card.architecture.widths) if isinstance(card.architecture, UNetConfig) else None,
        "metrics": metrics,
        "producer": dict(card.producer),
    }


def check_on_device(findings: Findings, path: Path, kind: str, card: ModelCard) -> dict[str, Any]:
    """Check golden sample, node placement and latency on one device; a failure is noted with its reason."""
    from runtime.devices.availability import candidates
    from runtime.devices.registry import must_build
    from runtime.options import ProviderOptions
    from runtime.predictor import Predictor

    try:
        if must_build(path, candidates(kind)[0], card, ProviderOptions()):
            findings.advise(
                "this model has no TensorRT engine yet, so its first start takes minutes",
                f"Predictor({str(path)!r}, 'tensorrt').prepare()",
            )
            return {"failed": "no engine is built yet, and building one takes minutes"}
        with Predictor(path, kind) as predictor:
            return {
                "arithmetic": predictor.report.arithmetic,
                "golden_error": predictor.report.golden_error,
                "tolerance": predictor.report.golden_limit,
                "nodes": dict(predictor.report.nodes),
                "threads": predictor.report.threads,
                "latency": latency(predictor),
            }
    except Exception as error:
        message = str(error) if isinstance(error, UnetError) else f"device {kind}: {type(error).__name__}: {error}"
        report = findings.advise if kind == "openvino" else findings.error  # which refuses files that others take
        report(*parted(message, f"choose another device than {kind} until it is fixed"))
        return {"failed": one_line(message)}


def latency(predictor: "Predictor", seconds: float | None = None) -> dict[str, Any]:
    """Measure the network's time for one image of its own size, in milliseconds of wall time, for `SECONDS`.

    Decoding and resizing are not part of it. One uncounted run comes first, then at least one more. A file of one shape
    is given a whole batch, of which an image has its share.
    """
    import statistics

    import numpy as np

    from runtime.model_file.golden import synthetic_image

    card = predictor.card
    batch = synthetic_image(*card.input.size, card.architecture.in_channels, seed=0)[None]
    count = card.input.fixed_batch or 1
    batch = np.repeat(batch, count, axis=0)
    predictor.run(batch)
    taken: list[float] = []
    others = system_info.OtherPrograms()
    end = time.perf_counter() + (SECONDS if seconds is None else seconds)
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        predictor.run(batch)
        taken.append(1e3 * (time.perf_counter() - start) / count)
    taken.sort()
    return {
        "runs": len(taken),
        "fastest_ms": taken[0],
        "median_ms": statistics.median(taken),
        "p95_ms": taken[math.ceil(0.95 * len(taken)) - 1],
        "other_programs": others.cores(),
    }
