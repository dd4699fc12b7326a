"""CPU cores that this process may use: the scheduler's affinity and the quota of its cgroups. Standard library only."""

import math
import os
import re
from functools import cache
from pathlib import Path

MAX_THREADS = 1_024
"""Maximum number of threads that an option takes."""


def available_threads() -> int:
    """Number of CPU cores that this process may use. More threads than these would only slow each other down.

    It is the process's affinity or, if that is lower, the quota of its cgroups, rounded up.
    """
    quota = own_quota()
    return affinity() if quota is None else min(affinity(), math.ceil(quota))


def affinity() -> int:
    """Number of CPU cores that the scheduler gives this process."""
    return len(allowed_cores()) or os.cpu_count() or 1


def allowed_cores() -> list[int]:
    """Numbers, from 0, of the CPU cores that the scheduler gives this process; empty where it does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@cache
def own_quota() -> float | None:
    """`cpu_quota` of this process, read once."""
    return cpu_quota()


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Lowest quota, in cores, of this process's cgroups (version 1 or 2); None without a limit."""
    quotas = []
    for line in text_of(own).splitlines():
        _, _, entry = line.partition(":")
        controllers, _, place = entry.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        path = base / place.strip("/")
        # In a container the path is the host's and may not exist, but its root is the container's own group.
        for folder in [base, *(part for part in (path, *path.parents) if base in part.parents)]:
            limit, _, period = text_of(folder / "cpu.max").partition(" ")
            if not limit:
                limit, period = text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")
            if limit.isdecimal() and period.isdecimal() and int(period):  # else "max", or -1
                quotas.append(int(limit) / int(period))
    return min((quota for quota in quotas if math.isfinite(quota) and quota > 0), default=None)


INSTRUCTIONS = ("avx2", "avx512bw", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Sets of instructions, by Linux's names, that decide which file is fast on a CPU."""


def has_vnni() -> bool:
    """Return True if this CPU multiplies 8-bit integers by VNNI, as Linux says."""
    return has_instructions("avx512_vnni", "avx_vnni")


def has_bf16() -> bool:
    """Return True if this CPU multiplies bf16 faster than float32, as Linux says: by AMX, or AMD's by AVX512-BF16.

    Intel's AVX512-BF16 is no faster: OpenVINO took 1.0 to 1.3 times its time in float32 with AMX hidden, as it is from
    some virtual machines.
    """
    is_amd = re.search(r"^vendor_id\s*: AuthenticAMD$", text_of(Path("/proc/cpuinfo")), re.MULTILINE)
    return has_instructions("amx_bf16") or (is_amd is not None and has_instructions("avx512_bf16"))


def has_avx512() -> bool:
    """Return True if this CPU has AVX-512, by which bf16 can be computed step by step, as Linux says."""
    return has_instructions("avx512bw")


def has_instructions(*names: str) -> bool:
    """Return True if Linux lists one of these sets of instructions for this CPU."""
    return not listed_instructions().isdisjoint(names)


def listed_instructions() -> set[str]:
    """Return all sets of instructions that Linux lists for this CPU; none on another system."""
    listed = re.search(r"^flags\s*:(.*)", text_of(Path("/proc/cpuinfo")), re.MULTILINE)
    return {*listed[1].split()} if listed else set()


def text_of(path: Path) -> str:
    """Text of a system file, without white space around it; "" if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
