"""What has to run in a Python process of its own: cold starts, peaks of memory, trainings with a time limit."""

import os
import subprocess
import sys
from pathlib import Path

from runtime.errors import DeviceError, one_line

LIMIT_S = 600.0
"""Seconds after which a process, or an answer of one that stays open, is no longer waited for."""

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
"""What the kernel tells of a process's memory, see proc(5); Linux only."""
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""Of version 2, with a container's limit of memory."""

MEMORY = """
def megabytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024 / 1e6
def forget_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM, the peak, begins anew; see proc(5)
"""
"""The head of scripts that measure memory: megabytes("VmRSS") are now, megabytes("VmHWM") the peak."""


def command_of(script: str, *arguments: object) -> list[str]:
    """The command that runs a script's text in a fresh Python; what lies in the current folder is not imported."""
    return [sys.executable, "-P", "-c", script, *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, in which this checkout's packages are found first."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def fresh(script: str, *arguments: object, limit_s: float = LIMIT_S) -> str:
    """What a script prints in a fresh process, which is ended after `limit_s` seconds.

    Raises:
        DeviceError: it failed, took too long, or was ended from outside, most likely for want of memory.
    """
    command = command_of(script, *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"a process of its own: {too_long(limit_s)}") from error
    if done.returncode:
        raise DeviceError(f"a process of its own: {why_ended(done.returncode, done.stderr)}")
    return done.stdout


def too_long(limit_s: float) -> str:
    """One line about a process that was ended for its time."""
    return f"took longer than {limit_s:g} s and was ended; measure less of it, or on an idle machine"


def why_ended(code: int, stderr: str) -> str:
    """One line about a process that ended with another exit status than 0."""
    if code < 0:
        return f"was ended by signal {-code}, most likely for want of memory"
    lines = stderr.strip().splitlines()
    return f"ended with status {code}" + (f" ({one_line(lines[-1])[:300]})" if lines else "")


def no_memory_figures() -> str | None:
    """Why a process's memory cannot be measured here; None where it can."""
    return None if STATUS.exists() else "needs Linux, whose /proc tells of a process's memory"


def available_megabytes() -> float | None:
    """What a process may still take, by the kernel's estimate and a container's limit; None where neither is told."""
    found = []
    if MEMINFO.exists():
        lines = (line.split() for line in MEMINFO.read_text().splitlines())
        found += [int(words[1]) * 1024 / 1e6 for words in lines if words[0] == "MemAvailable:"]
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        found.append((int(limit.read_text()) - int(used.read_text())) / 1e6)
    return min(found, default=None)
