"""The comparison of two runs: which measurements became worse or better, and whether that is more than noise.

A machine's speed differs from day to day by more than its rounds differ within a run. So times can be compared relative
to one of the run's own contestants, for example to PyTorch on the same machine in the same minutes. Errors, Dice and
memory do not drift with the machine; one figure of each run is compared with a limit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.reporting.tables import (
    escaped,
    in_unit,
    markdown_table,
    percent,
    ratio_text,
    settings_text,
    three_digits,
)
from benchmarks.results import LOWER, UNITS, Environment, Measurement, Ratio, Results, divisible, ratio_of_medians
from runtime.errors import ConfigError

WORK = ("batch", "height", "width", "images")
"""Settings in which a measurement and its reference must agree."""

FIGURES = ("error", "share", "Dice", "MB")
"""Units of which a run has one figure, whatever its number of values: images and moments of a process are no rounds."""

ERROR_TIMES, ERROR_FLOOR = 10.0, 1e-5
"""Largest growth of an error, and an error that always passes: fp32 rounding (1e-7 to 1e-6) varies by version."""

SHARE = 1e-4
"""Largest growth of the share of pixels whose class differs: the limit of the export for an fp16 file."""

DICE = 2e-3
"""Largest fall of Dice: the limit of the export for an int8 file."""

MEGABYTES = 1.0
"""Growth of memory in MB that always passes, since Linux counts pages in batches."""

REGRESSION = "**REGRESSION**: "
"""The mark before a regression."""

RELATIVE_LINE = "x {0}: the time as a multiple of that of {0} in the same run, median of the rounds"
PERCENT_LINE = "worse and better, in percent: more time, or less speed; same within noise: the interval contains 1"
LIMITS_LINE = "a regression: worse beyond noise by more than {}; errors, Dice and memory have limits of their own"
"""The lines below the table, which explain its columns."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measurement of two runs, and the ratio of the new one to the old one.

    `relative` holds the measurement of each run that its rounds were divided by first; None if they were not divided.
    """

    old: Measurement
    new: Measurement
    ratio: Ratio
    relative: tuple[Measurement, Measurement] | None = None

    @property
    def worse_percent(self) -> float:
        """Percent by which the new one is worse: 10 is a tenth more time, or a tenth less speed; negative is better."""
        if UNITS[self.new.unit] == LOWER:
            return 100 * (self.ratio.median - 1)
        return 100 * (1 / self.ratio.median - 1) if self.ratio.median else math.inf

    def is_regression(self, fail_above: float) -> bool:
        """Return True if it is worse beyond doubt by more than `fail_above` percent, or beyond its unit's limit.

        The part "peak" measures the machine, so nothing in it is a regression.
        """
        if self.new.part == "peak":
            return False
        if is_timed(self.new):
            return self.ratio.excludes_one and self.worse_percent > fail_above
        old, found, unit = compared_figure(self.old), compared_figure(self.new), self.new.unit
        if unit == "Dice":
            return found < old - DICE
        more = old * fail_above / 100
        limits = {
            "error": max(ERROR_TIMES * old, ERROR_FLOOR),
            "share": old + SHARE,
            "MB": old + max(more, MEGABYTES),
        }
        return found > limits.get(unit, old + more)

    @property
    def verdict(self) -> str:
        """A few words that say which way the measurement changed, and by how much."""
        word = "worse" if self.worse_percent > 0 else "better"
        if not is_timed(self.new):
            off = abs(compared_figure(self.new) - compared_figure(self.old))
            return f"{in_unit(off, self.new.unit)} {self.new.unit} {word}" if off else "the same"
        if self.ratio.excludes_one:
            return f"{percent(abs(self.worse_percent))} {word}"
        return "same within noise" if self.ratio.low else "too few values"


def is_timed(one: Measurement) -> bool:
    """Return True if the values are rounds, whose noise tells how sure their median is.

    An exponent is timed if the cost that it was fitted to is.
    """
    return one.settings.get("of", one.unit) not in FIGURES


def compared_figure(one: Measurement) -> float:
    """Return the figure that reports show: that of the worst image, that of the end of a process, else the median."""
    if one.unit in ("error", "share"):
        return max(one.values)
    return one.values[-1] if one.part == "memory" else one.median


def compared_values(one: Measurement, reference: Measurement | None = None) -> NDArray[np.float64]:
    """Return the values of all rounds, divided by the reference's, or the one figure of what is not timed."""
    values = np.array(one.values if is_timed(one) else (compared_figure(one),), np.float64)
    return values if reference is None else values / np.array(reference.values, np.float64)


def compare_results(old: Results, new: Results, *, relative_to: str | None = None) -> list[Comparison]:
    """Compare what both runs measured, in the order of the new one.

    With `relative_to`, each time is first divided, round by round, by the time of that contestant in its own run. Only
    times of the same group as that contestant's are compared then; errors, Dice and memory are compared as they are.

    Raises:
        ConfigError: the runs have nothing in common, or no times in the same group as `relative_to`.
    """
    before = {one.key: one for one in old.measurements}
    pairs = [(before[one.key], one) for one in new.measurements if one.key in before]
    if not pairs:
        changed = "; ".join(differences(old, new)) or "no difference in machine and method"
        raise ConfigError(
            f"old and new results: have no measurement in common, expected some with the same settings ({changed})"
        )
    found = []
    for one, other in pairs:
        relative = None
        if relative_to is not None and is_timed(other):
            references = (pair for pair in pairs if pair[0].contestant == relative_to)
            relative = next((pair for pair in references if all(map(is_divisible, (one, other), pair))), None)
            if relative is None or relative[0] is one:
                continue
        divisors = relative or (None, None)
        ratio = ratio_of_medians(compared_values(other, divisors[1]), compared_values(one, divisors[0]))
        found.append(Comparison(old=one, new=other, ratio=ratio, relative=relative))
    if relative_to is not None and not any(is_timed(one.new) for one in found):
        names = sorted({one.contestant for one, _ in pairs if one.group})
        among = f"one of {', '.join(names)}" if names else "a run in which contestants took turns"
        raise ConfigError(f"relative to {relative_to!r}: nothing took turns with it in both runs, expected {among}")
    return found


def is_divisible(one: Measurement, reference: Measurement) -> bool:
    """Return True if `one` can be divided by the reference round by round: the same work, measured alternately."""
    same = (reference.part, reference.unit, reference.group) == (one.part, one.unit, one.group)
    work = all(reference.settings.get(name) == one.settings.get(name) for name in WORK)
    if not (same and work and one.group) or len(reference.values) != len(one.values):
        return False
    return divisible(np.array(one.values, np.float64), np.array(reference.values, np.float64))


def regressions(comparisons: Sequence[Comparison], fail_above: float) -> list[Comparison]:
    """Return the comparisons that are regressions, with `fail_above` in percent."""
    return [one for one in comparisons if one.is_regression(fail_above)]


def only_in(results: Results, other: Results) -> list[Measurement]:
    """Return the measurements of the first run that the second one does not have."""
    known = {one.key for one in other.measurements}
    return [one for one in results.measurements if one.key not in known]


def lost_measurements(old: Results, new: Results) -> list[Measurement]:
    """Return what the old run measured and the new one could not, for a reason that the old one did not have."""
    found = [one for one in only_in(old, new) if one.part != "peak"]
    return [one for one in found if set(reasons(new, one)) - set(reasons(old, one))]


def reasons(results: Results, one: Measurement) -> list[str]:
    """Return why a run skipped a measurement; where more was skipped at once, fewer settings are given."""
    return [
        skipped.reason
        for skipped in results.skipped
        if skipped.part == one.part
        and skipped.contestant in (one.contestant, "all")
        and skipped.settings.items() <= one.settings.items()
    ]


def differences(old: Results, new: Results) -> list[str]:
    """Return the differences around two runs, a line each: disturbances, machine, versions, model, method."""
    runs = (("old", old), ("new", new))
    lines = [f"the {name} run is not a measurement: {run.disturbance}" for name, run in runs if run.disturbance]
    return lines + changed(old.environment, new.environment) + changed(old.method, new.method)


def changed(old: Environment, new: Environment, prefix: str = "") -> list[str]:
    """Return a line for each entry that differs, those of records within them too."""
    lines = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changed(before, after, f"{name}: ")
        elif before != after and name != "time":
            lines.append(f"{prefix}{name.replace('_', ' ')}: {before} in the old run, {after} in the new one")
    return lines


def comparison_report(
    old: Results,
    new: Results,
    comparisons: Sequence[Comparison],
    *,
    fail_above: float,
    relative_to: str | None = None,
    allow_missing: bool = False,
) -> str:
    """Write a comparison as Markdown: differences, each measurement, what only one run has, regressions."""
    worse = regressions(comparisons, fail_above)
    lost = set() if allow_missing else {one.key for one in lost_measurements(old, new)}
    lines = [f"- {escaped(line)}" for line in differences(old, new)]
    lines += [""] if lines else []
    ratio = "new / old" if relative_to is None else f"new / old, times relative to {relative_to}"
    heads = ["part", "contestant", "with", "old >", "new >", f"{ratio} (90 % interval) >", "verdict"]
    rows = []
    for one in comparisons:
        unit, pair = one.new.unit, (one.old, one.new)
        if one.relative is None:
            values = [f"{in_unit(compared_figure(each), unit)} {unit}" for each in pair]
        else:
            medians = [float(np.median(compared_values(*each))) for each in zip(pair, one.relative, strict=True)]
            values = [f"{three_digits(median)} x {relative_to}" for median in medians]
        mark = REGRESSION if one.is_regression(fail_above) else ""
        names = [one.new.part, one.new.contestant, settings_text(one.new.settings)]
        rows.append([*names, *values, ratio_text(one.ratio), f"{mark}{one.verdict}"])
    lines += [*markdown_table(heads, rows), ""]
    if relative_to is not None:
        lines.append(f"- {RELATIVE_LINE.format(relative_to)}")
    lines += [f"- {PERCENT_LINE}", f"- {LIMITS_LINE.format(percent(fail_above))}"]
    for name, run, other in (("old", old, new), ("new", new, old)):
        unmatched = unmatched_lines([(one, reasons(other, one), one.key in lost) for one in only_in(run, other)])
        lines += ["", f"Only in the {name} run:", "", *unmatched] if unmatched else []
    doubtful = (old.disturbance or new.disturbance) and any(is_timed(one.new) for one in worse)
    again = "; a run is not a measurement, measure again on an idle machine" if doubtful else ""
    lines += ["", f"Regressions: {len(worse)} worse, {len(lost)} not measured any more{again}."]
    return "\n".join(lines) + "\n"


def unmatched_lines(unmatched: Sequence[tuple[Measurement, Sequence[str], bool]]) -> list[str]:
    """Return a line for each part, contestant and reason, with the settings of the first measurement.

    Each measurement comes with the reasons why the other run skipped it, and with True if that is a regression.
    """
    alike: dict[tuple[str, str, str, bool], list[Measurement]] = {}
    for one, why, failed in unmatched:
        alike.setdefault((one.part, one.contestant, why[0] if why else "", failed), []).append(one)
    lines = []
    for (part, contestant, reason, failed), ones in alike.items():
        more = f", and {len(ones) - 1} more" if len(ones) > 1 else ""
        skipped = f": skipped, {escaped(reason)}" if reason else ""
        which = f"{escaped(settings_text(ones[0].settings))} ({ones[0].unit})"
        lines.append(f"- {REGRESSION if failed else ''}{part}, {escaped(contestant)}, {which}{more}{skipped}")
    return lines
