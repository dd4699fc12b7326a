"""The project's tests that need a GPU, where they are beside the packages."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from xml.etree import ElementTree

from benchmarks.gpu_run.findings import Finding
from benchmarks.gpu_run.processes import StepContext, variables
from benchmarks.measuring.subprocesses import ROOT
from runtime.errors import one_line

FOLDER = ROOT / "tests" / "runtime"
"""The folder of all tests with the marks gpu and tensorrt."""

SUBJECT = "pytest -m gpu"


def run(context: StepContext) -> Iterator[Finding]:
    """Run the tests, and tell of each one that did not pass; warnings of new libraries are no failures."""
    if not FOLDER.is_dir() or find_spec("pytest") is None:
        yield Finding.skipped(SUBJECT, "needs the tests of a checkout and pytest; neither is part of an installation")
        return
    results = context.out / "steps" / "tests.xml"
    options = ["-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={results}", str(FOLDER)]
    environment = variables(for_pytorch=False, is_stand_in=context.is_stand_in)
    subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=max(1.0, context.left - 2))
    yield from findings_in(results.read_text())


def findings_in(text: str) -> Iterator[Finding]:
    """Read pytest's results in JUnit's form: one finding for each test."""
    for case in ElementTree.fromstring(text).iter("testcase"):
        subject = f"{case.get('classname')}::{case.get('name')}"
        bad = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        if bad is None:
            yield Finding.verdict(subject, True)
        elif bad.tag == "skipped":
            yield Finding.skipped(subject, one_line(bad.get("message") or ""))
        else:
            yield Finding.verdict(subject, False, one_line(bad.get("message") or bad.text or "")[:500])
