"""Peaks: the most that the machine can do, measured by products of matrices, convolutions and a copy of memory."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.cases.kernels import PRODUCT, Kernel, Sides, kernels_on_cpu
from benchmarks.contestants.base import Arithmetic
from benchmarks.contestants.pytorch import pytorch_has
from benchmarks.measuring.rounds import interleave
from benchmarks.measuring.subprocesses import available_megabytes
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped
from runtime.devices.availability import candidates
from runtime.devices.device import CPU_DEVICE, Device
from runtime.support.cpu_count import available_threads, text_of
from unet_core.reporting.progress import Display

PART = "peak"
COPY = "copy of memory"

PRODUCTS: Mapping[str, tuple[Sides, ...]] = {
    "cpu": (*((side, side, side) for side in (256, 384, 512, 768, 1024, 2048)), (4096, 1152, 128)),
    "cuda": (*((side, side, side) for side in (2048, 4096, 8192)), (65536, 1152, 128)),
}
"""Products by kind of device: squares, and a convolution of 3x3 and 128 channels (pixels, 9 x channels, channels)."""

CONVOLUTIONS: tuple[Sides, ...] = ((64, 160, 240), (128, 80, 120), (256, 40, 60), (512, 20, 30))
"""Convolutions on a CPU, (channels, height, width): those of the default network at its usual size."""

FINALISTS = 3
"""Number of kernels of a precision that all rounds are made of: the fastest in a first one of all."""

HEAT_SECONDS = 2.0
"""Seconds for each kernel in that first round, of which a quarter may warm it up."""

COPIES: Mapping[str, int] = {"cpu": 1, "cuda": 16}
"""Copies in a timed call, by kind of device: waiting for a GPU takes a noticeable share of one copy."""

COPIED = 2**28
"""Minimum size of the copy, in bytes; on a CPU it is at least `BEYOND` times the last caches."""
BEYOND = 4
ROOM = 0.5
"""Share of the free memory that a copy and its source may take."""

CPUS = Path("/sys/devices/system/cpu")
"""Linux's description of caches (its Documentation/ABI/testing/sysfs-devices-system-cpu)."""


def measure(
    *,
    threads: int | None = None,
    devices: str = "cpu",
    rounds: int = 20,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement]:
    """GFLOP/s of the fastest product or convolution, by precision; GB/s of a copy, bytes read and written both counted.

    Args:
        threads: CPU threads; by default as many as this process may use.
        devices: "cpu"; "cuda", "cuda:N" or "auto" for the CPU and that GPU, if PyTorch can use it.
        rounds: rounds of timing, in which the fastest kernels and the copy take turns.
        budget_s: seconds for all of it; if time is short there are fewer rounds, but at least `MIN_ROUNDS`.
        display: where progress is shown.

    Returns:
        For each precision all rounds of the kernel that had the best one; the fact `by` names it. For the copy the
        facts tell its bytes.
    """
    (display or Display(quiet=True)).note(f"{PART}: {rounds} rounds")
    gpu = candidates("cuda" if devices == "auto" else devices)[-1]
    targets = [CPU_DEVICE, *([gpu] if gpu.kind != "cpu" and pytorch_has(gpu) else [])]
    share = budget_s and budget_s / len(targets)
    found = []
    for target in targets:
        found += measure_on(target, threads or available_threads(), rounds, share)
    return found


def measure_on(target: Device, threads: int, rounds: int, budget_s: float | None) -> list[Measurement]:
    """Measure the kernels and the copy on one device: one round of all kernels, then all rounds of the fastest."""
    name = name_of(target)
    size = copied_bytes(target)
    kernels = {one.name: one for one in kernels_on(target)}
    with pinned(threads):
        calls = {one: kernel.call_on(name, threads) for one, kernel in kernels.items()}
        heat_s = HEAT_SECONDS * len(calls)
        first = interleave(calls, 1, budget_s=heat_s if budget_s is None else min(heat_s, budget_s / 3))
        finalists = [one for kind in finals(kernels, first).values() for one in kind]
        chosen = {one: calls[one] for one in finalists}
        times = interleave(
            {**chosen, COPY: copy_call(target, size, threads)}, rounds, budget_s=budget_s and budget_s / 2
        )
    common: Settings = {"device": name, "threads": threads}

    def measurement(
        contestant: str, settings: Settings, unit: str, work: float, of: str, facts: Settings
    ) -> Measurement:
        return Measurement(
            part=PART,
            contestant=contestant,
            settings=settings,
            unit=unit,
            values=tuple((1e-6 * work / times[of]).tolist()),  # 1e9 operations or bytes a second, from milliseconds
            group=f"{PART} {name}",
            facts=facts,
        )

    found = []
    for precision in dict.fromkeys(kernel.precision for kernel in kernels.values()):
        of_precision = [
            measurement(
                kernel.kind,
                {**common, "precision": precision},
                "GFLOP/s",
                kernel.operations,
                one,
                {"by": f"{kernel.kind} {'x'.join(map(str, kernel.sides))}, {kernel.library}"},
            )
            for one, kernel in kernels.items()
            if kernel.precision == precision and one in times
        ]
        found.append(max(of_precision, key=lambda one: max(one.values)))
    found.append(measurement(COPY, common, "GB/s", 2 * size * COPIES[target.kind], COPY, {"bytes": size}))
    return found


def finals(kernels: Mapping[str, Kernel], first: Mapping[str, np.ndarray]) -> dict[Arithmetic, list[str]]:
    """Choose the `FINALISTS` of each precision by the milliseconds of a first round."""
    chosen: dict[Arithmetic, list[str]] = {}
    for one in sorted(first, key=lambda one: -kernels[one].operations / float(first[one].min())):
        of_precision = chosen.setdefault(kernels[one].precision, [])
        if len(of_precision) < FINALISTS:
            of_precision.append(one)
    return chosen


def peak_of(peaks: Sequence[Measurement | Skipped], device: Device, precision: Arithmetic) -> float | None:
    """GFLOP/s of the best round on a device in a precision; None if it was not measured.

    A peak is what was reached at least once, so little can exceed it. TensorRT's is that of its GPU.
    """
    for one in peaks:
        settings = one.settings.get("device"), one.settings.get("precision")
        if isinstance(one, Measurement) and one.unit == "GFLOP/s" and settings == (name_of(device), precision):
            return max(one.values)
    return None


def name_of(device: Device) -> str:
    """Return the device's name in PyTorch, by which its peaks are known."""
    return "cpu" if device.kind == "cpu" else f"cuda:{device.index}"


def kernels_on(target: Device) -> list[Kernel]:
    """List the kernels to try; GPUs before compute capability 8.0 do not multiply in bf16."""
    if target.kind == "cpu":
        return kernels_on_cpu(PRODUCTS["cpu"], CONVOLUTIONS)
    import torch

    precisions: list[Arithmetic] = ["fp32", "tf32", "fp16"]
    precisions += ["bf16"] if torch.cuda.get_device_capability(name_of(target)) >= (8, 0) else []
    return [
        Kernel(kind=PRODUCT, library="PyTorch", precision=precision, sides=sides)
        for precision in precisions
        for sides in PRODUCTS["cuda"]
    ]


def copy_call(target: Device, size: int, threads: int) -> Callable[[], object]:
    """Make a call that copies `size` bytes, `COPIES` times, and waits for the end; on a CPU by so many threads."""
    if target.kind == "cpu":
        parts = [(np.ones(size // threads, np.uint8), np.empty(size // threads, np.uint8)) for _ in range(threads)]
        pool = ThreadPoolExecutor(threads)
        return lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts * COPIES["cpu"]))
    import torch

    source, answer = (torch.ones(size // 4, dtype=torch.float32, device=name_of(target)) for _ in range(2))

    def call() -> None:
        for _ in range(COPIES[target.kind]):
            answer.copy_(source)
        torch.cuda.synchronize(name_of(target))

    return call


def copied_bytes(target: Device) -> int:
    """Size of the copy in bytes, a multiple of 4: larger than the caches, if memory has room for it and its source."""
    if target.kind != "cpu":
        return COPIED
    size, free = max(COPIED, BEYOND * last_caches()), available_megabytes()
    return size if free is None else min(size, int(ROOM / 2 * free * 1e6) // 4 * 4)


def last_caches() -> int:
    """Bytes of all caches of the last level that this process's cores use; 0 where the system does not tell."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    found: dict[tuple[int, str], int] = {}
    for core in cores:
        for cache in (CPUS / f"cpu{core}" / "cache").glob("index*"):
            level, size, shared = (text_of(cache / name) for name in ("level", "size", "shared_cpu_list"))
            if level.isdecimal() and size.endswith("K"):
                found[int(level), shared] = 1024 * int(size[:-1])
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last)
