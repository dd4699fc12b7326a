"""Python scripts in fresh processes: for cold starts, peaks of memory, trainings with a time limit."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import DeviceError, one_line

LIMIT_S = 600.0
"""Time limit of a process, or of an answer of one that stays open, in seconds."""

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
"""Linux's figures of a process's memory, see proc(5)."""
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""Folder of cgroups, version 2, with a container's memory limit."""

MEMORY = """
def megabytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024 / 1e6
def forget_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM, the peak, begins anew; see proc(5)
"""
"""Head of scripts that measure memory: megabytes("VmRSS") is what is used now, megabytes("VmHWM") the peak."""


def python_command(script: str, *arguments: object) -> list[str]:
    """The command that runs a script's text in a fresh Python, which imports nothing from the current folder."""
    return [sys.executable, "-P", "-c", script, *map(str, arguments)]


def environment_variables() -> dict[str, str]:
    """This process's environment variables, changed so that this checkout's packages are found first.

    Python may write bytecode, which pip does for packages that are installed: it would be compiled at every start.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | own


def run_script(script: str, *arguments: object, limit_s: float = LIMIT_S) -> str:
    """Run a script in a fresh process for at most `limit_s` seconds; return what it printed.

    Raises:
        DeviceError: it failed, took too long, or was killed, most likely because it ran out of memory.
    """
    command, variables = python_command(script, *arguments), environment_variables()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"a fresh process: {timeout_reason(limit_s)}") from error
    if done.returncode:
        raise DeviceError(f"a fresh process: {exit_reason(done.returncode, done.stderr)}")
    return done.stdout


def timeout_reason(limit_s: float) -> str:
    """The reason in one line for a process that exceeded its time limit."""
    return f"took longer than {limit_s:g} s and was ended; measure less of it, or on an idle machine"


def exit_reason(code: int, stderr: str) -> str:
    """The reason in one line for a process that ended with an exit status other than 0."""
    if code < 0:
        return f"was killed by signal {-code}, most likely because it ran out of memory"
    lines = stderr.strip().splitlines()
    return f"ended with status {code}" + (f" ({one_line(lines[-1])[:300]})" if lines else "")


def memory_unavailable_reason() -> str | None:
    """Return why a process's memory cannot be measured here; None if it can."""
    return None if STATUS.exists() else "needs Linux, whose /proc tells a process's memory"


def available_megabytes() -> float | None:
    """Memory in MB that a process may still take, by the kernel's estimate and a container's limit; None if unknown."""
    found = []
    if MEMINFO.exists():
        lines = (line.split() for line in MEMINFO.read_text().splitlines())
        found += [int(words[1]) * 1024 / 1e6 for words in lines if words[0] == "MemAvailable:"]
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        found.append((int(limit.read_text()) - int(used.read_text())) / 1e6)
    return min(found, default=None)


@contextmanager
def end_on_sigterm() -> Iterator[None]:
    """End the block on SIGTERM as an error would, so that temporary folders are removed and processes ended."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
