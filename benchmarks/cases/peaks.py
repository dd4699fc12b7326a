"""What the machine can do at most: a matrix product and a copy of memory, by PyTorch, with the same threads."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.contestants.base import Arithmetic
from benchmarks.contestants.pytorch import arithmetic, place
from benchmarks.measuring.subprocesses import available_megabytes
from benchmarks.measuring.timing import interleave, pinned
from benchmarks.results import Measurement, Settings
from runtime.devices.availability import candidates
from runtime.devices.device import Device
from runtime.support.cpu_count import available_threads, text_of

PART = "peak"
PRODUCT = "matrix product"
COPY = "copy of memory"

Sides = tuple[int, int, int]
"""Of a product [rows, inner] x [inner, columns]."""

SIDES: Mapping[str, tuple[Sides, ...]] = {
    "cpu": (*((side, side, side) for side in (256, 384, 512, 768, 1024, 2048)), (4096, 1152, 128)),
    "cuda": (*((side, side, side) for side in (2048, 4096, 8192)), (65536, 1152, 128)),
}
"""By kind of device: square ones, and what a convolution of 3x3 and 128 channels is, pixels x 9 channels x channels."""

TYPES: Mapping[Arithmetic, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

COPIES: Mapping[str, int] = {"cpu": 1, "cuda": 16}
"""Of a timed call, by kind of device: waiting for a GPU takes a noticeable share of one copy."""

COPIED = 2**28
"""Bytes that are copied at least; on a CPU at least `BEYOND` times its last caches."""
BEYOND = 4
ROOM = 0.5
"""Share of the free memory that a copy and its source may take."""

CPUS = Path("/sys/devices/system/cpu")
"""Where Linux tells of caches (its Documentation/ABI/testing/sysfs-devices-system-cpu)."""


def measure(
    *, threads: int | None = None, device: str = "cpu", rounds: int = 20, budget_s: float | None = None
) -> list[Measurement]:
    """GFLOP/s of a product of matrices, by precision on a GPU, and GB/s of a copy, bytes read and written both counted.

    `device` is "cpu", "cuda" or "cuda:N". All are taken in turns, with `budget_s` seconds for them fewer `rounds`, but
    not fewer than `MIN_ROUNDS`. The values of a precision are all rounds of the product that had the best one; the
    facts name its sides, and the bytes of the copy.
    """
    threads = threads or available_threads()
    (where,) = candidates(device)
    target = place(where)
    common: Settings = {"device": str(where), "threads": threads}
    kinds, size = _kinds(target), _copied(target)
    products = {_named(kind, sides): _product(target, kind, sides) for kind in kinds for sides in SIDES[target.type]}
    with pinned(threads):
        times = interleave({**products, COPY: _copy(target, size)}, rounds, budget_s=budget_s)
    found = []
    for kind in kinds:
        rates = {sides: 2e-6 * math.prod(sides) / times[_named(kind, sides)] for sides in SIDES[target.type]}
        best = max(rates, key=lambda sides: rates[sides].max())
        settings = {**common, "precision": kind}
        found.append(_measurement(PRODUCT, settings, "GFLOP/s", rates[best], {"sides": _shown(best)}))
    bandwidth = 2e-6 * size * COPIES[target.type] / times[COPY]
    return [*found, _measurement(COPY, common, "GB/s", bandwidth, {"bytes": size})]


def peak_of(peaks: Sequence[Measurement], device: Device, precision: Arithmetic) -> Measurement | None:
    """The best round of products for a device and precision, if there is one; TensorRT's is that of its GPU.

    A peak is what was reached at least once, so that little can exceed it.
    """
    name = "cpu" if device.kind == "cpu" else f"cuda:{device.index}"
    for one in peaks:
        asked = one.settings.get("device"), one.settings.get("precision")
        if one.contestant == PRODUCT and asked == (name, precision):
            return replace(one, values=(max(one.values),))
    return None


def _measurement(
    contestant: str, settings: Settings, unit: str, values: NDArray[np.float64], facts: Settings
) -> Measurement:
    return Measurement(
        part=PART,
        contestant=contestant,
        settings=settings,
        unit=unit,
        values=tuple(values.tolist()),
        group=f"{PART} {settings['device']}",
        facts=facts,
    )


def _kinds(target: torch.device) -> tuple[Arithmetic, ...]:
    """The precisions of a device; GPUs before compute capability 8.0 do not multiply in bf16."""
    if target.type == "cpu":
        return ("fp32",)
    has_bf16 = torch.cuda.get_device_capability(target) >= (8, 0)
    return ("fp32", "tf32", "fp16", "bf16") if has_bf16 else ("fp32", "tf32", "fp16")


def _named(kind: Arithmetic, sides: Sides) -> str:
    return f"{kind} {_shown(sides)}"


def _shown(sides: Sides) -> str:
    return "x".join(map(str, sides))


def _product(target: torch.device, kind: Arithmetic, sides: Sides) -> Callable[[], None]:
    rows, inner, columns = sides
    left, right = (torch.rand(*shape, device=target).to(TYPES[kind]) for shape in ((rows, inner), (inner, columns)))
    answer = torch.empty(rows, columns, dtype=TYPES[kind], device=target)

    def call() -> None:
        with torch.inference_mode(), arithmetic("tf32" if kind == "tf32" else "fp32"):
            torch.mm(left, right, out=answer)
        _wait(target)

    return call


def _copy(target: torch.device, size: int) -> Callable[[], None]:
    source, answer = (torch.ones(size // 4, dtype=torch.float32, device=target) for _ in range(2))

    def call() -> None:
        for _ in range(COPIES[target.type]):
            answer.copy_(source)
        _wait(target)

    return call


def _copied(target: torch.device) -> int:
    """Bytes of the copy, a multiple of 4: more than the caches hold, where there is room for it and its source."""
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


def _wait(target: torch.device) -> None:
    if target.type == "cuda":
        torch.cuda.synchronize(target)
