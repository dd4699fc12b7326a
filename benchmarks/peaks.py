"""What the machine can do at most: a matrix product and a copy of memory, by PyTorch, with the same threads."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.fresh import available_megabytes
from benchmarks.peer import Arithmetic
from benchmarks.peers_torch import arithmetic, place
from benchmarks.results import Measurement, Settings
from benchmarks.timing import interleave, pinned
from runtime.cores import text_of
from runtime.providers import Device, available_threads, candidates

PART = "peak"
PRODUCT = "matrix product"
COPY = "copy of memory"

SIDES: Mapping[str, tuple[int, ...]] = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
"""Of square matrices, by kind of device; that with the best median counts."""

TYPES: Mapping[Arithmetic, torch.dtype] = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}

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

    `device` is "cpu", "cuda" or "cuda:N"; the facts name the side of the matrices and the bytes of the copy. All are
    taken in turns, with `budget_s` seconds for them fewer `rounds`, but not fewer than `MIN_ROUNDS`.
    """
    threads = threads or available_threads()
    (where,) = candidates(device)
    target = place(where)
    common: Settings = {"device": str(where), "threads": threads}
    kinds: tuple[Arithmetic, ...] = ("fp32",) if target.type == "cpu" else ("fp32", "tf32", "fp16")
    products = {(kind, side): _product(target, kind, side) for kind in kinds for side in SIDES[target.type]}
    size = _copied(target)
    copied = f"copy of {size}"
    with pinned(threads):
        calls = {f"{kind} {side}": call for (kind, side), call in products.items()}
        times = interleave({**calls, copied: _copy(target, size)}, rounds, budget_s=budget_s)
    found = []
    for kind in kinds:
        rates = {side: 2e-6 * side**3 / times[f"{kind} {side}"] for side in SIDES[target.type]}
        best = max(rates, key=lambda side: sorted(rates[side])[len(rates[side]) // 2])
        found.append(
            Measurement(
                part=PART,
                contestant=PRODUCT,
                settings={**common, "precision": kind},
                unit="GFLOP/s",
                values=tuple(map(float, rates[best])),
                group=f"{PART} {where}",
                facts={"side": best},
            )
        )
    bandwidth = 2e-6 * size / times[copied]
    return [
        *found,
        Measurement(
            part=PART,
            contestant=COPY,
            settings=common,
            unit="GB/s",
            values=tuple(map(float, bandwidth)),
            group=f"{PART} {where}",
            facts={"bytes": size},
        ),
    ]


def peak_of(peaks: Sequence[Measurement], device: Device, precision: Arithmetic) -> Measurement | None:
    """The measured peak of products for a device and precision, if there is one; TensorRT's is that of its GPU."""
    name = "cpu" if device.kind == "cpu" else f"cuda:{device.index}"
    for one in peaks:
        asked = one.settings.get("device"), one.settings.get("precision")
        if one.contestant == PRODUCT and asked == (name, precision):
            return one
    return None


def _product(target: torch.device, kind: Arithmetic, side: int) -> Callable[[], None]:
    left, right = (torch.rand(side, side, device=target).to(TYPES[kind]) for _ in range(2))
    answer = torch.empty_like(left)

    def call() -> None:
        with torch.inference_mode(), arithmetic(target, "tf32" if kind == "tf32" else "fp32"):
            torch.mm(left, right, out=answer)
        _wait(target)

    return call


def _copy(target: torch.device, size: int) -> Callable[[], None]:
    source, answer = (torch.ones(size // 4, dtype=torch.float32, device=target) for _ in range(2))

    def call() -> None:
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


if __name__ == "__main__":
    from benchmarks.cli import only

    only("peak")
