"""How long a batch takes, from images in host memory to probabilities in host memory, by every peer in turns."""

import gc
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.cases.peaks import peak_of
from benchmarks.contestants.base import (
    CPU,
    Arithmetic,
    BenchmarkModel,
    Contestant,
    Difference,
    LoadedContestant,
    Shape,
    difference,
)
from benchmarks.contestants.onnx_runtime import PlainContestant
from benchmarks.contestants.registry import chosen, contestants_on
from benchmarks.measuring.graph_cost import Work, count
from benchmarks.measuring.subprocesses import available_megabytes
from benchmarks.measuring.timing import interleave, least_seconds, pinned
from benchmarks.results import Measurement, Settings, Skipped
from export.proof import network_run
from runtime.devices.availability import candidates
from runtime.devices.device import Device
from runtime.errors import DeviceError, ProofError, UnetError, one_line
from runtime.model_file.golden import synthetic_image
from runtime.support.cpu_count import available_threads
from unet_core.reporting.progress import Advance, Display

PART = "latency"

DISTINCT = 4
"""Images that differ in a batch, at most; a larger one repeats them, so that the reference is not asked so often."""

WIDTH: Mapping[Arithmetic, float] = {"fp32": 1, "tf32": 1, "fp16": 0.5, "bf16": 0.5}
"""Bytes of a value between layers and of a weight, as a share of fp32's; int8 files have some of both."""

Found = list[Measurement | Skipped]


def measure(
    subject: BenchmarkModel,
    *,
    batches: Collection[int] = (1,),
    sizes: Collection[tuple[int, int]] = (),
    precisions: Collection[Arithmetic] = (),
    peers: Collection[str] = (),
    threads: int | None = None,
    device: str = "cpu",
    rounds: int = 30,
    budget_s: float | None = None,
    peaks: Sequence[Measurement] = (),
    display: Display | None = None,
) -> Found:
    """Time all peers, those of one batch and size in turns; what cannot be timed is `Skipped`, with the reason.

    Before it is timed, each peer's answer is compared with PyTorch's on the CPU, or without a checkpoint with ONNX
    Runtime's; one that is beyond its precision's tolerance is no row. Nor is one that runs elsewhere than asked.

    Args:
        subject: the model, and its checkpoint if PyTorch is to run.
        batches, sizes: (height, width); by default one image as trained.
        precisions, peers: those of `benchmarks.contestants.registry` that are wanted; all, if none are named.
        threads: of every peer; by default as many as this process may use.
        device: "cpu"; "cuda" or "cuda:N" for what runs on that GPU, TensorRT among it; "auto" for both.
        rounds: timed calls of each, `MIN_ROUNDS` where the time is short.
        budget_s: seconds for all of it. Small batches come first; what would not fit any more is skipped.
        peaks: of `benchmarks.cases.peaks`, for the share of them that is achieved.

    Returns:
        Milliseconds a batch. Facts: provider; gflop; mb_moved, if nothing is fused, and mb_least; max_abs_error and
        mean_abs_error; peak_share where `peaks` has the peak; and what the peer adds, file or compile_s.

    Raises:
        ConfigError: there is no such peer or precision.
        DeviceError: there is no such device.
    """
    threads = threads or available_threads()
    display = display or Display(quiet=True)
    found: Found = []
    able_on = [_fit_of(subject, one, found) for one in machines(device, peers, precisions)]
    for precision in precisions:
        if not any(peer.precision == precision for able in machines(device, peers, precisions) for peer in able):
            reason = "no contestant computes in it on this device"
            found.append(Skipped(part=PART, contestant="all", settings={"precision": precision}, reason=reason))
    shapes = [(batch, *size) for batch in batches for size in sizes or (subject.card.input.size,)]
    groups = [(able, shape) for shape in sorted(shapes, key=np.prod) for able in able_on if able]
    task = _Task(
        subject=subject,
        graph=onnx.load(subject.model),
        threads=threads,
        rounds=rounds,
        ends=None if budget_s is None else time.perf_counter() + budget_s,
        peaks=peaks,
        display=display,
    )
    total = sum(len(able) for able, _ in groups)
    with pinned(threads), display.bar(PART, total, unit="peer") as advance:
        for index, (able, shape) in enumerate(groups):
            found += _group(task, able, shape, len(groups) - index, advance)
            torch.compiler.reset()
            gc.collect()  # whatever a library's objects hold, before the next group asks what is free
    return found


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What all groups share."""

    subject: BenchmarkModel
    graph: onnx.ModelProto
    threads: int
    rounds: int
    ends: float | None
    peaks: Sequence[Measurement]
    display: Display

    def left(self) -> float | None:
        """Seconds of the budget that are left."""
        return None if self.ends is None else max(0.0, self.ends - time.perf_counter())

    def settings(self, peer: Contestant, shape: Shape) -> Settings:
        batch, height, width = shape
        of_shape = {"batch": batch, "height": height, "width": width, "threads": self.threads}
        return {**of_shape, "precision": peer.precision, "device": str(peer.device)}

    def skipped(self, peers: Sequence[Contestant], shape: Shape, reason: str) -> Found:
        return [
            Skipped(part=PART, contestant=peer.name, settings=self.settings(peer, shape), reason=reason)
            for peer in peers
        ]

    def all_skipped(self, peers: Sequence[Contestant], shape: Shape, reason: str) -> Found:
        """One entry for all, with the settings that they share."""
        first, *others = (self.settings(peer, shape) for peer in peers)
        shared = {name: value for name, value in first.items() if all(one[name] == value for one in others)}
        return [Skipped(part=PART, contestant="all", settings=shared, reason=reason)]

    def measured(self, entry: "_Entry", shape: Shape, work: Work, milliseconds: NDArray[np.float64]) -> Measurement:
        peer = entry.peer
        facts: dict[str, str | int | float | bool] = {
            **entry.facts,
            "gflop": work.gflop,
        }
        if peer.precision in WIDTH and (peer.device != CPU or peer.precision == "fp32"):  # a CPU computes fp16 in fp32
            width = WIDTH[peer.precision]
            facts["mb_moved"] = width * (work.weights_mb + work.activations_mb)
            facts["mb_least"] = work.least_mb - (1 - width) * work.weights_mb
        peak = peak_of(self.peaks, peer.device, peer.precision)
        if peak is not None:
            facts["peak_share"] = work.gflop / (float(np.median(milliseconds)) / 1e3) / max(peak.values)
        machine = "cpu" if peer.device == CPU else "gpu"
        return Measurement(
            part=PART,
            contestant=peer.name,
            settings=self.settings(peer, shape),
            unit="ms",
            values=tuple(map(float, milliseconds)),
            group=f"{PART} {machine} " + "x".join(map(str, shape)),
            facts=facts,
        )


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A peer that may be timed: opened, its call, and what is known of it, as how far its answer was off."""

    peer: Contestant
    opened: LoadedContestant
    call: "_Call"
    facts: Settings


def machines(device: str, peers: Collection[str], precisions: Collection[Arithmetic]) -> list[tuple[Contestant, ...]]:
    """The peers that are wanted, those of the CPU and those of a GPU apart.

    Raises:
        ConfigError: there is no such peer or precision, or none of these in that.
        DeviceError: there is no such device.
    """
    wanted = candidates("cpu") + candidates("cuda") if device == "auto" else candidates(device)
    every = [peer for one in wanted for peer in contestants_on(one)]
    left = chosen(every, names=peers, precisions=precisions)
    return [tuple(peer for peer in left if (peer.device.kind == "cpu") == on_cpu) for on_cpu in (True, False)]


def _fit_of(subject: BenchmarkModel, peers: Sequence[Contestant], skipped: Found) -> list[Contestant]:
    """Those that can run; the others are added to `skipped`."""
    able = []
    for peer in peers:
        reason = peer.unavailable_reason(subject)
        if reason is None:
            able.append(peer)
        else:
            settings = {"precision": peer.precision, "device": str(peer.device)}
            skipped.append(Skipped(part=PART, contestant=peer.name, settings=settings, reason=reason))
    return able


def _group(task: _Task, peers: Sequence[Contestant], shape: Shape, groups: int, advance: Advance) -> Found:
    """Measure one batch and size; what is left of the budget is for `groups` groups, this one among them."""
    work, of_one = count(task.graph, *shape), count(task.graph, 1, *shape[1:])
    reference_mb = PlainContestant.memory * of_one.peak_mb
    if reference_mb > free_mb(CPU):
        reason = f"the answer to compare with needs about {reference_mb:.0f} MB, and they are not free"
        advance(len(peers))
        return task.all_skipped(peers, shape, reason)
    exam, seconds = _exam(task, shape)
    least, left = (seconds + least_seconds(seconds)) * len(peers), task.left()  # and one to look at its answer
    if peers[0].device == CPU and left is not None and least > left:
        reason = f"all would take {least:.0f} s or so, and {left:.0f} s of this part's budget are left"
        advance(len(peers))
        return task.all_skipped(peers, shape, reason)
    task.display.note(f"{PART}: {shape[2]}x{shape[1]}, batch {shape[0]}, {len(peers)} contestants in turns")
    needs = {peer: peer.memory * (work if peer.whole_batch else of_one).peak_mb for peer in peers}
    entries, found = list[_Entry](), Found()
    try:
        for peer in peers:
            try:
                _require_memory(peer, [entry.peer for entry in entries], needs)
                entries.append(_entered(task, peer, exam))
            except Exception as error:  # libraries' errors share no base class
                found += task.skipped([peer], shape, _reason(error))
            advance(1)
        return found + _timed(task, entries, shape, work, groups)
    finally:
        for entry in entries:
            entry.opened.close()


def _timed(task: _Task, entries: Sequence["_Entry"], shape: Shape, work: Work, groups: int) -> Found:
    """Time peers in turns; one that fails is left out, and the others are timed again."""
    left = task.left()
    try:
        times = interleave(
            {str(index): entry.call for index, entry in enumerate(entries)},
            task.rounds,
            budget_s=None if left is None else left / groups,
        )
    except _FailedError as error:
        others = [entry for entry in entries if entry.call is not error.call]
        (failed,) = (entry.peer for entry in entries if entry.call is error.call)
        return task.skipped([failed], shape, _reason(error)) + _timed(task, others, shape, work, groups)
    found = Found()
    for index, entry in enumerate(entries):
        refusal = entry.call.refusal()
        if refusal is None:
            found.append(task.measured(entry, shape, work, times[str(index)]))
        else:
            found += task.skipped([entry.peer], shape, f"while it was timed, {refusal}")
    return found


def _require_memory(peer: Contestant, before: Sequence[Contestant], needs: Mapping[Contestant, float]) -> None:
    """Raise a DeviceError where a peer has not enough memory (`needs`, MB) beside those that were opened before it.

    Those that give theirs back after each call need it again when it is their turn.
    """
    again = max((needs[one] for one in before if not one.keeps_memory), default=0.0)
    need = needs[peer] + again if peer.keeps_memory else max(needs[peer], again)
    free = free_mb(peer.device)
    if need > free:
        raise DeviceError(f"needs about {need:.0f} MB beside those before it, and {free:.0f} MB are free")


def _entered(task: _Task, peer: Contestant, exam: "_Exam") -> _Entry:
    """Open a peer and compare its answers.

    Raises:
        DeviceError: it runs elsewhere than asked.
        WrongAnswerError: it answers otherwise than the subject.
    """
    batch, height, width, _ = exam.images[0].shape
    started = time.perf_counter()
    opened = peer.open(task.subject, task.threads, (batch, height, width))
    seconds = time.perf_counter() - started
    try:
        call = _Call(opened, exam, peer.precision)
        call()
        refusal = call.refusal()
        if refusal is not None:
            raise WrongAnswerError(refusal)
        off = call.difference()
    except BaseException:
        opened.close()
        raise
    found: Settings = {"provider": opened.provider, "max_abs_error": off.largest, "mean_abs_error": off.mean}
    return _Entry(peer=peer, opened=opened, call=call, facts={**found, "opened_s": seconds, **opened.facts})


class WrongAnswerError(ProofError):
    """A peer does not answer as the subject does, so its time means nothing."""


@dataclass(frozen=True)
class _Exam:
    """Two batches uint8 [batch, h, w, channels] that differ in every place, and the answers to them."""

    images: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    answers: tuple[NDArray[np.float32], NDArray[np.float32]]


class _FailedError(Exception):
    """A call failed while it was timed."""

    def __init__(self, call: "_Call", error: Exception) -> None:
        super().__init__(str(error))
        self.call, self.error = call, error


class _Call:
    """A peer's call, on one batch and the other in turns; what it answered last to each is kept.

    So an answer that is that of the call before, or of the first one for ever, is seen.
    """

    def __init__(self, opened: LoadedContestant, exam: _Exam, precision: Arithmetic) -> None:
        self.opened, self.exam, self.precision = opened, exam, precision
        self.answered: dict[int, NDArray[np.float32]] = {}
        self.calls = 0

    def __call__(self) -> None:
        place = self.calls % 2
        try:
            self.answered[place] = self.opened(self.exam.images[place])
        except Exception as error:
            raise _FailedError(self, error) from error
        self.calls += 1

    def difference(self) -> Difference:
        """Of the last answers, the larger."""
        found = [difference(answer, self.exam.answers[place]) for place, answer in self.answered.items()]
        return max(found, key=lambda one: one.largest)

    def refusal(self) -> str | None:
        """Why the last answers are none of the subject's; None if they may be."""
        return self.difference().refusal(self.precision)


def _exam(task: _Task, shape: Shape) -> tuple[_Exam, float]:
    """What peers are asked, and the seconds that a batch takes the one that knows.

    Each image is asked about alone, so that it needs little memory, and so that places in a batch are compared, too.
    """
    batch, height, width = shape
    subject = task.subject
    channels = subject.card.architecture.in_channels
    distinct = max(2, min(batch, DISTINCT))
    images = np.stack([synthetic_image(height, width, channels, seed) for seed in range(distinct)])
    if subject.checkpoint is not None:
        run = network_run(subject.segmenter())
    else:
        run = PlainContestant().open(subject, task.threads, (1, height, width)).run
    seconds, answers = [], []
    for image in (images[0], *images):  # the first answer takes longer, and counts for nothing
        started = time.perf_counter()
        answers.append(run(image[None]))
        seconds.append(time.perf_counter() - started)
    places, known = np.arange(batch) % distinct, np.concatenate(answers[1:])
    others = (places + 1) % distinct
    return _Exam((images[places], images[others]), (known[places], known[others])), min(seconds) * batch


def free_mb(device: Device) -> float:
    """Memory in MB (10^6 bytes) that is free on a device; infinite where the system does not tell."""
    if device.kind == "cpu":
        free = available_megabytes()
        return float("inf") if free is None else free
    torch.cuda.empty_cache()
    return float(torch.cuda.mem_get_info(device.index)[0]) / 1e6 if torch.cuda.is_available() else float("inf")


def _reason(error: Exception) -> str:
    """Why something is skipped: our own messages as they are, others with the name of their error."""
    if isinstance(error, _FailedError):
        error = error.error
    text = one_line(str(error))[:400]
    return text if isinstance(error, UnetError) else f"{type(error).__name__}: {text}"
