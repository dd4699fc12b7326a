import re
import sys

import numpy as np
import pytest
import torch
from devices import CPU, GPU, TRT

from benchmarks.cases import peaks
from benchmarks.cases.kernels import Kernel
from benchmarks.cases.peaks import measure, peak_of
from benchmarks.measuring import rounds
from benchmarks.results import Measurement
from runtime.devices.device import Device


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(peaks, "PRODUCTS", {"cpu": ((8, 8, 8), (16, 16, 16)), "cuda": ((8, 8, 8),)})
    monkeypatch.setattr(peaks, "CONVOLUTIONS", ((2, 8, 12),))
    monkeypatch.setattr(peaks, "COPIED", 4096)
    monkeypatch.setattr(peaks, "CPUS", tmp_path)


@pytest.fixture
def known(monkeypatch):
    """Sets the milliseconds of the rounds of kernels, by name, others take 1 s; what was timed, and its budget."""
    asked = []

    def set_times(**times):
        def interleave(calls, rounds, *, budget_s):
            asked.append((list(calls), rounds, budget_s))
            return {name: np.array(times.get(re.sub(r"\W+", "_", name), [1000.0])[:rounds]) for name in calls}

        monkeypatch.setattr(peaks, "interleave", interleave)
        return asked

    return set_times


@pytest.mark.parametrize("bf16", [False, True])
def test_kernels_of_a_cpu_are_those_of_both_libraries(monkeypatch, bf16):
    """bf16 is tried where the processor multiplies in it."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16, raising=False)
    found = [one.name for one in peaks.kernels_on(CPU)]
    assert found[:6] == [
        "matrix product 8x8x8 in fp32, PyTorch",
        "matrix product 16x16x16 in fp32, PyTorch",
        "convolution 2x8x12 in fp32, PyTorch",
        "matrix product 8x8x8 in fp32, ONNX Runtime",
        "matrix product 16x16x16 in fp32, ONNX Runtime",
        "convolution 2x8x12 in fp32, ONNX Runtime",
    ]
    assert [one.partition(" in ")[2] for one in found[6:]] == ["bf16, PyTorch"] * (3 if bf16 else 0)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [one.name for one in peaks.kernels_on(CPU)] == found[3:6]


def test_the_best_round_of_all_kernels_is_the_peak(known, monkeypatch):
    """A product has two operations a multiply-add, a convolution 9 x channels of them a value; a copy reads and writes.

    The three fastest of a first round are timed again, with the copy.
    """
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    asked = known(
        matrix_product_8x8x8_in_fp32_PyTorch=[1.0, 1.0, 1.0],
        matrix_product_16x16x16_in_fp32_ONNX_Runtime=[2.0, 3.0, 9.0],
        convolution_2x8x12_in_fp32_PyTorch=[9.0, 0.1, 9.0],
        copy_of_memory=[1.0, 2.0, 4.0],
    )
    best, copy = measure(threads=1, rounds=3, budget_s=9.0)
    assert (best.contestant, best.unit, best.facts) == (
        "convolution", "GFLOP/s", {"by": "convolution 2x8x12, PyTorch"},
    )  # fmt: skip
    operations = 2 * 2 * 8 * 12 * 9 * 2
    assert best.values == pytest.approx([operations / seconds / 1e9 for seconds in (9e-3, 0.1e-3, 9e-3)])
    assert best.settings == {"device": "cpu", "threads": 1, "precision": "fp32"}
    assert (copy.contestant, copy.unit, copy.facts) == ("copy of memory", "GB/s", {"bytes": 4096})
    assert copy.values == pytest.approx([2 * 4096 / seconds / 1e9 for seconds in (1e-3, 2e-3, 4e-3)])
    assert copy.settings == {"device": "cpu", "threads": 1}
    assert best.group == copy.group == "peak cpu"
    (first, one_round, _), (finalists, all_rounds, _) = asked
    assert (len(first), one_round, all_rounds) == (6, 1, 3)
    assert finalists == [
        "matrix product 16x16x16 in fp32, ONNX Runtime",
        "matrix product 8x8x8 in fp32, PyTorch",
        "convolution 2x8x12 in fp32, PyTorch",
        "copy of memory",
    ]
    assert [budget for *_, budget in asked] == [3.0, 4.5]


def test_a_copy_is_split_among_the_threads(monkeypatch):
    copied = []
    monkeypatch.setattr(peaks.np, "copyto", lambda answer, source: copied.append((answer.nbytes, source.nbytes)))
    peaks.copy_call(CPU, 4096, 2)()
    assert copied == [(2048, 2048)] * 2


@pytest.mark.parametrize(
    ("capability", "kinds"), [((8, 0), ["fp32", "tf32", "fp16", "bf16"]), ((7, 5), ["fp32", "tf32", "fp16"])]
)
def test_precisions_of_a_gpu(monkeypatch, capability, kinds):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda target: capability)
    assert [one.precision for one in peaks.kernels_on(Device(kind="cuda", index=1))] == kinds


@pytest.mark.parametrize("library", ["PyTorch", "ONNX Runtime"])
def test_kernels_compute_what_their_names_say(library):
    """The operations that are counted are those of the sizes."""
    product = Kernel(kind="matrix product", library=library, precision="fp32", sides=(2, 8, 12))
    assert product.operations == 2 * 2 * 8 * 12
    assert tuple(product.call_on("cpu", 1)().shape) == (2, 12)
    convolution = Kernel(kind="convolution", library=library, precision="fp32", sides=(2, 8, 12))
    assert convolution.operations == 2 * (2 * 8 * 12) * (9 * 2)
    assert tuple(convolution.call_on("cpu", 1)().shape) == (1, 2, 8, 12)


def test_it_really_multiplies_and_copies_with_the_threads_asked_for(monkeypatch):
    seen = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *given, out: seen.append(torch.get_num_threads()) or mm(*given, out=out))
    found = measure(threads=3, rounds=5)
    assert set(seen) == {3}
    assert all(min(one.values) > 0 and len(one.values) == 5 for one in found)


def of(device, precision, contestant="matrix product", values=(1.0,), unit="GFLOP/s"):
    settings = {"device": device, "precision": precision}
    return Measurement(part="peak", contestant=contestant, settings=settings, unit=unit, values=values)


def test_the_peak_of_a_device_and_precision_is_its_best_round():
    cpu, gpu = of("cpu", "fp32", values=(3.0, 5.0, 4.0)), of("cuda:0", "tf32", values=(7.0,))
    known = [of("cpu", "fp32", "copy of memory", unit="GB/s"), cpu, gpu]
    assert peak_of(known, CPU, "fp32") == 5.0
    assert peak_of(known, GPU, "tf32") == peak_of(known, TRT, "tf32") == 7.0
    assert peak_of(known, GPU, "fp32") is peak_of(known, CPU, "int8") is None
    assert peak_of(known, Device(kind="cuda", index=1), "tf32") is None


def test_the_peaks_of_a_gpu_that_pytorch_can_use_follow_those_of_the_cpu(known, monkeypatch):
    asked = []
    monkeypatch.setattr(peaks, "measure_on", lambda *given: asked.append(given) or [])
    for devices in ("cpu", "cuda:1", "auto"):
        measure(devices=devices, threads=1, rounds=3, budget_s=8.0)
    monkeypatch.setattr(peaks, "pytorch_has", lambda gpu: True)
    measure(devices="cuda:1", threads=1, rounds=3, budget_s=8.0)
    cpu, gpu = CPU, Device(kind="cuda", index=1)
    assert asked == [(cpu, 1, 3, 8.0)] * 3 + [(cpu, 1, 3, 4.0), (gpu, 1, 3, 4.0)]


@pytest.fixture
def cpus(tmp_path, monkeypatch):
    """Writes caches as /sys tells of them, of a process that may use cores 0, 1 and 8 of 12."""
    monkeypatch.setattr(peaks.os, "sched_getaffinity", lambda process: {0, 1, 8}, raising=False)

    def write(core, index, **told):
        folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in told.items():
            (folder / name).write_text(f"{text}\n")

    return write


def test_the_last_caches_are_summed_over_those_that_the_process_uses(cpus):
    assert peaks.last_caches() == 0
    for core, shared in ((0, "0-3"), (1, "0-3"), (4, "4-7"), (8, "8-11")):
        cpus(core, 2, level=2, size="1024K", shared_cpu_list=core)
        cpus(core, 3, level=3, size="32768K", shared_cpu_list=shared)
    assert peaks.last_caches() == 2 * 32 * 2**20


@pytest.mark.parametrize(
    ("cache", "free", "copied"),
    [("1K", None, 4096), ("1048576K", None, 2**32), ("1048576K", 8000.0, 2_000_000_000), ("1K", 0.01001, 2500)],
)
def test_the_copy_is_larger_than_the_caches_where_memory_allows_it(cpus, monkeypatch, cache, free, copied):
    """Source and copy together take half of the free memory at most."""
    cpus(0, 3, level=3, size=cache, shared_cpu_list="0-3")
    monkeypatch.setattr(peaks, "available_megabytes", lambda: free)
    assert peaks.copied_bytes(CPU) == copied
    assert peaks.copied_bytes(GPU) == 4096
