"""How long a batch takes, from images in host memory to probabilities in host memory, by every peer in turns."""

import gc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.environment import memory_mb
from benchmarks.peaks import peak_of
from benchmarks.peer import Arithmetic, Opened, Peer, Shape, Subject, difference
from benchmarks.peers import chosen, peers_on
from benchmarks.peers_onnx import PlainPeer
from benchmarks.results import Measurement, Settings, Skipped
from benchmarks.timing import MIN_ROUNDS, interleave, pinned
from benchmarks.work import Work, count
from export.proof import network_run
from runtime.errors import UnetError, one_line
from runtime.golden import synthetic_image
from runtime.providers import Device, available_threads, candidates
from unet_core.display import Advance, Display

PART = "latency"

DISTINCT = 4
"""Images that differ in a batch; a larger one repeats them, so that the reference need not be asked so often."""

MARGIN = 1.5
"""How much more memory a peer takes than the values that it must hold: copies in its own layout, and its allocator."""

CALLS = 2 * MIN_ROUNDS + 2
"""Of a peer in a group, at least: one to look at its answer, one to warm up, two a round."""

WIDTH: Mapping[Arithmetic, float] = {"fp32": 1, "tf32": 1, "fp16": 0.5, "bf16": 0.5, "int8": 0.25}
"""Bytes of a value between layers and of a weight, as a share of fp32's."""

MEMORY = Path("/proc/meminfo")

Found = list[Measurement | Skipped]


def measure(
    subject: Subject,
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
        precisions, peers: those of `benchmarks.peers` that are wanted; all, if none are named.
        threads: of every peer; by default as many as this process may use.
        device: "cpu"; "cuda" or "cuda:N" for what runs on that GPU, TensorRT among it; "auto" for both.
        rounds: timed calls of each, `MIN_ROUNDS` where the time is short.
        budget_s: seconds for all of it. Small batches come first; what would not fit any more is skipped.
        peaks: of `benchmarks.peaks`, for the share of them that is achieved.

    Returns:
        Milliseconds a batch. Facts: provider; gflop; mb_moved, if nothing is fused, and mb_least; max_abs_error and
        mean_abs_error; peak_share where `peaks` has the peak; and what the peer adds, file or compile_s.

    Raises:
        ConfigError: there is no such peer or precision.
        DeviceError: there is no such device.
    """
    threads = threads or available_threads()
    ends = None if budget_s is None else time.perf_counter() + budget_s
    display = display or Display(quiet=True)
    found: Found = []
    machines = [_fit_of(subject, one, found) for one in _machines(device, peers, precisions)]
    shapes = [(batch, *size) for batch in batches for size in sizes or (subject.card.input.size,)]
    groups = [(able, shape) for shape in sorted(shapes, key=np.prod) for able in machines if able]
    task = _Task(subject=subject, graph=onnx.load(subject.model), threads=threads, rounds=rounds, peaks=peaks)
    total = sum(len(able) for able, _ in groups)
    with pinned(threads), display.bar(PART, total, unit="peer") as advance:
        for index, (able, shape) in enumerate(groups):
            left = None if ends is None else max(0.0, ends - time.perf_counter())
            found += _group(task, able, shape, left, len(groups) - index, advance)
            gc.collect()  # whatever a library's objects hold, before the next group asks what is free
    return found


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What all groups share."""

    subject: Subject
    graph: onnx.ModelProto
    threads: int
    rounds: int
    peaks: Sequence[Measurement]

    def settings(self, peer: Peer, shape: Shape) -> Settings:
        batch, height, width = shape
        of_shape = {"batch": batch, "height": height, "width": width, "threads": self.threads}
        return {**of_shape, "precision": peer.precision, "device": str(peer.device)}


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A peer that may be timed: opened, and how far its answer was off."""

    peer: Peer
    opened: Opened
    facts: Settings


def _machines(device: str, peers: Collection[str], precisions: Collection[Arithmetic]) -> list[tuple[Peer, ...]]:
    """The peers that are wanted, those of the CPU and those of a GPU apart."""
    wanted = candidates("cpu") + candidates("cuda") if device == "auto" else candidates(device)
    every = [peer for one in wanted for peer in peers_on(one)]
    left = chosen(every, names=peers, precisions=precisions)
    return [tuple(peer for peer in left if (peer.device.kind == "cpu") == on_cpu) for on_cpu in (True, False)]


def _fit_of(subject: Subject, peers: Sequence[Peer], skipped: Found) -> list[Peer]:
    """Those that can run; the others are added to `skipped`."""
    able = []
    for peer in peers:
        reason = peer.why_not(subject)
        if reason is None:
            able.append(peer)
        else:
            settings = {"precision": peer.precision, "device": str(peer.device)}
            skipped.append(Skipped(part=PART, contestant=peer.name, settings=settings, reason=reason))
    return able


def _group(
    task: _Task, peers: Sequence[Peer], shape: Shape, left: float | None, groups: int, advance: Advance
) -> Found:
    """Measure one batch and size; `left` seconds are for `groups` groups, this one among them."""

    def skipped(these: Sequence[Peer], reason: str) -> Found:
        advance(len(these), figures)
        return [
            Skipped(part=PART, contestant=peer.name, settings=task.settings(peer, shape), reason=reason)
            for peer in these
        ]

    batch, height, width = shape
    figures = f"{batch} x {width}x{height}"
    work = count(task.graph, *shape)
    one_image = count(task.graph, 1, height, width)
    on_cpu = peers[0].device.kind == "cpu"
    free = free_mb(peers[0].device)
    if MARGIN * one_image.peak_mb > free_mb(Device(kind="cpu")):
        return skipped(peers, f"the reference needs about {MARGIN * one_image.peak_mb:.0f} MB, which are not free")
    images, reference, seconds = _reference(task, shape)
    least = seconds * CALLS * len(peers)
    if on_cpu and left is not None and least > left:
        return skipped(peers, f"all would take {least:.0f} s or so, and {left:.0f} s of the budget are left")
    found: Found = []
    entries: list[_Entry] = []
    started = time.perf_counter()
    try:
        for peer in peers:
            need = MARGIN * (work if peer.whole_batch else one_image).peak_mb
            if need > free:
                reason = f"needs about {need:.0f} MB beside those opened before it, {max(free, 0):.0f} MB are free"
                found += skipped([peer], reason)
                continue
            try:
                entries.append(_entered(task, peer, images, reference))
            except Exception as error:  # libraries' errors share no base class
                found += skipped([peer], _reason(error))
                continue
            free -= need
            advance(1, figures)
        share = None if left is None else max(0.0, left - (time.perf_counter() - started)) / groups
        try:
            return found + _timed(task, entries, shape, images, work, share)
        except Exception as error:  # as above
            return found + skipped([entry.peer for entry in entries], _reason(error))
    finally:
        for entry in entries:
            entry.opened.close()


def _entered(task: _Task, peer: Peer, images: NDArray[np.uint8], reference: NDArray[np.float32]) -> _Entry:
    """Open a peer and compare its answer.

    Raises:
        DeviceError: it runs elsewhere than asked.
        WrongAnswerError: it answers otherwise than the subject.
    """
    batch, height, width, _ = images.shape
    opened = peer.open(task.subject, task.threads, (batch, height, width))
    try:
        off = difference(opened(images), reference)
        refusal = off.refusal(peer.precision)
        if refusal is not None:
            raise WrongAnswerError(refusal)
    except BaseException:
        opened.close()
        raise
    facts = {"provider": opened.provider, "max_abs_error": off.largest, "mean_abs_error": off.mean, **opened.facts}
    return _Entry(peer=peer, opened=opened, facts=facts)


class WrongAnswerError(UnetError):
    """A peer does not answer as the subject does, so its time means nothing."""


def _timed(
    task: _Task, entries: Sequence[_Entry], shape: Shape, images: NDArray[np.uint8], work: Work, share: float | None
) -> Found:
    if not entries:
        return []
    calls = {str(index): _call(entry.opened, images) for index, entry in enumerate(entries)}
    times = interleave(calls, task.rounds, budget_s=share)
    machine = "cpu" if entries[0].peer.device.kind == "cpu" else "gpu"
    group = f"{PART} {machine} " + "x".join(map(str, shape))
    found: Found = []
    for index, entry in enumerate(entries):
        peer, milliseconds = entry.peer, times[str(index)]
        moved = WIDTH[peer.precision] * (work.weights_mb + work.activations_mb)
        facts: dict[str, str | int | float | bool] = {**entry.facts, "gflop": work.gflop, "mb_moved": moved}
        facts["mb_least"] = work.least_mb
        peak = peak_of(task.peaks, peer.device, peer.precision)
        if peak is not None:
            facts["peak_share"] = work.gflop / (float(np.median(milliseconds)) / 1e3) / peak.median
        found.append(
            Measurement(
                part=PART,
                contestant=peer.name,
                settings=task.settings(peer, shape),
                unit="ms",
                values=tuple(map(float, milliseconds)),
                group=group,
                facts=facts,
            )
        )
    return found


def _call(opened: Opened, images: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: opened(images)


def _reference(task: _Task, shape: Shape) -> tuple[NDArray[np.uint8], NDArray[np.float32], float]:
    """The batch uint8 [batch, h, w, channels], the answer to it, and the seconds that a batch takes there.

    Each image is asked about alone, so that it needs little memory, and so that places in a batch are compared, too.
    """
    batch, height, width = shape
    subject = task.subject
    channels = subject.card.architecture.in_channels
    images = np.stack([synthetic_image(height, width, channels, seed) for seed in range(min(batch, DISTINCT))])
    if subject.checkpoint is not None:
        run = network_run(subject.segmenter())
    else:
        run = PlainPeer().open(subject, task.threads, (1, height, width)).run
    started = time.perf_counter()
    answers = np.concatenate([run(image[None]) for image in images])
    seconds = (time.perf_counter() - started) / len(images) * batch
    places = np.arange(batch) % len(images)
    return images[places], answers[places], seconds


def free_mb(device: Device) -> float:
    """Memory in MB (10^6 bytes) that is free on a device; infinite where the system does not tell."""
    if device.kind != "cpu":
        return float(torch.cuda.mem_get_info(device.index)[0]) / 1e6 if torch.cuda.is_available() else float("inf")
    if not MEMORY.exists():
        return float("inf")
    lines = MEMORY.read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min(kilobytes * 1.024e-3, float(memory_mb() or float("inf")))


def _reason(error: Exception) -> str:
    """Why something is skipped: our own messages as they are, others with the name of their error."""
    text = one_line(str(error))[:400]
    return text if isinstance(error, UnetError) else f"{type(error).__name__}: {text}"
