"""The goals of speed on CPUs, what a run saw of each, and whether it is met."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.reporting.tables import markdown_table, ratio_text
from benchmarks.results import HIGHER, UNITS, Measurement, Ratio, Results, ratio_of

WIDE, THIN = "widths 64,128,256,512", "widths 8,16,32,64"
"""Networks that goals are set for, as the environment of a run names them."""

OURS = ("unet-deploy", "unet-deploy, for CPUs", "unet-deploy, OpenVINO")


@dataclass(frozen=True, kw_only=True)
class SpeedGoal:
    """A goal: a ratio that is to reach a limit, or not to exceed it.

    Attributes:
        text: what is compared.
        limit: the ratio.
        at_least: True if the ratio is to reach the limit, False if it must not exceed it.
        network: the network that it is set for; "" for any.
        seen: finds the ratios in a run; none where it was not measured.
    """

    text: str
    limit: float
    at_least: bool
    seen: Callable[[Results], Iterator[Ratio]]
    network: str = ""

    def row(self, results: Results) -> list[str] | None:
        """Return goal, what was seen at its worst, and whether it is met, with doubt; None if it was not measured."""
        if self.network not in str(results.environment.get("network", "")):
            return None
        worst = sorted(self.seen(results), key=lambda one: one.median, reverse=not self.at_least)
        if not worst:
            return None
        seen = worst[0]
        met = "yes" if (seen.median >= self.limit if self.at_least else seen.median <= self.limit) else "no"
        noise = ", within the noise" * (seen.low < self.limit < seen.high)
        sign = "at least" if self.at_least else "at most"
        return [f"{self.text}: {sign} {self.limit:.2f}", ratio_text(seen), met + noise]


def speed_of(one: Measurement, reference: Measurement) -> Ratio:
    """Return how many times as fast `one` is."""
    return ratio_of(one, reference) if UNITS[one.unit] == HIGHER else ratio_of(reference, one)


def compare(
    part: str, ours: str, theirs: str, *, slower: bool = False, **settings: str
) -> Callable[[Results], Iterator[Ratio]]:
    """Make a function that finds how many times as fast one contestant is, in every group that has both.

    `settings` are those of `ours`, `theirs` is in fp32 where precisions are measured. With `slower` it is the inverse,
    how many times as long it takes.
    """

    def found(results: Results) -> Iterator[Ratio]:
        for one in results.of(part):
            if one.contestant != ours or any(one.settings.get(name) != value for name, value in settings.items()):
                continue
            for other in results.of(part):
                same_engine = one.settings.get("engine") == other.settings.get("engine")
                exact = other.settings.get("precision", "fp32") == "fp32"
                if other.contestant == theirs and other.group == one.group and same_engine and exact:
                    yield ratio_of(one, other) if slower else speed_of(one, other)

    return found


def best_of_ours(results: Results) -> Iterator[Ratio]:
    """Compare our fastest contestant with the fastest of the others, for each group and precision of the latency."""
    groups: dict[tuple[str, object], list[Measurement]] = {}
    for one in results.of("latency"):
        if one.settings.get("device") == "cpu":
            groups.setdefault((one.group, one.settings.get("precision")), []).append(one)
    for together in groups.values():
        ours = [one for one in together if one.contestant in OURS]
        others = [one for one in together if one.contestant not in OURS]
        if ours and others:
            fastest = min(ours, key=lambda one: one.median), min(others, key=lambda one: one.median)
            yield speed_of(*fastest)


def auto_of_ours(results: Results) -> Iterator[Ratio]:
    """Compare what "auto" takes for each file with the fp32 file in ONNX Runtime."""
    for one in results.of("which"):
        if one.unit == "ms" and one.facts.get("auto") is True:
            for other in results.of("which"):
                is_default = other.settings.get("file") == "fp32" and other.contestant == "ONNX Runtime"
                if other.unit == "ms" and other.group == one.group and is_default and other is not one:
                    yield speed_of(one, other)


SCRIPT, STREAM = "plain PyTorch script", "stream"
FAST = "stream --fast-decode of the int8 file in OpenVINO"
OPENVINO, DEFAULT = "unet-deploy, OpenVINO", "unet-deploy"

GOALS: Sequence[SpeedGoal] = (
    SpeedGoal(
        text="folder, stream against the plain script",
        limit=4.0,
        at_least=True,
        network=THIN,
        seen=compare("folder", STREAM, SCRIPT),
    ),
    SpeedGoal(
        text="folder, --fast-decode and int8 in OpenVINO against the plain script",
        limit=7.0,
        at_least=True,
        network=THIN,
        seen=compare("folder", FAST, SCRIPT),
    ),
    SpeedGoal(
        text="int8 in OpenVINO against the default file",
        limit=4.0,
        at_least=True,
        network=WIDE,
        seen=compare("latency", OPENVINO, DEFAULT, precision="int8"),
    ),
    SpeedGoal(
        text="bf16 in OpenVINO against the default file",
        limit=2.0,
        at_least=True,
        network=WIDE,
        seen=compare("latency", OPENVINO, DEFAULT, precision="bf16"),
    ),
    SpeedGoal(
        text="int8 in OpenVINO against the default file",
        limit=2.2,
        at_least=True,
        network=THIN,
        seen=compare("latency", OPENVINO, DEFAULT, precision="int8"),
    ),
    SpeedGoal(
        text='what "auto" takes against the default file in ONNX Runtime',
        limit=1.0,
        at_least=True,
        seen=auto_of_ours,
    ),
    SpeedGoal(
        text="our best contestant against the best of the others, in each precision",
        limit=1.0,
        at_least=True,
        seen=best_of_ours,
    ),
    SpeedGoal(
        text="cold start, times as long as bare ONNX Runtime",
        limit=1.15,
        at_least=False,
        seen=compare("cold start", "runtime", "ONNX Runtime, Pillow and numpy by hand", slower=True),
    ),
    SpeedGoal(
        text="Predictor.run, times as long as the bare session",
        limit=1.03,
        at_least=False,
        seen=compare("overhead", "Predictor.run", "bare session.run", slower=True),
    ),
    SpeedGoal(
        text="Predictor.run in OpenVINO, times as long as the bare request",
        limit=1.03,
        at_least=False,
        seen=compare("overhead", "Predictor.run", "bare request.infer", slower=True),
    ),
)
"""All goals. Where a run has several cases of one, the worst counts."""


def goal_lines(results: Results) -> list[str]:
    """Return the section of goals, and an empty line; nothing if none was measured."""
    rows = [row for goal in GOALS if (row := goal.row(results)) is not None]
    if not rows:
        return []
    return ["## Goals", "", *markdown_table(["goal", "seen, at its worst", "met"], rows), ""]
