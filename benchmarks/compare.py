"""Two runs of the same benchmarks: what became slower or faster, and whether that is more than noise.

A machine's speed differs from day to day by more than its rounds differ within a run. So a run can be compared relative
to one of its own contestants: what PyTorch, say, takes on the same machine in the same minutes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.results import LOWER, UNITS, Environment, Measurement, Ratio, Results, ratio_of_medians
from benchmarks.tables import cell, in_unit, percent_of, shown_ratio, shown_settings, table
from runtime.errors import ConfigError

WORK = ("batch", "height", "width", "images")
"""Settings that a measurement and what it is relative to have in common."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measurement of two runs; `ratio` is new over old, relative to a contestant of each run if that was asked."""

    old: Measurement
    new: Measurement
    ratio: Ratio

    @property
    def worse_percent(self) -> float:
        """By how much the new one is worse: 10 is a tenth more time, or a tenth less speed; negative is better."""
        if UNITS[self.new.unit] == LOWER:
            return 100 * (self.ratio.median - 1)
        return 100 * (1 / self.ratio.median - 1) if self.ratio.median else math.inf


def compare(old: Results, new: Results, *, relative_to: str | None = None) -> list[Comparison]:
    """What both runs measured, in the order of the new one.

    With `relative_to` each is divided by that contestant's values of its own run first, and only what was measured in
    turns with it is compared.

    Raises:
        ConfigError: the runs have nothing in common, or nothing that was measured in turns with `relative_to`.
    """
    before = {one.key: one for one in old.measurements}
    pairs = [(before[one.key], one) for one in new.measurements if one.key in before]
    if not pairs:
        raise ConfigError("old and new results: have no measurement in common, expected some with the same settings")
    if relative_to is None:
        return [Comparison(old=one, new=other, ratio=_ratio(one, other)) for one, other in pairs]
    found = []
    for one, other in pairs:
        reference = _reference(pairs, one, other, relative_to)
        if reference is not None and reference[0] is not one:
            ratio = _ratio_of_ratios((one, reference[0]), (other, reference[1]))
            found.append(Comparison(old=one, new=other, ratio=ratio))
    if not found:
        names = sorted({one.contestant for one, _ in pairs if one.group})
        among = f"one of {', '.join(names)}" if names else "a run in which contestants took turns"
        raise ConfigError(f"relative to {relative_to!r}: nothing took turns with it in both runs, expected {among}")
    return found


def _ratio(old: Measurement, new: Measurement) -> Ratio:
    return ratio_of_medians(np.array(new.values, np.float64), np.array(old.values, np.float64))


def _ratio_of_ratios(old: tuple[Measurement, Measurement], new: tuple[Measurement, Measurement]) -> Ratio:
    """New over old, each a measurement divided by its run's reference round by round."""
    before, after = (np.array(one.values, np.float64) / np.array(reference.values) for one, reference in (old, new))
    return ratio_of_medians(after, before)


def _reference(
    pairs: Sequence[tuple[Measurement, Measurement]], one: Measurement, other: Measurement, name: str
) -> tuple[Measurement, Measurement] | None:
    """The first measurement of the contestant `name` that took turns with this one in both runs."""
    for first, second in pairs:
        if first.contestant == name and _in_turns(first, one) and _in_turns(second, other):
            return first, second
    return None


def _in_turns(reference: Measurement, one: Measurement) -> bool:
    """Whether the two can be divided round by round: the same work, in turns."""
    same = (reference.part, reference.unit, reference.group) == (one.part, one.unit, one.group)
    work = all(reference.settings.get(name) == one.settings.get(name) for name in WORK)
    return same and work and one.group != "" and len(reference.values) == len(one.values) and min(reference.values) > 0


def regressions(comparisons: Sequence[Comparison], fail_above: float) -> list[Comparison]:
    """Those that are worse by more than `fail_above` percent, and whose interval leaves no doubt that they differ."""
    return [one for one in comparisons if one.ratio.excludes_one and one.worse_percent > fail_above]


def alone(results: Results, other: Results) -> list[Measurement]:
    """The measurements that only the first of two runs has."""
    known = {one.key for one in other.measurements}
    return [one for one in results.measurements if one.key not in known]


def differences(old: Results, new: Results) -> list[str]:
    """What is not the same in the two runs, a line each: a disturbance, machine, versions, model, method."""
    runs = (("old", old), ("new", new))
    lines = [f"the {name} run is not a measurement: {run.disturbance}" for name, run in runs if run.disturbance]
    return lines + _changes(old.environment, new.environment) + _changes(old.method, new.method)


def comparison_table(
    old: Results, new: Results, comparisons: Sequence[Comparison], *, fail_above: float, relative_to: str | None = None
) -> str:
    """Everything about two runs as Markdown: what differs, each measurement, what only one of them has."""
    failed = {id(one) for one in regressions(comparisons, fail_above)}
    lines = [f"- {cell(line)}" for line in differences(old, new)]
    lines += [""] if lines else []
    ratio = "new / old" if relative_to is None else f"new / old, relative to {relative_to}"
    heads = ["part", "contestant", "with", "old >", "new >", f"{ratio} (90 % interval) >", "verdict"]
    lines += table(heads, [_row(one, id(one) in failed) for one in comparisons])
    for name, run, other in (("old", old, new), ("new", new, old)):
        reasons = {(one.part, one.contestant): one.reason for one in other.skipped}
        left = [_left(one, reasons.get((one.part, one.contestant))) for one in alone(run, other)]
        lines += ["", f"Only in the {name} run:", "", *left] if left else []
    return "\n".join(lines) + "\n"


def _row(one: Comparison, failed: bool) -> list[str]:
    unit = one.new.unit
    values = [f"{in_unit(each.median, unit)} {unit}" for each in (one.old, one.new)]
    names = [one.new.part, one.new.contestant, shown_settings(one.new.settings)]
    return [*names, *values, shown_ratio(one.ratio), _verdict(one, failed)]


def _left(one: Measurement, reason: str | None) -> str:
    why = f": skipped, {cell(reason)}" if reason else ""
    return f"- {one.part}, {cell(one.contestant)}, {cell(shown_settings(one.settings))} ({one.unit}){why}"


def _verdict(one: Comparison, failed: bool) -> str:
    if not one.ratio.excludes_one:
        return "same within noise" if one.ratio.low else "too few values"
    word = "worse" if one.worse_percent > 0 else "better"
    return f"{'**REGRESSION**: ' if failed else ''}{percent_of(abs(one.worse_percent))} {word}"


def _changes(old: Environment, new: Environment, prefix: str = "") -> list[str]:
    lines = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += _changes(before, after, f"{name}: ")
        elif before != after and name != "time":
            lines.append(f"{prefix}{name.replace('_', ' ')}: {before} in the old run, {after} in the new one")
    return lines
