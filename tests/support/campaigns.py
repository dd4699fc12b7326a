"""Campaigns: thousands of damaged inputs, drawn by seed, and a count of what became of each.

An area of a campaign is a function that makes one case from a random generator, tries it and returns what happened in
a few words, such as "refused: ImageError". It raises an AssertionError for a wrong answer. Any other exception that
escapes, and any case slower than the limit, is a fault too. A fault is told with the number of its case, by which
`--campaign-case` runs it again on its own.
"""

import json
import os
import statistics
import time
import traceback
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SLOWEST = 5.0
"""Seconds of the processor that a case of at most 10 MB may take."""

SOAK = "soak.txt"
"""Name of the soak's figures in a folder of tallies."""

LONG_SOAK = 3_000.0
"""Seconds from which a soak is a long one."""

THIN_RUN = {
    "widths": (4,),
    "height": 16,
    "width": 16,
    "lr": 1e-3,
    "workers": 0,
    "tensorboard": False,
    "device": "cpu",
    "augment": "off",
    "cache_gb": 0,
}
"""Settings of a training that takes milliseconds, for `TrainConfig`."""

TOLD = 5
"""Number of faults that a failed test tells of."""


@dataclass
class Tally:
    """Counts the cases of one area by outcome, and keeps its faults and the processor's seconds of the slowest case."""

    area: str
    seed: int
    cases: int = 0
    outcomes: Counter = field(default_factory=Counter)
    faults: list = field(default_factory=list)
    slowest: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Campaign:
    """A run of all areas: its seed, the seconds for all of them, the only case to try, and a folder for tallies."""

    seed: int
    seconds: float
    case: int | None = None
    folder: Path | None = None

    def run(self, area, attempt, *, share, slowest=SLOWEST, most=10**9, clock=None):
        """Try cases until the area's `share` (a fraction) of the seconds is used, `most` cases at most.

        `clock` returns the processor's seconds used so far, by default `cpu_seconds`.

        Raises:
            AssertionError: a case had a fault.
        """
        tally, begun = Tally(area, self.seed), time.monotonic()
        number = self.case or 0
        while True:
            self._try(tally, number, attempt, slowest, clock or cpu_seconds)
            number += 1
            tally.seconds = time.monotonic() - begun
            if self.case is not None or tally.cases >= most or tally.seconds >= share * self.seconds:
                break
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{area}.json").write_text(json.dumps(vars(tally), indent=1) + "\n")
        told = "\n".join(f"case {number}: {what}" for number, what in tally.faults[:TOLD])
        assert not tally.faults, f"{len(tally.faults)} faults in {tally.cases} cases of {area}:\n{told}"
        return tally

    def random(self, area, number):
        """The generator of one case, which depends on nothing but the seed, the area and the number."""
        return np.random.default_rng([self.seed, zlib.crc32(area.encode()), number])

    def _try(self, tally, number, attempt, slowest, clock):
        begun = clock()
        try:
            outcome = attempt(self.random(tally.area, number))
        except Exception as error:  # whatever it is, it has to be told with the case that brought it out
            outcome = "wrong" if isinstance(error, AssertionError) else f"escaped: {type(error).__name__}"
            tally.faults.append((number, "".join(traceback.format_exception(error)[-2:]).strip()[:1_000]))
        seconds = clock() - begun
        if seconds > slowest:
            tally.faults.append((number, f"took {seconds:.1f} s, expected at most {slowest:g}; {outcome}"))
        tally.cases += 1
        tally.outcomes[outcome] += 1
        tally.slowest = max(tally.slowest, seconds)


def cpu_seconds():
    """The processor's seconds of this process and of its children that have ended: not those of a busy machine."""
    times = os.times()
    return sum(times[:4])


def table(folder):
    """The tallies of a folder as a Markdown table, and the soak below it."""
    lines = [
        "| area | cases | what became of them | faults | slowest, processor seconds |",
        "|---|--:|---|--:|--:|",
    ]
    for path in sorted(Path(folder).glob("*.json")):
        tally = json.loads(path.read_text())
        outcomes = sorted(tally["outcomes"].items(), key=lambda item: (-item[1], item[0]))
        told = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes)
        lines.append(
            f"| {tally['area']} | {tally['cases']:,} | {told} | {len(tally['faults'])} | {tally['slowest']:.2f} |"
        )
    soak = Path(folder, SOAK)
    if soak.exists():
        found = json.loads(soak.read_text())
        early, late = early_and_late(found)
        lines += [
            "",
            f"Soak: {found['threads']} threads for {found['seconds']:,.0f} s, {found['answers']:,} answers, "
            f"{len(found['wrong'])} of them wrong. Memory: {found['start']:.0f} MB before the model was opened, "
            f"{early:.0f} MB early on, {late:.0f} MB at the end, {found['closed']:.0f} MB after it was closed.",
        ]
    return "\n".join(lines) + "\n"


def early_and_late(soak):
    """The median memory of a soak in MB, when it has warmed up and at its end: minutes 5 to 10 and 55 to 60 of an hour.

    A short run has hardly warmed up at its twelfth part: there it is the third to the half, and the last sixth.
    """
    memory, part = soak["memory"], len(soak["memory"]) // 12
    if soak["seconds"] >= LONG_SOAK:
        return statistics.median(memory[part : 2 * part]), statistics.median(memory[-part:])
    return statistics.median(memory[4 * part : 6 * part]), statistics.median(memory[-2 * part :])
