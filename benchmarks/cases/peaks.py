"""Peaks: the most that the machine can do, measured by matrix products and a copy of memory in PyTorch."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.contestants.base import Arithmetic
from benchmarks.contestants.pytorch import multiply_in, pytorch_has
from benchmarks.measuring.rounds import interleave
from benchmarks.measuring.subprocesses import available_megabytes
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped
from runtime.devices.availability import candidates
from runtime.devices.device import Device
from runtime.support.cpu_count import available_threads, text_of
from unet_core.reporting.progress import Display

PART = "peak"
PRODUCT = "matrix product"
COPY = "copy of memory"

Sides = tuple[int, int, int]
"""Sides of a product [rows, inner] x [inner, columns]."""

SIDES: Mapping[str, tuple[Sides, ...]] = {
    "cpu": (*((side, side, side) for side in (256, 384, 512, 768, 1024, 2048)), (4096, 1152, 128)),
    "cuda": (*((side, side, side) for side in (2048, 4096, 8192)), (65536, 1152, 128)),
}
"""Products by kind of device: squares, and a convolution of 3x3 and 128 channels (pixels, 9 x channels, channels)."""

TYPES: Mapping[Arithmetic, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

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
    """GFLOP/s of a product of matrices, by precision, and GB/s of a copy, bytes read and written both counted.

    Args:
        threads: CPU threads; by default as many as this process may use.
        devices: "cpu"; "cuda", "cuda:N" or "auto" for the CPU and that GPU, if PyTorch can use it.
        rounds: rounds of timing, in which products and copy take turns.
        budget_s: seconds for all of it; if time is short there are fewer rounds, but at least `MIN_ROUNDS`.
        display: where progress is shown.

    Returns:
        For each precision all rounds of the product that had the best one; the facts name its sides. For the copy the
        facts tell its bytes.
    """
    (display or Display(quiet=True)).note(f"{PART}: {rounds} rounds")
    gpu = candidates("cuda" if devices == "auto" else devices)[-1]
    targets = [torch.device("cpu")]
    if gpu.kind != "cpu" and pytorch_has(gpu):
        targets.append(torch.device("cuda", gpu.index))
    share = budget_s and budget_s / len(targets)
    found = []
    for target in targets:
        found += measure_on(target, threads or available_threads(), rounds, share)
    return found


def measure_on(target: torch.device, threads: int, rounds: int, budget_s: float | None) -> list[Measurement]:
    """Measure the products and the copy on one device."""
    products = {
        f"{precision} {'x'.join(map(str, sides))}": (precision, sides)
        for precision in precisions_of(target)
        for sides in SIDES[target.type]
    }
    size = copied_bytes(target)
    calls = {name: product_call(target, *product) for name, product in products.items()}
    with pinned(threads):
        times = interleave({**calls, COPY: copy_call(target, size)}, rounds, budget_s=budget_s)
    common: Settings = {"device": str(target), "threads": threads}

    def measurement(
        contestant: str, settings: Settings, unit: str, work: float, name: str, facts: Settings
    ) -> Measurement:
        values = tuple((1e-6 * work / times[name]).tolist())  # 1e9 operations or bytes a second, from milliseconds
        return Measurement(
            part=PART,
            contestant=contestant,
            settings=settings,
            unit=unit,
            values=values,
            group=f"{PART} {target}",
            facts=facts,
        )

    found = []
    for precision in precisions_of(target):
        of_precision = [
            measurement(
                PRODUCT,
                {**common, "precision": precision},
                "GFLOP/s",
                2 * math.prod(sides),
                name,
                {"sides": "x".join(map(str, sides))},
            )
            for name, (kind, sides) in products.items()
            if kind == precision
        ]
        found.append(max(of_precision, key=lambda one: max(one.values)))
    found.append(measurement(COPY, common, "GB/s", 2 * size * COPIES[target.type], COPY, {"bytes": size}))
    return found


def peak_of(peaks: Sequence[Measurement | Skipped], device: Device, precision: Arithmetic) -> float | None:
    """GFLOP/s of the best round of products on a device in a precision; None if it was not measured.

    A peak is what was reached at least once, so little can exceed it. TensorRT's is that of its GPU.
    """
    name = "cpu" if device.kind == "cpu" else f"cuda:{device.index}"
    for one in peaks:
        settings = one.settings.get("device"), one.settings.get("precision")
        if isinstance(one, Measurement) and one.contestant == PRODUCT and settings == (name, precision):
            return max(one.values)
    return None


def precisions_of(target: torch.device) -> tuple[Arithmetic, ...]:
    """The precisions of a device; GPUs before compute capability 8.0 do not multiply in bf16."""
    if target.type == "cpu":
        return ("fp32",)
    has_bf16 = torch.cuda.get_device_capability(target) >= (8, 0)
    return ("fp32", "tf32", "fp16", "bf16") if has_bf16 else ("fp32", "tf32", "fp16")


def product_call(target: torch.device, precision: Arithmetic, sides: Sides) -> Callable[[], None]:
    """Make a call that multiplies two matrices and waits for the answer."""
    rows, inner, columns = sides
    dtype = TYPES[precision]
    left, right = (torch.rand(*shape, device=target).to(dtype) for shape in ((rows, inner), (inner, columns)))
    answer = torch.empty(rows, columns, dtype=dtype, device=target)

    def call() -> None:
        with torch.inference_mode(), multiply_in("tf32" if precision == "tf32" else "fp32"):
            torch.mm(left, right, out=answer)
        if target.type == "cuda":
            torch.cuda.synchronize(target)

    return call


def copy_call(target: torch.device, size: int) -> Callable[[], None]:
    """Make a call that copies `size` bytes, `COPIES` times, and waits for the end."""
    source, answer = (torch.ones(size // 4, dtype=torch.float32, device=target) for _ in range(2))

    def call() -> None:
        for _ in range(COPIES[target.type]):
            answer.copy_(source)
        if target.type == "cuda":
            torch.cuda.synchronize(target)

    return call


def copied_bytes(target: torch.device) -> int:
    """Size of the copy in bytes, a multiple of 4: larger than the caches, if memory has room for it and its source."""
    if target.type != "cpu":
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
