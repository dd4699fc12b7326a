import numpy as np
import pytest
import torch
from devices import CPU, GPU, TRT

from benchmarks import peaks, timing
from benchmarks.peaks import measure, peak_of
from benchmarks.results import Measurement
from runtime.providers import Device


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(peaks, "SIDES", {"cpu": (8, 16), "cuda": (32,)})
    monkeypatch.setattr(peaks, "COPIED", 4096)
    monkeypatch.setattr(peaks, "CPUS", tmp_path)


def test_a_product_has_two_operations_a_multiply_add_and_a_copy_reads_and_writes(monkeypatch):
    """At 2 ms and 4 ms a call the larger product wins: 2 x 16^3 operations; the copy moves 2 x 4096 bytes in 1 ms."""
    budgets = []
    taken = {"fp32 8": 2.0, "fp32 16": 4.0, "copy of 4096": 1.0}
    monkeypatch.setattr(
        peaks,
        "interleave",
        lambda calls, rounds, *, budget_s: (
            budgets.append(budget_s) or {name: np.full(rounds, taken[name]) for name in calls}
        ),
    )
    product, copy = measure(threads=1, rounds=5, budget_s=9.0)
    assert budgets == [9.0]
    assert (product.contestant, product.unit, product.facts) == ("matrix product", "GFLOP/s", {"side": 16})
    assert product.values == pytest.approx([2 * 16**3 / 4e-3 / 1e9] * 5)
    assert product.settings == {"device": "cpu", "threads": 1, "precision": "fp32"}
    assert (copy.contestant, copy.unit, copy.facts) == ("copy of memory", "GB/s", {"bytes": 4096})
    assert copy.values == pytest.approx([2 * 4096 / 1e-3 / 1e9] * 5)
    assert copy.settings == {"device": "cpu", "threads": 1}
    assert product.group == copy.group == "peak cpu"


def test_it_really_multiplies_and_copies_with_the_threads_asked_for(monkeypatch):
    seen = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *given, out: seen.append(torch.get_num_threads()) or mm(*given, out=out))
    found = measure(threads=3, rounds=5)
    assert set(seen) == {3}
    assert len(seen) >= 2 * 2 * 5
    assert all(min(one.values) > 0 and len(one.values) == 5 for one in found)


def of(device, precision, contestant="matrix product"):
    settings = {"device": device, "precision": precision}
    return Measurement(part="peak", contestant=contestant, settings=settings, unit="GFLOP/s", values=(1.0,))


def test_the_peak_of_a_device_and_precision():
    cpu, gpu = of("cpu", "fp32"), of("cuda:0", "tf32")
    known = [of("cpu", "fp32", "copy of memory"), cpu, gpu]
    assert peak_of(known, CPU, "fp32") is cpu
    assert peak_of(known, GPU, "tf32") is peak_of(known, TRT, "tf32") is gpu
    assert peak_of(known, GPU, "fp32") is peak_of(known, CPU, "int8") is None
    assert peak_of(known, Device(kind="cuda", index=1), "tf32") is None


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
    assert peaks._copied(torch.device("cpu")) == copied
    assert peaks._copied(torch.device("cuda")) == 4096
