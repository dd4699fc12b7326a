import pytest

from benchmarks.measuring import subprocesses as module
from benchmarks.measuring.subprocesses import available_megabytes, memory_unavailable_reason, run_script
from runtime.errors import DeviceError


def test_a_script_gets_its_arguments_and_gives_what_it_prints():
    assert run_script("import sys; print(sys.argv[1:])", "a b", 2) == "['a b', '2']\n"


def test_packages_are_those_of_this_checkout_and_not_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "benchmarks.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert run_script("import benchmarks; print(benchmarks.__file__)").strip() == str(
        module.ROOT / "benchmarks/__init__.py"
    )


def test_a_script_writes_bytecode_as_an_installed_package_has_it(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert run_script("import sys; print(sys.dont_write_bytecode)") == "False\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise ValueError('no such\\nthing')", "ended with status 1 (thing)"),
        ("raise SystemExit(3)", "ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9, most likely because it ran out of memory"),
    ],
)
def test_a_process_that_fails_is_one_line(script, reason):
    with pytest.raises(DeviceError) as caught:
        run_script(script)
    assert str(caught.value) == f"a fresh process: {reason}"


def test_a_process_that_takes_too_long_is_ended():
    with pytest.raises(DeviceError) as caught:
        run_script("import time; time.sleep(600)", limit_s=0.5)
    reason = "took longer than 0.5 s and was ended; measure less of it, or on an idle machine"
    assert str(caught.value) == f"a fresh process: {reason}"


def test_free_memory_is_the_kernels_estimate_or_what_a_container_has_left(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    assert available_megabytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable:    2000000 kB\n")
    assert available_megabytes() == 2048.0
    (tmp_path / "memory.current").write_text("400000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_megabytes() == 2048.0
    (tmp_path / "memory.max").write_text("1000000000\n")
    assert available_megabytes() == 600.0


def test_where_the_kernel_does_not_tell_memory_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STATUS", tmp_path / "none")
    assert memory_unavailable_reason() == "needs Linux, whose /proc tells a process's memory"
