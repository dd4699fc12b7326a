"""Steps in processes of their own: those that hang, crash, fail or write nonsense cost only themselves."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import wait_until

from benchmarks.gpu_run import processes
from benchmarks.gpu_run.findings import Finding
from benchmarks.gpu_run.processes import run_step, variables

STEPS = """
import os, signal, subprocess, sys, time
from benchmarks.gpu_run.findings import Finding
FIRST = Finding.measured("first", {"a": 1})
def passes(context):
    yield FIRST
    yield Finding.skipped("second", "nothing to do")
def skips(context):
    yield Finding.skipped("second", "nothing to do")
def fails(context):
    yield FIRST
    yield Finding.verdict("answer", False, "off by 1")
    yield Finding.verdict("other", False, "off by 2")
def raises(context):
    yield FIRST
    raise ValueError("no such thing")
def finds_nothing(context):
    yield from ()
def crashes(context):
    yield FIRST
    print("\\x1b[0;93mabout to crash\\x1b[m", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
def exits(context):
    yield FIRST
    print("a library ends the process", flush=True)
    os._exit(7)
def hangs(context):
    yield FIRST
    print("waiting", flush=True)
    time.sleep(60)
def hangs_for_good(context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield from hangs(context)
def leaves_a_process(context):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield Finding.measured("child", {"pid": child.pid})
def nonsense(context):
    yield FIRST
    with open(sys.argv[2], "a") as file:
        file.write("Segmentation fault\\n")
    print(b"\\xff\\xfe".decode("latin-1"), flush=True)
"""

FIRST = Finding.measured("first", {"a": 1})


@pytest.fixture
def run(tmp_path, context, monkeypatch):
    """Run a function of `STEPS` as a step."""
    (tmp_path / "some_steps.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(name, limit_s=30):
        environment = variables(for_pytorch=False, is_stand_in=False)
        return run_step(name, "title", context, environment, limit_s, f"some_steps:{name}")

    return run


def test_a_step_passes_with_its_findings(run):
    outcome = run("passes")
    assert (outcome.end, outcome.text) == ("passed", "")
    assert outcome.findings == (FIRST, Finding.skipped("second", "nothing to do"))


@pytest.mark.parametrize(
    ("name", "end", "text"),
    [
        ("skips", "skipped", "nothing to do"),
        ("fails", "failed", "answer: off by 1 (and 1 more)"),
        ("raises", "failed", "the step itself: ValueError: no such thing"),
        ("finds_nothing", "failed", "ended without any finding"),
        ("crashes", "crashed", "was killed by signal 11; last output: about to crash"),
        ("exits", "failed", "ended with status 7 (a library ends the process)"),
        (
            "nonsense",
            "failed",
            "nonsense: 1 lines of its findings cannot be read; see nonsense.log",
        ),
    ],
)
def test_the_end_of_a_step_is_told(run, name, end, text):
    outcome = run(name)
    assert (outcome.end, outcome.text) == (end, text)
    assert name in ("skips", "finds_nothing") or outcome.findings[0] == FIRST


@pytest.mark.timing
@pytest.mark.parametrize("name", ["hangs", "hangs_for_good"])
def test_a_step_that_hangs_is_ended_and_keeps_its_findings(run, name, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    outcome = run(name, limit_s=3)
    text = "took longer than 3 s and was ended after 1 findings, the last about first; last output: waiting"
    assert (outcome.end, outcome.text, outcome.findings) == ("timed out", text, (FIRST,))
    assert 3 <= outcome.seconds < 10


@pytest.mark.timing
def test_processes_that_a_step_leaves_are_ended(run):
    pid = run("leaves_a_process").findings[0].figures["pid"]

    def is_gone():
        with suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return True

    wait_until(is_gone)


def test_an_interrupted_run_ends_its_step(run, context, monkeypatch):
    def interrupted(process, limit_s):
        wait_until(lambda: (context.out / "steps" / "hangs.jsonl").exists())
        processes_seen.append(process)
        raise KeyboardInterrupt

    processes_seen = []
    monkeypatch.setattr(processes, "wait_or_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("hangs")
    assert processes_seen[0].wait(10) == -signal.SIGKILL


def test_the_output_of_a_step_is_kept(run, context):
    run("raises")
    log = (context.out / "steps" / "raises.log").read_text()
    assert log.startswith("measured: first  {'a': 1}\n")
    assert log.rstrip().endswith("ValueError: no such thing")


def test_pytorch_runs_without_the_stand_in(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "libcuda.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", "stand-in")
    found = variables(for_pytorch=True, is_stand_in=True)
    assert "LD_PRELOAD" not in found and "LD_LIBRARY_PATH" not in found
    for others in ({"for_pytorch": False, "is_stand_in": True}, {"for_pytorch": True, "is_stand_in": False}):
        assert variables(**others)["LD_PRELOAD"] == "libcuda.so.1"
    assert variables(for_pytorch=True, is_stand_in=True)["PATH"] == os.environ["PATH"]


def test_a_context_travels_to_another_process(context):
    assert processes.StepContext.from_json(context.to_json()) == context
    assert 50 < context.left < 61
    assert abs(context.ends - time.time() - context.left) < 1
