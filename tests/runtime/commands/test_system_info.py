"""Facts about a machine, from made-up folders and libraries."""

import ctypes
import os
from importlib import metadata

import pytest

from runtime.commands import system_info


def test_cores_and_variables_are_those_of_this_process(monkeypatch, quota):
    quota(1.5)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert system_info.cores() == {"machine": 64, "allowed": 2, "quota": 1.5, "threads": 2}
    monkeypatch.setattr("os.environ", {"OMP_NUM_THREADS": "3", "HOME": "/h", "CUDA_VISIBLE_DEVICES": ""})
    assert system_info.variables() == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "3"}


def test_distributions_of_one_folder(monkeypatch):
    brought = {"onnxruntime": ["onnxruntime_gpu", "onnxruntime", "onnxruntime"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: brought)
    assert system_info.clashes_of("onnxruntime") == ["onnxruntime", "onnxruntime-gpu"]
    assert system_info.clashes_of("cv2") == []


@pytest.mark.parametrize(
    ("program", "death"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashes Python (exit code -11)"),
        ("raise ImportError", None),
        ("import runtime.errors", None),
    ],
)
def test_crashes_are_told_from_errors(program, death):
    assert system_info.death_by(program) == death


def test_what_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr(system_info, "PROBE_SECONDS", 0.2)
    assert system_info.death_by("import time; time.sleep(60)") == "does not end within 0.2 s"


STAT = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 {0} 10 20 1000 50 3 4 {1} 0 0\ncpu1 7 0 0 900 0 0 0 0 0 0\nintr 1\n"


def test_cores_that_others_use_are_those_of_this_process_without_its_own_part(monkeypatch):
    """Core 0 works for 3 s, of which a virtual machine's host has one for others; 0.5 s are this process's."""
    ticks = os.sysconf("SC_CLK_TCK")
    stats = iter([STAT.format(0, 0), STAT.format(2 * ticks, ticks)])
    monkeypatch.setattr(system_info, "text_of", lambda path: next(stats) if str(path) == "/proc/stat" else "")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    clocks = {"monotonic": iter([100.0, 104.0]), "process_time": iter([7.0, 7.5])}
    for name, times in clocks.items():
        monkeypatch.setattr(system_info.time, name, lambda times=times: next(times))
    others = system_info.OtherPrograms()
    assert others.cores() == (3 - 0.5) / 4


@pytest.mark.parametrize(("stat", "cores"), [("", [0]), ("cpu0 1 2 3\n", [0]), (STAT.format(1, 1), [0, 5]), ("", [])])
def test_system_that_does_not_say_what_others_use(monkeypatch, stat, cores):
    monkeypatch.setattr(system_info, "text_of", lambda path: stat)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(cores), raising=False)
    assert system_info.OtherPrograms().cores() is None


class Nvml:
    """A driver with two GPUs, the second one without memory of its own."""

    def __init__(self, status=0):
        self.status = status

    def nvmlInit_v2(self):  # noqa: N802
        return self.status

    def nvmlSystemGetDriverVersion(self, text, size):  # noqa: N802
        text.value = b"580.1"
        return 0

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):  # noqa: N802
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, handle, name, size):  # noqa: N802
        name.value = b"GPU %d" % (handle.value - 1)
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory):  # noqa: N802
        memory._obj.total, memory._obj.free = 100, 40
        return 0 if handle.value == 1 else 3


class Cuda:
    """CUDA's driver with two GPUs."""

    def __init__(self, status=0):
        self.status = status

    def cuInit(self, flags):  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = 2
        return 0


def no_library(name):
    raise OSError(name)


@pytest.mark.parametrize(("load", "gpus"), [(lambda name: Cuda(), 2), (lambda name: Cuda(100), 0), (no_library, None)])
def test_gpus_by_cudas_driver(monkeypatch, load, gpus):
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert system_info.cuda_gpus() == gpus


def test_gpus_by_nvml(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml())
    first = {"name": "GPU 0", "memory_bytes": 100, "free_bytes": 40}
    second = {"name": "GPU 1", "memory_bytes": None, "free_bytes": None}
    assert system_info.gpus() == {"driver": "580.1", "gpus": [first, second]}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml(9))
    with pytest.raises(OSError, match="the NVIDIA driver answers NVML error 9; see nvidia-smi"):
        system_info.gpus()
