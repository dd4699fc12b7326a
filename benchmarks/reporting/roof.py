"""The roof of a machine, its peaks, and what was measured above it: a sign that a peak is too low."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.reporting.tables import escaped, three_digits
from benchmarks.results import Measurement, Results

NOISE = 1.1
"""Multiple of a peak that a median may exceed without a doubt about the peak."""

FEWER_OPERATIONS = ("unet-deploy, for CPUs", "ncnn")
"""Contestants that compute convolutions with fewer operations than the graph counts."""

TIMES = {"ms": 1e-3, "s": 1.0}
"""Units of time, in seconds."""


@dataclass(frozen=True, kw_only=True)
class AbovePeak:
    """A measurement, and how many times the peak of its device and precision it reached."""

    measured: Measurement
    times: float

    @property
    def name(self) -> str:
        """The layer, or the contestant and its work."""
        settings = self.measured.settings
        return str(settings.get("layer", f"{self.measured.contestant} in {settings.get('precision')}"))


def achieved(one: Measurement) -> float | None:
    """Return GFLOP/s by the operations that the graph counts; None if these or the time are not known."""
    work = one.facts.get("gflop")
    if one.unit not in TIMES or not isinstance(work, int | float) or not one.median:
        return None
    return work / (one.median * TIMES[one.unit])


def above_peak(results: Results) -> list[AbovePeak]:
    """List what exceeded its peak by more than noise, of convolutions and networks that compute all operations."""
    peaks: dict[tuple[object, object], float] = {}
    for one in results.of("peak"):
        if one.unit == "GFLOP/s":
            of = one.settings.get("device"), one.settings.get("precision")
            peaks[of] = max(peaks.get(of, 0.0), *one.values)
    found = []
    for one in (*results.of("layers"), *results.of("latency")):
        rate, peak = achieved(one), peaks.get((one.settings.get("device"), one.settings.get("precision", "fp32")))
        all_operations = one.contestant not in FEWER_OPERATIONS and one.facts.get("form", "direct") == "direct"
        if rate is not None and peak is not None and all_operations and rate > NOISE * peak:
            found.append(AbovePeak(measured=one, times=rate / peak))
    return found


def above_lines(found: Sequence[AbovePeak]) -> list[str]:
    """Return the warning below the table of peaks, and an empty line; nothing if nothing is above them."""
    if not found:
        return []
    listed = ", ".join(f"{escaped(one.name)} ({three_digits(one.times)} times)" for one in found)
    return [f"**Too low**: the peak was exceeded by {listed}. Shares of the peak mean nothing in this report.", ""]
