"""What a figure was measured on: without it a figure says nothing."""

import hashlib
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from runtime.providers import available_threads

DISTRIBUTIONS = ("unet-deploy", "torch", "onnxruntime-gpu", "onnxruntime", "onnx", "numpy")


def environment(model: str | os.PathLike[str]) -> dict[str, object]:
    """The machine, and name and hash of the measured model."""
    return {
        **machine(),
        "model": Path(model).name,
        "model_sha256": hashlib.sha256(Path(model).read_bytes()).hexdigest(),
    }


def machine() -> dict[str, object]:
    """CPU, cores that may be used, system, versions and time (UTC)."""
    return {
        "cpu": cpu_name(),
        "cores": available_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of what takes part, as far as installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
