"""One step in a process of its own: it may hang, crash or write nonsense, and the run goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu_run.findings import End, Finding, Outcome, read_findings
from benchmarks.measuring.subprocesses import environment_variables, exit_reason
from runtime.errors import one_line

GRACE_S = 5.0
"""Seconds between asking a process to end and killing it, and again until it is left behind."""

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Colours of a terminal, in which ONNX Runtime prints its warnings."""

STAND_IN = "stand-in"
"""Part of the device's name by which a stand-in for a GPU is known."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Everything that a step may use.

    Attributes:
        out: folder of the run. Models lie in `out`/models, logs in `out`/steps.
        data: a folder with CamVid's images and labels, if one was given.
        checkpoint: the checkpoint to take instead of training one, if one was given.
        is_stand_in: True if answers and times mean nothing here.
        ends: the step has to end by this time of `time.time`.
    """

    out: Path
    data: Path | None
    checkpoint: Path | None
    is_stand_in: bool
    ends: float

    @property
    def left(self) -> float:
        """Seconds that are left to the step."""
        return self.ends - time.time()

    def model(self, precision: str) -> Path:
        """Return the path of the exported file in a precision."""
        return self.out / "models" / f"{precision}.onnx"

    def to_json(self) -> str:
        """Write the context for another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "StepContext":
        """Read the context that `to_json` wrote."""
        found = json.loads(text)
        for name in ("out", "data", "checkpoint"):
            found[name] = None if found[name] is None else Path(found[name])
        return cls(**found)


def variables(*, for_pytorch: bool, is_stand_in: bool) -> dict[str, str]:
    """Return the environment variables of a process.

    A stand-in lacks functions that PyTorch needs to be imported, so PyTorch's processes run without it.
    """
    found = environment_variables() | {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONUNBUFFERED": "1"}
    if for_pytorch and is_stand_in:
        found = {name: value for name, value in found.items() if name not in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
    return found


def run_step(
    name: str, title: str, context: StepContext, environment: Mapping[str, str], limit_s: float, function: str
) -> Outcome:
    """Run a step's function, "module:function", in a fresh process for at most `limit_s` seconds."""
    folder = context.out / "steps"
    lines, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    lines.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "benchmarks.gpu_run.child", function, str(lines), context.to_json()]
    started = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            code = wait_or_end(process, limit_s)
        finally:
            end_group(process, signal.SIGKILL)  # what the step started, too
    seconds = time.monotonic() - started
    findings, strange = read_findings(lines)
    if strange:
        text = f"{strange} lines of its findings cannot be read; see {log.name}"
        findings += (Finding(subject=name, state="failed", text=text),)
    end, text = judged(code, findings, limit_s, last_line(log))
    return Outcome(
        step=name, title=title, end=end, text=text, seconds=round(seconds, 1), limit_s=limit_s, findings=findings
    )


def wait_or_end(process: "subprocess.Popen[bytes]", limit_s: float) -> int | None:
    """Wait for a process and return its exit status; None if it took too long and was ended, or could not be."""
    for patience, order in ((limit_s, signal.SIGTERM), (GRACE_S, signal.SIGKILL), (GRACE_S, None)):
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            if order is not None:
                end_group(process, order)
            continue
        return code if patience == limit_s and order is signal.SIGTERM else None
    return None


def end_group(process: "subprocess.Popen[bytes]", order: signal.Signals) -> None:
    """Send a signal to a process and all that it started and that stayed in its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, order)


def judged(code: int | None, findings: tuple[Finding, ...], limit_s: float, last: str) -> tuple[End, str]:
    """Return how a step ended, and why in one line, from its exit status, its findings and its last line of output."""
    if code is None:
        done = f"after {len(findings)} findings, the last about {findings[-1].subject}" if findings else "with nothing"
        return "timed out", f"took longer than {limit_s:.0f} s and was ended {done}; last output: {last or 'none'}"
    if code < 0:
        return "crashed", f"{exit_reason(code, '').partition(',')[0]}; last output: {last or 'none'}"
    bad = [one for one in findings if one.state == "failed"]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        return "failed", f"{bad[0].subject}: {bad[0].text}{more}"
    if code:
        return "failed", exit_reason(code, last)
    if findings and all(one.state == "skipped" for one in findings):
        return "skipped", findings[0].text
    return ("passed", "") if findings else ("failed", "ended without any finding")


def last_line(log: Path) -> str:
    """Return the last line that a process printed, if any."""
    lines = log.read_bytes()[-20_000:].decode(errors="replace").strip().splitlines()
    return one_line(COLOURS.sub("", lines[-1]))[:300] if lines else ""
