"""Two runs of the same benchmarks: what became worse or better, and whether that is more than noise.

A machine's speed differs from day to day by more than its rounds differ within a run. So times can be compared relative
to one of the run's own contestants: what PyTorch, say, takes on the same machine in the same minutes. Errors, Dice and
memory do not drift with the machine; one figure of each run is compared with a limit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.reporting.tables import cell, in_unit, number, percent_of, shown_ratio, shown_settings, table
from benchmarks.results import (
    HIGHER,
    LOWER,
    UNITS,
    Environment,
    Measurement,
    Ratio,
    Results,
    divisible,
    ratio_of_medians,
)
from runtime.errors import ConfigError

WORK = ("batch", "height", "width", "images")
"""Settings that a measurement and what it is relative to have in common."""

FIGURES = ("error", "share", "Dice", "MB")
"""Units of which a run has one figure, whatever its number of values: images or moments of a process are no rounds."""

ERROR_TIMES, ERROR_FLOOR = 10.0, 1e-5
"""An error may grow so many times, and always up to 1e-5: rounding in fp32 (1e-7 to 1e-6) changes between versions."""

SHARE = 1e-4
"""By how much the share of pixels that are answered otherwise may grow: what the export allows an fp16 file."""

DICE = 2e-3
"""By how much Dice may fall: what the export allows an int8 file."""

MEGABYTES = 1.0
"""Memory may always grow by so much: Linux counts pages in batches."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measurement of two runs; `ratio` is new over old, relative to a contestant of each run if that was asked.

    `relative` is then what each run's measurement is relative to; None where it is compared as it is.
    """

    old: Measurement
    new: Measurement
    ratio: Ratio
    relative: tuple[Measurement, Measurement] | None = None

    @property
    def worse_percent(self) -> float:
        """By how much the new one is worse: 10 is a tenth more time, or a tenth less speed; negative is better."""
        if UNITS[self.new.unit] == LOWER:
            return 100 * (self.ratio.median - 1)
        return 100 * (1 / self.ratio.median - 1) if self.ratio.median else math.inf

    def is_regression(self, fail_above: float) -> bool:
        """Whether it is worse beyond doubt by more than `fail_above` percent, or than its unit's limit.

        What the machine can do (part "peak") is nobody's regression.
        """
        if self.new.part == "peak":
            return False
        if is_timed(self.new):
            return self.ratio.excludes_one and self.worse_percent > fail_above
        found, limit = figure(self.new), _limit(figure(self.old), self.new.unit, fail_above)
        return found < limit if UNITS[self.new.unit] == HIGHER else found > limit


def is_timed(one: Measurement) -> bool:
    """Whether the values are rounds, whose noise tells how sure their median is; an exponent is as what it is of."""
    return one.settings.get("of", one.unit) not in FIGURES


def figure(one: Measurement) -> float:
    """The figure that reports show: of the worst image, of the end of a process, else the median."""
    if one.unit in ("error", "share"):
        return max(one.values)
    return one.values[-1] if one.part == "memory" else one.median


def _limit(old: float, unit: str, fail_above: float) -> float:
    """The worst new figure that is no regression."""
    more = old * fail_above / 100
    limits = {
        "error": max(ERROR_TIMES * old, ERROR_FLOOR),
        "share": old + SHARE,
        "Dice": old - DICE,
        "MB": old + max(more, MEGABYTES),
    }
    return limits.get(unit, old + more)


def compare(old: Results, new: Results, *, relative_to: str | None = None) -> list[Comparison]:
    """What both runs measured, in the order of the new one.

    With `relative_to` each time is divided by that contestant's of its own run first, and only times that were measured
    in turns with it are compared; what is not timed is compared as it is.

    Raises:
        ConfigError: the runs have nothing in common, or nothing that was measured in turns with `relative_to`.
    """
    before = {one.key: one for one in old.measurements}
    pairs = [(before[one.key], one) for one in new.measurements if one.key in before]
    if not pairs:
        changed = "; ".join(differences(old, new)) or "no difference in machine and method"
        raise ConfigError(
            f"old and new results: have no measurement in common, expected some with the same settings ({changed})"
        )
    if relative_to is None:
        return [Comparison(old=one, new=other, ratio=_ratio(one, other)) for one, other in pairs]
    found = []
    for one, other in pairs:
        reference = _reference(pairs, one, other, relative_to)
        if not is_timed(other):
            found.append(Comparison(old=one, new=other, ratio=_ratio(one, other)))
        elif reference is not None and reference[0] is not one:
            ratio = _ratio_of_ratios((one, reference[0]), (other, reference[1]))
            found.append(Comparison(old=one, new=other, ratio=ratio, relative=reference))
    if not any(is_timed(one.new) for one in found):
        names = sorted({one.contestant for one, _ in pairs if one.group})
        among = f"one of {', '.join(names)}" if names else "a run in which contestants took turns"
        raise ConfigError(f"relative to {relative_to!r}: nothing took turns with it in both runs, expected {among}")
    return found


def _ratio(old: Measurement, new: Measurement) -> Ratio:
    ours, theirs = (one.values if is_timed(one) else (figure(one),) for one in (new, old))
    return ratio_of_medians(np.array(ours, np.float64), np.array(theirs, np.float64))


def _ratio_of_ratios(old: tuple[Measurement, Measurement], new: tuple[Measurement, Measurement]) -> Ratio:
    """New over old, each a measurement divided by its run's reference round by round."""
    before, after = (_divided(one, reference) for one, reference in (old, new))
    return ratio_of_medians(after, before)


def _divided(one: Measurement, reference: Measurement) -> NDArray[np.float64]:
    return np.array(one.values, np.float64) / np.array(reference.values, np.float64)


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
    if not (same and work and one.group) or len(reference.values) != len(one.values):
        return False
    return divisible(np.array(one.values, np.float64), np.array(reference.values, np.float64))


def regressions(comparisons: Sequence[Comparison], fail_above: float) -> list[Comparison]:
    """Those that are worse than is allowed."""
    return [one for one in comparisons if one.is_regression(fail_above)]


def alone(results: Results, other: Results) -> list[Measurement]:
    """The measurements that only the first of two runs has."""
    known = {one.key for one in other.measurements}
    return [one for one in results.measurements if one.key not in known]


def lost(old: Results, new: Results) -> list[Measurement]:
    """What the old run measured and the new one could not, for a reason that the old one did not have."""
    found = [one for one in alone(old, new) if one.part != "peak"]
    return [one for one in found if set(reasons(new, one)) - set(reasons(old, one))]


def reasons(results: Results, one: Measurement) -> list[str]:
    """Why a run skipped what has the name of this measurement; what was skipped as a whole has fewer settings."""
    return [
        skipped.reason
        for skipped in results.skipped
        if skipped.part == one.part
        and skipped.contestant in (one.contestant, "all")
        and skipped.settings.items() <= one.settings.items()
    ]


def differences(old: Results, new: Results) -> list[str]:
    """What is not the same in the two runs, a line each: a disturbance, machine, versions, model, method."""
    runs = (("old", old), ("new", new))
    lines = [f"the {name} run is not a measurement: {run.disturbance}" for name, run in runs if run.disturbance]
    return lines + _changes(old.environment, new.environment) + _changes(old.method, new.method)


def comparison_table(
    old: Results,
    new: Results,
    comparisons: Sequence[Comparison],
    *,
    fail_above: float,
    relative_to: str | None = None,
    allow_missing: bool = False,
) -> str:
    """Everything about two runs as Markdown: what differs, each measurement, what only one of them has, regressions."""
    worse = regressions(comparisons, fail_above)
    gone = set() if allow_missing else {one.key for one in lost(old, new)}
    lines = [f"- {cell(line)}" for line in differences(old, new)]
    lines += [""] if lines else []
    ratio = "new / old" if relative_to is None else f"new / old, times relative to {relative_to}"
    heads = ["part", "contestant", "with", "old >", "new >", f"{ratio} (90 % interval) >", "verdict"]
    lines += table(heads, [_row(one, one.is_regression(fail_above)) for one in comparisons])
    lines += ["", *(f"- {word}" for word in _meaning(fail_above, relative_to))]
    for name, run, other in (("old", old, new), ("new", new, old)):
        left = _left([(one, reasons(other, one), one.key in gone) for one in alone(run, other)])
        lines += ["", f"Only in the {name} run:", "", *left] if left else []
    return "\n".join([*lines, "", _sum(worse, len(gone), old.disturbance or new.disturbance)]) + "\n"


def _meaning(fail_above: float, relative_to: str | None) -> list[str]:
    """What the columns of the table say, and what is a regression."""
    found = [
        "worse and better, in percent: by how much more time it takes, or how much less speed it has; within noise: 1 "
        "is in the interval",
        f"a regression: worse beyond noise by more than {percent_of(fail_above)}; errors, Dice and memory have limits "
        "of their own",
    ]
    shares = f"x {relative_to}: so many times as long as that of the same run, the median of the rounds"
    return found if relative_to is None else [shares, *found]


def _row(one: Comparison, failed: bool) -> list[str]:
    unit = one.new.unit
    if one.relative is None:
        values = [f"{in_unit(figure(each), unit)} {unit}" for each in (one.old, one.new)]
    else:
        pairs = zip((one.old, one.new), one.relative, strict=True)
        values = [f"{number(float(np.median(_divided(*pair))))} x {pair[1].contestant}" for pair in pairs]
    names = [one.new.part, one.new.contestant, shown_settings(one.new.settings)]
    return [*names, *values, shown_ratio(one.ratio), f"{_mark(failed)}{_verdict(one)}"]


def _left(every: Sequence[tuple[Measurement, Sequence[str], bool]]) -> list[str]:
    """A line for each part and contestant, unless reasons differ, with the settings of the first."""
    alike: dict[tuple[str, str, str, bool], list[Measurement]] = {}
    for one, why, failed in every:
        alike.setdefault((one.part, one.contestant, why[0] if why else "", failed), []).append(one)
    lines = []
    for (part, contestant, why, failed), ones in alike.items():
        more = f", and {len(ones) - 1} more" if len(ones) > 1 else ""
        skipped = f": skipped, {cell(why)}" if why else ""
        where = f"{cell(shown_settings(ones[0].settings))} ({ones[0].unit})"
        lines.append(f"- {_mark(failed)}{part}, {cell(contestant)}, {where}{more}{skipped}")
    return lines


def _mark(failed: bool) -> str:
    return "**REGRESSION**: " if failed else ""


def _verdict(one: Comparison) -> str:
    word = "worse" if one.worse_percent > 0 else "better"
    if not is_timed(one.new):
        off = abs(figure(one.new) - figure(one.old))
        return f"{in_unit(off, one.new.unit)} {one.new.unit} {word}" if off else "the same"
    if one.ratio.excludes_one:
        return f"{percent_of(abs(one.worse_percent))} {word}"
    return "same within noise" if one.ratio.low else "too few values"


def _sum(worse: Sequence[Comparison], gone: int, disturbance: str | None) -> str:
    doubt = disturbance is not None and any(is_timed(one.new) for one in worse)
    again = "; a run is not a measurement, measure again on an idle machine" if doubt else ""
    return f"Regressions: {len(worse)} worse, {gone} not measured any more{again}."


def _changes(old: Environment, new: Environment, prefix: str = "") -> list[str]:
    lines = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += _changes(before, after, f"{name}: ")
        elif before != after and name != "time":
            lines.append(f"{prefix}{name.replace('_', ' ')}: {before} in the old run, {after} in the new one")
    return lines
