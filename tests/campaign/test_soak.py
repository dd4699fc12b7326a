"""Many threads on one predictor: equal answers, and memory that does not grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns import LONG_SOAK, SOAK, early_and_late

from runtime.support.cpu_count import available_threads

TESTS = Path(__file__).parents[1]
MODEL = TESTS / "data" / "v0.1" / "models" / "fp32.onnx"
THREADS = 32


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
        Path(folder, SOAK).write_text(ran.stdout)
    assert found["wrong"] == []
    early, late = early_and_late(found)
    assert late <= early * (1.05 if seconds >= LONG_SOAK else 1.15), found
    # On two cores it was 630 MB before runs were bounded.
    assert late - found["start"] <= 225 + 75 * available_threads(), found
