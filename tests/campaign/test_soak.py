"""Many threads on one predictor: equal answers, and memory that does not grow."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.support.cpu_count import available_threads

TESTS = Path(__file__).parents[1]
MODEL = TESTS / "data" / "v0.1" / "models" / "fp32.onnx"
THREADS = 32

HOUR = 3_000.0
"""Seconds from which a soak is a long one."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from Linux's /proc")
def test_memory_does_not_grow(request):
    seconds, folder = request.config.getoption("--soak-seconds"), request.config.getoption("--campaign-folder")
    command = [sys.executable, str(TESTS / "support" / "soak.py"), str(MODEL), str(seconds), str(THREADS)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    found = json.loads(ran.stdout)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "soak.txt").write_text(ran.stdout)
    assert found["wrong"] == []
    memory, parts = found["memory"], len(found["memory"]) // 12
    # Of an hour: minutes 5 to 10 against the last five. A short run has hardly warmed up at its twelfth part.
    early = statistics.median(memory[parts : 2 * parts] if seconds >= HOUR else memory[4 * parts : 6 * parts])
    late = statistics.median(memory[-parts:] if seconds >= HOUR else memory[-2 * parts :])
    assert late <= early * (1.05 if seconds >= HOUR else 1.15), found
    # On two cores it was 630 MB before runs were bounded.
    assert late - found["start"] <= 225 + 75 * available_threads(), found
