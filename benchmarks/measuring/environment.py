"""The environment of a measurement: machine, versions, commit and model."""

import hashlib
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measuring.rounds import TRIAL, is_trial
from runtime.card import ModelCard
from runtime.commands.system_info import gpus
from runtime.model_file.reader import read_model
from runtime.support.cpu_count import available_threads, cpu_quota

DISTRIBUTIONS = (
    "unet-deploy",
    "torch",
    "onnxruntime-gpu",
    "onnxruntime",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
    "tensorrt-cu13-libs",
    "openvino",
    "ncnn",
    "pnnx",
    "onnx",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
)
"""Packages whose versions are recorded."""

FLAGS = ("neon", "asimd", "asimddp", "sve", "avx", "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16")
MATRIX_FLAGS = ("amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "i8mm", "bf16")
"""Linux's names of the vector and matrix instructions that convolutions use."""

CPU_INFORMATION = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")
MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Files with a container's memory limit in bytes, or "max", for both versions of cgroups."""

ROOT = Path(__file__).parents[2]
PACKAGES = ("runtime", "unet_core", "export", "benchmarks")
GIT_SECONDS = 10
"""Time limit of a git command."""


def environment(model: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe the machine, and the measured model: file name, size, hash, the card's name, the network.

    Raises:
        ModelError: the model cannot be read.
    """
    card, _ = read_model(Path(model))
    with open(model, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        **machine(),
        "model": Path(model).name,
        "model_mb": round(Path(model).stat().st_size / 1e6, 3),
        "model_sha256": digest,
        "card": card.name,
        "network": network_of(card),
    }


def network_of(card: ModelCard) -> str:
    """Describe the network: architecture, trained size as WxH, number of classes."""
    height, width = card.input.size
    classes = len(card.output.classes)
    return f"{card.architecture.summary}, {width}x{height}, {classes} {'class' if classes == 1 else 'classes'}"


def machine() -> dict[str, Any]:
    """Describe CPU, usable cores, memory, GPUs, system, versions, commit and time (UTC); None if unknown or absent."""
    return {
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags(),
        "cores": available_threads(),
        "cpu_quota": cpu_quota(),
        "memory_mb": memory_mb(),
        **gpu_summary(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": installed_versions(),
        **commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def installed_versions() -> dict[str, str]:
    """Versions of those of `DISTRIBUTIONS` that are installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    return cpu_information("model name") or platform.processor() or platform.machine()


def cpu_flags() -> str | None:
    """The processor's vector and matrix instructions that convolutions use; None where the system does not tell."""
    found = (cpu_information("flags") or cpu_information("Features") or "").split()
    return " ".join(flag for flag in (*FLAGS, *MATRIX_FLAGS) if flag in found) if found else None


def cpu_information(wanted: str) -> str | None:
    """The first value of this name in `CPU_INFORMATION`; None if there is none."""
    if not CPU_INFORMATION.exists():
        return None
    for line in CPU_INFORMATION.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == wanted:
            return value.strip()
    return None


def memory_mb() -> int | None:
    """Memory in MB (10^6 bytes) that this process may use, the machine's or its container's; None if unknown."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in MEMORY_LIMITS:
        if (CGROUP / name).exists() and (limit := (CGROUP / name).read_text().strip()).isdecimal():
            sizes.append(int(limit))
    return round(min(sizes) / 1e6)


def gpu_summary() -> dict[str, Any]:
    """Names of the GPUs, memory of the first in MB, version of the driver; each None where there is no GPU."""
    try:
        found = gpus()
    except OSError:
        found = {}
    devices = found.get("gpus", [])
    memory = devices[0]["memory_bytes"] if devices else None
    return {
        "gpu": ", ".join(device["name"] for device in devices) or None,
        "gpu_memory_mb": round(memory / 1e6) if memory else None,
        "driver": found.get("driver"),
    }


def commit() -> dict[str, Any]:
    """The checkout's commit, and True if files of the packages differ from it; both None outside a checkout."""
    unknown = {"git_commit": None, "git_dirty": None}
    if not (ROOT / ".git").exists():  # as installed, perhaps within a repository that is not ours
        return unknown
    answers = []
    for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *PACKAGES)):
        command = ["git", "-C", str(ROOT), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS)
        except (OSError, subprocess.SubprocessError):
            return unknown
        answers.append(done.stdout.strip())
    return {"git_commit": answers[0], "git_dirty": bool(answers[1])}


MAX_BUSY = 0.15
"""Share of the cores that other programs may keep busy during a measurement."""

STATISTICS = Path("/proc/stat")
"""Linux's counts of busy and idle time, see proc(5)."""


def busy_cores(seconds: float = 0.5) -> float | None:
    """Number of cores that other programs keep busy while this process sleeps, of those it may use; None if unknown.

    Ask before and after the timing: a thread that waits for a core stalls all threads of its pool, PyTorch's worst, so
    on a busy machine even a steady time can be wrong.
    """
    time.sleep(0.2)  # thread pools spin on for a moment after their last work
    before = cpu_ticks()
    time.sleep(seconds)
    after = cpu_ticks()
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1]) * len(os.sched_getaffinity(0))


def cpu_ticks() -> tuple[int, int] | None:
    """Busy ticks and all ticks of our cores since boot, by `STATISTICS`: cpuN user nice system idle iowait irq ..."""
    if not STATISTICS.exists() or not hasattr(os, "sched_getaffinity"):
        return None
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in STATISTICS.read_text().splitlines()]
    ticks = [sum(column) for column in zip(*(map(int, line[1:9]) for line in lines if line[0] in ours), strict=True)]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def disturbance(before: float | None, after: float | None) -> str | None:
    """Return why times are doubtful, from `busy_cores` before and after; None if no other program was busy."""
    if is_trial():
        return (
            f"{TRIAL} is set, so nothing was warmed up, and whatever its options say unet-bench made one round and ten "
            "predictions, and its large image was 640x640; unset it and measure again"
        )
    busy, cores = max(before or 0.0, after or 0.0), available_threads()
    if busy <= MAX_BUSY * cores:
        return None
    return f"other programs kept {busy:.1f} of {cores} cores busy; measure again on an idle machine"
