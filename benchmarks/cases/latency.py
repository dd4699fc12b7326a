"""Latency: how long a batch takes, from images in host memory to probabilities in host memory, for every contestant."""

import gc
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.cases.exam import CheckedCall, Exam, FailedCallError, WrongAnswerError, prepare_exam, skip_reason
from benchmarks.cases.peaks import peak_of
from benchmarks.contestants.base import Arithmetic, BenchmarkModel, Contestant, LoadedContestant, Shape
from benchmarks.contestants.onnx_runtime import PlainContestant
from benchmarks.contestants.pytorch import forget_compiled, pytorch_has
from benchmarks.contestants.registry import contestants_on, select_contestants
from benchmarks.measuring.graph_cost import Work, count_work
from benchmarks.measuring.rounds import interleave, least_seconds
from benchmarks.measuring.subprocesses import available_megabytes
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped
from runtime.devices.availability import candidates
from runtime.devices.device import CPU_DEVICE, Device
from runtime.errors import ConfigError, DeviceError
from runtime.support.cpu_count import available_threads
from unet_core.reporting.progress import Advance, Display

PART = "latency"

WIDTH: Mapping[Arithmetic, float] = {"fp32": 1, "tf32": 1, "fp16": 0.5, "bf16": 0.5}
"""Bytes of an activation and of a weight, as a share of fp32's; int8 files have some of both."""

Found = list[Measurement | Skipped]


def measure(
    benchmark_model: BenchmarkModel,
    *,
    batches: Collection[int] = (1,),
    sizes: Collection[tuple[int, int]] = (),
    precisions: Collection[Arithmetic] = (),
    contestants: Collection[str] = (),
    threads: int | None = None,
    devices: str = "cpu",
    rounds: int = 30,
    budget_s: float | None = None,
    peaks: Sequence[Measurement | Skipped] = (),
    display: Display | None = None,
) -> Found:
    """Time the contestants, those of one batch and size in turns; those that cannot be timed are `Skipped`.

    Before it is timed, each contestant's answer is compared with PyTorch's on the CPU, or without a checkpoint with
    ONNX Runtime's. A contestant whose answer exceeds its precision's tolerance is skipped, and so is one that does not
    run on its device.

    Args:
        benchmark_model: the model, and its checkpoint if PyTorch is to run.
        batches, sizes: images in a batch, and their (height, width); by default one image as trained.
        precisions, contestants: names of those to measure; all, if none are given.
        threads: CPU threads of each contestant; by default as many as this process may use.
        devices: "cpu"; "cuda" or "cuda:N" for what runs on that GPU, TensorRT included; "auto" for both.
        rounds: timed rounds of each, `MIN_ROUNDS` if time is short.
        budget_s: seconds for all of it. Small batches come first; one that does not fit any more is skipped.
        peaks: results of `benchmarks.cases.peaks`, for the share of them that is achieved.
        display: where progress is shown.

    Returns:
        Milliseconds a batch. Facts: provider; gflop; mb_moved, if nothing is fused, and mb_least; max_abs_error and
        mean_abs_error; peak_share where `peaks` has the peak; and the contestant's own, file or compile_s.

    Raises:
        ConfigError: there is no such contestant or precision.
        DeviceError: there is no such device.
    """
    threads = threads or available_threads()
    display = display or Display(quiet=True)
    wanted = contestants_by_machine(devices, contestants, precisions)
    found = Found()
    able: list[list[Contestant]] = []
    for on_machine in wanted:
        reasons = {one: one.unavailable_reason(benchmark_model) for one in on_machine}
        able.append([one for one, reason in reasons.items() if reason is None])
        for one, reason in reasons.items():
            if reason is not None:
                settings: Settings = {"precision": one.precision, "device": str(one.device)}
                found.append(Skipped(part=PART, contestant=one.name, settings=settings, reason=reason))
    for precision in precisions:
        if not any(one.precision == precision for on_machine in wanted for one in on_machine):
            reason = "no contestant computes in it on this device"
            found.append(Skipped(part=PART, contestant="all", settings={"precision": precision}, reason=reason))
    shapes = [(batch, *size) for batch in batches for size in sizes or (benchmark_model.card.input.size,)]
    groups = [(together, shape) for shape in sorted(shapes, key=np.prod) for together in able if together]
    setup = LatencySetup(
        model=benchmark_model,
        graph=onnx.load(benchmark_model.path),
        threads=threads,
        rounds=rounds,
        ends=None if budget_s is None else time.perf_counter() + budget_s,
        peaks=peaks,
        display=display,
    )
    with pinned(threads), display.bar(PART, sum(len(group) for group, _ in groups), unit="contestant") as advance:
        for index, (together, shape) in enumerate(groups):
            found += measure_group(setup, together, shape, len(groups) - index, advance)
            forget_compiled()
            gc.collect()  # frees what libraries' objects hold, before the next group asks for free memory
    return found


def contestants_by_machine(
    devices: str, names: Collection[str], precisions: Collection[Arithmetic]
) -> tuple[tuple[Contestant, ...], tuple[Contestant, ...]]:
    """The wanted contestants on the CPU, and those on a GPU.

    Raises:
        ConfigError: there is no such contestant or precision, or none of these contestants has such a precision.
        DeviceError: there is no such device.
    """
    if devices.lower().startswith("openvino"):
        raise ConfigError(f"device {devices}: OpenVINO is one of the contestants on the CPU; give --device cpu")
    places = candidates("cpu") + candidates("cuda") if devices == "auto" else candidates(devices)
    every = [one for place in places for one in contestants_on(place)]
    wanted = select_contestants(every, names=names, precisions=precisions)
    return tuple(one for one in wanted if one.device == CPU_DEVICE), tuple(
        one for one in wanted if one.device != CPU_DEVICE
    )


@dataclass(frozen=True, kw_only=True)
class LatencySetup:
    """The parts of a measurement that all groups share."""

    model: BenchmarkModel
    graph: onnx.ModelProto
    threads: int
    rounds: int
    ends: float | None
    peaks: Sequence[Measurement | Skipped]
    display: Display

    def seconds_left(self) -> float | None:
        """Seconds of the budget that are left; None without a budget."""
        return None if self.ends is None else max(0.0, self.ends - time.perf_counter())

    def settings(self, contestant: Contestant, shape: Shape) -> Settings:
        """The settings of a contestant's measurement."""
        batch, height, width = shape
        of_shape = {"batch": batch, "height": height, "width": width, "threads": self.threads}
        return {**of_shape, "precision": contestant.precision, "device": str(contestant.device)}

    def skipped(self, contestant: Contestant, shape: Shape, reason: str) -> Skipped:
        """The entry of a contestant that cannot be timed."""
        return Skipped(part=PART, contestant=contestant.name, settings=self.settings(contestant, shape), reason=reason)

    def all_skipped(self, contestants: Sequence[Contestant], shape: Shape, reason: str) -> Skipped:
        """One entry for a whole group, with the settings that its contestants share."""
        first, *others = (self.settings(one, shape) for one in contestants)
        shared = {name: value for name, value in first.items() if all(other[name] == value for other in others)}
        return Skipped(part=PART, contestant="all", settings=shared, reason=reason)

    def measured(self, entrant: "Entrant", shape: Shape, work: Work, milliseconds: NDArray[np.float64]) -> Measurement:
        """The measurement of an entrant, from its milliseconds [rounds]."""
        one = entrant.contestant
        facts: dict[str, str | int | float | bool] = {**entrant.facts, "gflop": work.gflop}
        if one.precision in WIDTH and (
            one.device != CPU_DEVICE or one.precision == "fp32"
        ):  # a CPU computes fp16 in fp32
            width = WIDTH[one.precision]
            facts["mb_moved"] = width * (work.weights_mb + work.activations_mb)
            facts["mb_least"] = work.least_mb - (1 - width) * work.weights_mb
        peak = peak_of(self.peaks, one.device, one.precision)
        if peak is not None:
            facts["peak_share"] = work.gflop / (float(np.median(milliseconds)) / 1e3) / peak
        machine = "cpu" if one.device == CPU_DEVICE else "gpu"
        return Measurement(
            part=PART,
            contestant=one.name,
            settings=self.settings(one, shape),
            unit="ms",
            values=tuple(map(float, milliseconds)),
            group=f"{PART} {machine} " + "x".join(map(str, shape)),
            facts=facts,
        )


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contestant that may be timed: loaded, its answers compared."""

    contestant: Contestant
    loaded: LoadedContestant
    call: "CheckedCall"
    facts: Settings


def measure_group(
    setup: LatencySetup, contestants: Sequence[Contestant], shape: Shape, groups: int, advance: Advance
) -> Found:
    """Measure one batch and size; the rest of the budget is for `groups` groups, this one included."""
    work, of_one = count_work(setup.graph, *shape), count_work(setup.graph, 1, *shape[1:])
    reference_mb = PlainContestant.memory * of_one.peak_mb
    if reference_mb > free_mb(CPU_DEVICE):
        reason = f"the reference's answer needs about {reference_mb:.0f} MB, which are not free"
        advance(len(contestants))
        return [setup.all_skipped(contestants, shape, reason)]
    exam, seconds = prepare_exam(setup.model, setup.threads, shape)
    least = (seconds + least_seconds(seconds)) * len(contestants)  # one call for its answer, and those that are timed
    left = setup.seconds_left()
    if contestants[0].device == CPU_DEVICE and left is not None and least > left:
        reason = f"all would take about {least:.0f} s, and {left:.0f} s of this part's budget are left"
        advance(len(contestants))
        return [setup.all_skipped(contestants, shape, reason)]
    setup.display.note(f"{PART}: {shape[2]}x{shape[1]}, batch {shape[0]}, {len(contestants)} contestants in turns")
    needs = {one: one.memory * (work if one.whole_batch else of_one).peak_mb for one in contestants}
    entrants, found = list[Entrant](), Found()
    try:
        for one in contestants:
            try:
                require_memory(one, [entrant.contestant for entrant in entrants], needs)
                entrants.append(load_and_compare(setup, one, exam))
            except Exception as error:  # libraries' errors share no base class
                found.append(setup.skipped(one, shape, skip_reason(error)))
            advance(1)
        return found + time_in_turns(setup, entrants, shape, work, groups)
    finally:
        for entrant in entrants:
            entrant.loaded.close()


def require_memory(contestant: Contestant, loaded: Sequence[Contestant], needs: Mapping[Contestant, float]) -> None:
    """Raise a DeviceError if a contestant's memory (`needs`, in MB) is not free beside those that are loaded.

    Contestants that free theirs after each call need it again when it is their turn.
    """
    again = max((needs[one] for one in loaded if not one.keeps_memory), default=0.0)
    need = needs[contestant] + again if contestant.keeps_memory else max(needs[contestant], again)
    free = free_mb(contestant.device)
    if need > free:
        raise DeviceError(f"needs about {need:.0f} MB beside those before it, and {free:.0f} MB are free")


def load_and_compare(setup: LatencySetup, contestant: Contestant, exam: "Exam") -> Entrant:
    """Load a contestant and compare its first answer.

    Raises:
        DeviceError: it does not run on its device.
        WrongAnswerError: its answer differs by too much.
    """
    batch, height, width, _ = exam.images[0].shape
    started = time.perf_counter()
    loaded = contestant.load(setup.model, setup.threads, (batch, height, width))
    seconds = time.perf_counter() - started
    try:
        call = CheckedCall(loaded, exam, contestant.precision)
        call()
        refusal = call.refusal()
        if refusal is not None:
            raise WrongAnswerError(refusal)
        off = call.difference()
    except BaseException:
        loaded.close()
        raise
    facts: Settings = {
        "provider": loaded.provider,
        "max_abs_error": off.largest,
        "mean_abs_error": off.mean,
        "opened_s": seconds,
        **loaded.facts,
    }
    return Entrant(contestant=contestant, loaded=loaded, call=call, facts=facts)


def time_in_turns(setup: LatencySetup, entrants: Sequence[Entrant], shape: Shape, work: Work, groups: int) -> Found:
    """Time entrants in turns; one that fails is left out, and the others are timed again."""
    left = setup.seconds_left()
    try:
        times = interleave(
            {str(index): entrant.call for index, entrant in enumerate(entrants)},
            setup.rounds,
            budget_s=None if left is None else left / groups,
        )
    except FailedCallError as error:
        (failed,) = (entrant for entrant in entrants if entrant.call is error.call)
        others = [entrant for entrant in entrants if entrant is not failed]
        skipped = setup.skipped(failed.contestant, shape, skip_reason(error.error))
        return [skipped, *time_in_turns(setup, others, shape, work, groups)]
    found = Found()
    for index, entrant in enumerate(entrants):
        refusal = entrant.call.refusal()
        if refusal is None:
            found.append(setup.measured(entrant, shape, work, times[str(index)]))
        else:
            found.append(setup.skipped(entrant.contestant, shape, f"while it was timed, {refusal}"))
    return found


def free_mb(device: Device) -> float:
    """Memory in MB (10^6 bytes) that is free on a device; infinite where nobody tells: for GPUs, PyTorch does."""
    if device.kind == "cpu":
        free = available_megabytes()
        return float("inf") if free is None else free
    if not pytorch_has(device):
        return float("inf")
    import torch

    torch.cuda.empty_cache()
    return float(torch.cuda.mem_get_info(device.index)[0]) / 1e6
