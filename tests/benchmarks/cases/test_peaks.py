import numpy as np
import pytest
import torch
from devices import CPU, GPU, TRT

from benchmarks.cases import peaks
from benchmarks.cases.peaks import measure, peak_of
from benchmarks.measuring import rounds
from benchmarks.results import Measurement
from runtime.devices.device import Device


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(peaks, "SIDES", {"cpu": ((8, 8, 8), (16, 16, 16), (64, 9, 1))})
    monkeypatch.setattr(peaks, "COPIED", 4096)
    monkeypatch.setattr(peaks, "CPUS", tmp_path)


@pytest.fixture
def known(monkeypatch):
    """Sets the milliseconds of each contestant's rounds; the budgets that were given."""
    budgets = []

    def set_times(**times):
        def interleave(calls, rounds, *, budget_s):
            assert len(calls) == len(times)
            budgets.append(budget_s)
            return {name: np.array(times[name.replace(" ", "_")]) for name in calls}

        monkeypatch.setattr(peaks, "interleave", interleave)
        return budgets

    return set_times


def test_a_product_has_two_operations_a_multiply_add_and_a_copy_reads_and_writes(known):
    """The product with the best round wins, at 2 x 16^3 operations; the copy moves 2 x 4096 bytes."""
    budgets = known(
        fp32_8x8x8=[1.0, 1.0, 1.0],
        fp32_16x16x16=[9.0, 4.0, 9.0],
        fp32_64x9x1=[2.0, 2.0, 2.0],
        copy_of_memory=[1.0, 2.0, 4.0],
    )
    product, copy = measure(threads=1, rounds=3, budget_s=9.0)
    assert budgets == [9.0]
    assert (product.contestant, product.unit, product.facts) == ("matrix product", "GFLOP/s", {"sides": "16x16x16"})
    assert product.values == pytest.approx([2 * 16**3 / seconds / 1e9 for seconds in (9e-3, 4e-3, 9e-3)])
    assert product.settings == {"device": "cpu", "threads": 1, "precision": "fp32"}
    assert (copy.contestant, copy.unit, copy.facts) == ("copy of memory", "GB/s", {"bytes": 4096})
    assert copy.values == pytest.approx([2 * 4096 / seconds / 1e9 for seconds in (1e-3, 2e-3, 4e-3)])
    assert copy.settings == {"device": "cpu", "threads": 1}
    assert product.group == copy.group == "peak cpu"


def test_a_call_copies_several_times_where_waiting_takes_long(known, monkeypatch):
    copied = []
    monkeypatch.setattr(peaks, "COPIES", {"cpu": 3})
    monkeypatch.setattr(torch.Tensor, "copy_", lambda answer, source: copied.append(source.nbytes))
    peaks.copy_call(torch.device("cpu"), 4096)()
    assert copied == [4096] * 3
    known(fp32_8x8x8=[1.0], fp32_16x16x16=[1.0], fp32_64x9x1=[1.0], copy_of_memory=[2.0])
    assert measure(threads=1, rounds=1)[-1].values == pytest.approx([3 * 2 * 4096 / 2e-3 / 1e9])


@pytest.mark.parametrize(
    ("capability", "kinds"), [((8, 0), ("fp32", "tf32", "fp16", "bf16")), ((7, 5), ("fp32", "tf32", "fp16"))]
)
def test_precisions_of_a_gpu(monkeypatch, capability, kinds):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda target: capability)
    assert peaks.precisions_of(torch.device("cuda", 1)) == kinds


def test_it_really_multiplies_and_copies_with_the_threads_asked_for(monkeypatch):
    seen = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *given, out: seen.append(torch.get_num_threads()) or mm(*given, out=out))
    found = measure(threads=3, rounds=5)
    assert set(seen) == {3}
    assert len(seen) >= 2 * 3 * 5
    assert all(min(one.values) > 0 and len(one.values) == 5 for one in found)


def of(device, precision, contestant="matrix product", values=(1.0,)):
    settings = {"device": device, "precision": precision}
    return Measurement(part="peak", contestant=contestant, settings=settings, unit="GFLOP/s", values=values)


def test_the_peak_of_a_device_and_precision_is_its_best_round():
    cpu, gpu = of("cpu", "fp32", values=(3.0, 5.0, 4.0)), of("cuda:0", "tf32", values=(7.0,))
    known = [of("cpu", "fp32", "copy of memory"), cpu, gpu]
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
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
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
    assert peaks.copied_bytes(torch.device("cpu")) == copied
    assert peaks.copied_bytes(torch.device("cuda")) == 4096
