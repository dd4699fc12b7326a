"""Records of a first run: what a step found out, how a step ended, and the whole run as one file, `report.json`.

A step appends its findings to a file, one line of JSON each, as soon as it has them. So a step that crashes or hangs
loses only what it was about to find out.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from runtime.errors import ConfigError, one_line
from runtime.support.files import write_text

SCHEMA = 1
MAX_TEXT = 2_000

State = Literal["passed", "failed", "skipped", "measured", "ran"]
"""A check that passed or failed, one that could not be made, figures without a verdict, a run of no known answer."""

End = Literal["passed", "failed", "skipped", "timed out", "crashed", "not reached"]
"""The ways in which a step ends."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a step found out.

    Attributes:
        subject: what was looked at, "fp16, TF32 on, 2x160x240".
        state: one of `State`.
        text: one line for people: the message of a failure, the reason why it was skipped, what was found.
        figures: figures by their name, with the unit in the name: "max_abs_error", "median_ms".
    """

    subject: str
    state: State
    text: str = ""
    figures: Mapping[str, Scalar] = field(default_factory=dict)

    @classmethod
    def verdict(
        cls, subject: str, passed: bool, text: str = "", figures: Mapping[str, Scalar] | None = None
    ) -> "Finding":
        """Make the finding of a check that passed or failed."""
        return cls(subject=subject, state="passed" if passed else "failed", text=text, figures=figures or {})

    @classmethod
    def measured(cls, subject: str, figures: Mapping[str, Scalar], text: str = "") -> "Finding":
        """Make a finding of figures without a verdict."""
        return cls(subject=subject, state="measured", text=text, figures=figures)

    @classmethod
    def skipped(cls, subject: str, reason: str) -> "Finding":
        """Make the finding of a check that could not be made."""
        return cls(subject=subject, state="skipped", text=reason)

    @classmethod
    def failure(cls, subject: str, error: BaseException) -> "Finding":
        """Make the finding of an error, with its class and its message."""
        return cls(subject=subject, state="failed", text=f"{type(error).__name__}: {one_line(str(error))}")

    @classmethod
    def read(cls, line: str) -> "Finding":
        """Read a line that `append` wrote.

        Raises:
            ValueError: it is something else.
        """
        return cls.made(json.loads(line))

    @classmethod
    def made(cls, found: Any) -> "Finding":
        """Make a finding of decoded JSON.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(found, dict) or set(found) != {"subject", "state", "text", "figures"}:
            raise ValueError("not a finding")
        texts, figures = (found["subject"], found["state"], found["text"]), found["figures"]
        if not all(isinstance(one, str) for one in texts) or found["state"] not in get_args(State):
            raise ValueError("not a finding")
        if not isinstance(figures, dict) or not all(one is None or isinstance(one, Scalar) for one in figures.values()):
            raise ValueError("not a finding")
        return cls(**found)

    def append(self, path: Path) -> None:
        """Append this finding to a file as one line, at once; figures that are not finite become texts."""
        figures = {name: plain(value) for name, value in self.figures.items()}
        record = {**asdict(self), "subject": self.subject[:MAX_TEXT], "text": self.text[:MAX_TEXT], "figures": figures}
        with open(path, "a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")


def plain(value: Any) -> Scalar:
    """Return a figure as JSON has it: NumPy's numbers as Python's, and what is not finite as a text."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else one_line(str(value))


def read_findings(path: Path) -> tuple[tuple[Finding, ...], int]:
    """Read a step's findings, and count the lines that are none; a missing file has none of either."""
    if not path.exists():
        return (), 0
    found, strange = list[Finding](), 0
    for line in path.read_bytes().decode(errors="replace").splitlines():
        try:
            found.append(Finding.read(line))
        except (ValueError, RecursionError):
            strange += 1
    return tuple(found), strange


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a step.

    Attributes:
        step, title: the step's name, and what it finds out.
        end: one of `End`.
        text: one line: why it failed, was skipped or not reached.
        seconds: time that it took.
        limit_s: time that it might take, in seconds.
        findings: what it found out, in order.
    """

    step: str
    title: str
    end: End
    text: str = ""
    seconds: float = 0.0
    limit_s: float = 0.0
    findings: tuple[Finding, ...] = ()

    @property
    def is_bad(self) -> bool:
        """True if the step shows a fault."""
        return self.end in ("failed", "timed out", "crashed")

    @classmethod
    def made(cls, found: Any) -> "Outcome":
        """Make an outcome of decoded JSON.

        Raises:
            ValueError, TypeError, LookupError: it is something else.
        """
        return cls(**{**found, "findings": tuple(map(Finding.made, found["findings"]))})

    def of(self, subject: str) -> Finding | None:
        """Return the finding about a subject; None if there is none."""
        return next((one for one in self.findings if one.subject == subject), None)


@dataclass(frozen=True, kw_only=True)
class GpuRun:
    """A first run, as far as it has come.

    Attributes:
        device: name of the GPU, as its driver tells it; None if no driver answers.
        is_stand_in: True if the device only stands in for a GPU, so that answers and times mean nothing.
        seconds: the whole time of the run, and `started` its beginning, UTC.
        outcomes: the steps that have ended, or will not begin.
    """

    device: str | None
    is_stand_in: bool
    started: str
    seconds: float
    outcomes: tuple[Outcome, ...]
    schema: int = SCHEMA

    def of(self, step: str) -> Outcome | None:
        """Return the outcome of a step; None if there is none yet."""
        return next((one for one in self.outcomes if one.step == step), None)

    @staticmethod
    def read_outcomes(path: Path) -> tuple[Outcome, ...]:
        """Read the outcomes of a `report.json`.

        Raises:
            ConfigError: it is damaged, or of another version.
        """
        try:
            record = json.loads(path.read_bytes())
            if record["schema"] != SCHEMA:
                raise ValueError(f"its schema is {record['schema']}, expected {SCHEMA}")
            return tuple(map(Outcome.made, record["outcomes"]))
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({one_line(str(error))}); give another folder to --out"
            ) from error

    def write(self, folder: str | os.PathLike[str], goals: object) -> None:
        """Write `report.json`, whole or not at all; `goals` are added to it as they are."""
        record = {**asdict(self), "goals": goals}
        write_text(Path(folder) / "report.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
