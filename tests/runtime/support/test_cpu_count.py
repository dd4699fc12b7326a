"""The number of threads that are started, by the scheduler's affinity and by the quota of made-up cgroups."""

import os
from pathlib import Path

import pytest

from runtime.support import cpu_count


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n", "cpu.max": "max"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "150000 100000"}, 0.5),
        ("0::/not/here\n", {"cpu.max": "400000 100000"}, 4.0),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        (
            "5:memory:/x\n4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
        ("0:cpu\nnonsense\n\n", {"cpu.max": "100000 0"}, None),
    ],
)
def test_quota_is_the_least_of_all_groups_above(tmp_path, groups, files, quota):
    (tmp_path / "own").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpu_count.cpu_quota(tmp_path / "cgroup", tmp_path / "own") == quota


@pytest.mark.parametrize(
    ("allowed", "limit", "threads"),
    [(64, None, 64), (64, 2.0, 2), (64, 2.1, 3), (64, 0.2, 1), (2, 2.5, 2), (3, 100.0, 3)],
)
def test_threads_are_the_affinity_or_the_quota_rounded_up(monkeypatch, quota, allowed, limit, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(allowed)), raising=False)
    quota(limit)
    assert cpu_count.available_threads() == threads


def test_a_system_without_affinity_has_the_cores_of_the_machine(monkeypatch, quota):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    quota(None)
    assert cpu_count.available_threads() == 64


def test_the_quota_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(cpu_count, "cpu_quota", lambda: read.append(1) or 1.0)
    cpu_count.own_quota.cache_clear()
    try:
        assert [cpu_count.available_threads() for _ in range(3)] == [1, 1, 1]
    finally:
        cpu_count.own_quota.cache_clear()
    assert read == [1]


def test_files_of_the_system_are_read_as_far_as_they_can_be(tmp_path):
    (tmp_path / "file").write_bytes(b" 12\xff\n")
    assert cpu_count.text_of(tmp_path / "file") == "12\ufffd"
    assert cpu_count.text_of(tmp_path) == cpu_count.text_of(Path("/nowhere")) == ""


@pytest.mark.parametrize(
    ("flags", "has"),
    [("fma avx512_vnni x", True), ("avx_vnni", True), ("avx2 avx512f", False), ("avx_vnni_int8", False)],
)
def test_cpus_that_multiply_integers(monkeypatch, flags, has):
    monkeypatch.setattr(cpu_count, "text_of", lambda path: f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t: y\n")
    assert cpu_count.has_vnni() == has


@pytest.mark.parametrize(
    ("vendor", "flags", "bf16", "avx512"),
    [
        ("GenuineIntel", "avx512bw avx512_bf16 amx_bf16", True, True),
        ("GenuineIntel", "avx512bw avx512_bf16", False, True),
        ("AuthenticAMD", "avx512bw avx512_bf16", True, True),
        ("AuthenticAMD", "avx512bw avx512_vnni", False, True),
        ("AuthenticAMD", "avx2 avx512_bf16x", False, False),
    ],
)
def test_cpus_that_are_faster_in_bf16_and_those_that_can_compute_it(monkeypatch, vendor, flags, bf16, avx512):
    """Intel's AVX512-BF16 without AMX is slower than float32."""
    known = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\nbugs\t: y\n"
    monkeypatch.setattr(cpu_count, "text_of", lambda path: known)
    assert (cpu_count.has_bf16(), cpu_count.has_avx512()) == (bf16, avx512)
    monkeypatch.setattr(cpu_count, "text_of", lambda path: "")
    assert not cpu_count.has_bf16() and not cpu_count.has_avx512()
