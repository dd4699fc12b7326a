import hashlib
import subprocess

import numpy as np
import pytest
from onnx_files import write_onnx

from benchmarks.measuring import environment
from benchmarks.results import Results

CPU = "processor\t: 0\nmodel name\t: Abacus 3: fast\nflags\t\t: fpu avx2 sse avx512_vnni avx\n\nprocessor\t: 1\n"


@pytest.fixture
def git(tmp_path, monkeypatch):
    """A checkout with one commit; returns what runs git in it."""
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "PACKAGES", ("runtime",))
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "one.py").write_text("1\n")

    def run(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    run("init", "-q")
    run("add", "-A")
    run("commit", "-qm", "one")
    return run


def test_it_names_model_and_versions_and_can_be_written(tmp_path):
    model = tmp_path / "thin.onnx"
    card = write_onnx(model)
    found = environment.environment(model)
    assert found["model"] == "thin.onnx"
    assert found["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert found["model_mb"] == pytest.approx(model.stat().st_size / 1e6, abs=5e-4)
    assert found["card"] == card.name
    assert found["network"] == "U-Net of widths 4,8, 48x32, 1 class"
    assert found["versions"]["numpy"] == np.__version__
    assert found["cpu"]
    results = Results(environment=found, method={}, disturbance=None, measurements=())
    assert Results.read(results.write(tmp_path)) == results


def test_the_processor_is_named_with_the_flags_that_matter(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(CPU)
    monkeypatch.setattr(environment, "CPU_INFORMATION", tmp_path / "cpuinfo")
    assert environment.cpu_name() == "Abacus 3: fast"
    assert environment.cpu_flags() == "avx avx2 avx512_vnni"


def test_where_the_system_does_not_tell_no_flags_are_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CPU_INFORMATION", tmp_path / "none")
    assert environment.cpu_flags() is None
    assert environment.cpu_name()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory.max", "5000000000\n", 5000),
        ("memory.max", "max\n", 8192),
        ("memory/memory.limit_in_bytes", "3e9\n", 8192),
    ],
)
def test_memory_is_the_machines_or_its_containers(tmp_path, monkeypatch, name, text, expected):
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    monkeypatch.setattr(environment.os, "sysconf", {"SC_PHYS_PAGES": 2_000_000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert environment.memory_mb() == expected


def test_gpus_are_named_with_driver_and_memory(monkeypatch):
    two = [{"name": "A", "memory_bytes": 24 * 10**9, "free_bytes": 1}, {"name": "B", "memory_bytes": None}]
    monkeypatch.setattr(environment, "gpus", lambda: {"driver": "580.1", "gpus": two})
    assert environment.gpu_summary() == {"gpu": "A, B", "gpu_memory_mb": 24_000, "driver": "580.1"}


def test_a_driver_that_does_not_answer_is_no_gpu(monkeypatch):
    def broken():
        raise OSError("NVML error 18")

    monkeypatch.setattr(environment, "gpus", broken)
    assert environment.gpu_summary() == {"gpu": None, "gpu_memory_mb": None, "driver": None}


def test_the_commit_is_clean_until_a_package_changes(git, tmp_path):
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "results.json").write_text("{}")
    assert environment.commit() == {"git_commit": head, "git_dirty": False}
    (tmp_path / "runtime" / "two.py").write_text("2\n")
    assert environment.commit() == {"git_commit": head, "git_dirty": True}


def test_what_is_installed_within_another_repository_has_no_commit(git, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path / "runtime")
    assert environment.commit() == {"git_commit": None, "git_dirty": None}


def test_without_git_no_commit_is_claimed(git, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.commit() == {"git_commit": None, "git_dirty": None}


def test_busy_cores_are_the_share_of_ticks_that_is_neither_idle_nor_waiting(tmp_path, monkeypatch):
    statistics = tmp_path / "stat"
    others = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu1 9 9 9 9 9 9 9 9 9 9\n"
    statistics.write_text(others + "cpu0 60 0 50 500 50 0 0 0 0 0\ncpu2 40 0 0 300 0 0 0 0 0 0\nintr 7\n")
    monkeypatch.setattr(environment, "STATISTICS", statistics)
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: {0, 2})
    later = others + "cpu0 90 0 60 510 90 0 0 0 0 0\ncpu2 40 0 0 310 0 0 0 0 0 0\nintr 8\n"
    moments = iter([None, later])
    monkeypatch.setattr(environment.time, "sleep", lambda _: (text := next(moments)) and statistics.write_text(text))
    assert environment.busy_cores() == pytest.approx(2 * 40 / 100)


def test_where_the_system_does_not_tell_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "STATISTICS", tmp_path / "none")
    assert environment.busy_cores(0.0) is None
    assert environment.disturbance(None, None) is None


@pytest.mark.parametrize(
    ("before", "after", "words"), [(0.2, 0.1, None), (0.2, 1.2, "1.2 of 2 cores"), (0.9, None, "0.9 of 2 cores")]
)
def test_what_disturbs_before_or_after_is_told(monkeypatch, before, after, words):
    monkeypatch.setattr(environment, "available_threads", lambda: 2)
    found = environment.disturbance(before, after)
    assert found is None if words is None else words in found
