"""The goals of a first run, compared with its findings, and the tolerances that its errors suggest."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.gpu_run.findings import Finding, GpuRun, Scalar
from benchmarks.reporting.tables import in_unit, percent, three_digits

PEAK_SHARE, BATCH, SIZE = 0.4, 4, "960x640"
FLOOR_TIMES = 3.0
FLIPPED = 1e-4
MEAN_IOU, MINUTES = 0.70, 5

FACTOR = 2.0
"""Suggested tolerance over the largest error that was seen, before it is rounded up."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal, what was found, and whether that reaches it."""

    goal: str
    found: str
    verdict: Literal["reached", "missed", "not measured"]


@dataclass(frozen=True, kw_only=True)
class SuggestedTolerance:
    """The largest errors of one precision on CUDA, and the tolerance that they suggest.

    `golden_error` is that of the golden sample, `largest_error` that of all batches; the limit is the present one.
    """

    name: str
    golden_error: float | None
    largest_error: float
    limit: float | None
    tolerance: float


def goals_of(run: GpuRun) -> tuple[Goal, ...]:
    """Compare each goal with what was found; on a stand-in nothing was measured."""
    found = {} if run.is_stand_in else {outcome.step: outcome.findings for outcome in run.outcomes}
    speed, floor_of, answers, camvid = (found.get(step, ()) for step in ("speed", "floor", "answers", "camvid"))
    shares = [
        one
        for one in speed
        if one.subject == "latency, unet-deploy" and one.figures.get("precision") == "fp16" and is_large(one)
    ]
    floors = [one for one in floor_of if one.subject == "floor, fp16"]
    flips = [one for one in answers if one.subject.startswith("fp16, TF32 on") and "flipped" in one.figures]
    ious = [one for one in camvid if "mean_iou" in one.figures]
    share, floor = largest(shares, "peak_share"), largest(floors, "times_floor")
    flipped, iou = largest(flips, "flipped"), largest(ious, "mean_iou")
    trained = largest(ious, "trained_s")
    return (
        judged(
            f"CUDA, fp16, {SIZE}, batch of {BATCH} or more: at least {PEAK_SHARE:.0%} of the measured fp16 matrix rate",
            None if share is None else percent(100 * share),
            share is not None and share >= PEAK_SHARE,
        ),
        judged(
            f"one image of 240x160, fp16, with CUDA graphs: at most {FLOOR_TIMES:g} times its floor",
            None if floor is None else f"{three_digits(floor)} times",
            floor is not None and floor <= FLOOR_TIMES,
        ),
        judged(
            f"fp16 on CUDA: at most {percent(100 * FLIPPED)} of the pixels flip against fp32",
            None if flipped is None else in_unit(flipped, "share"),
            flipped is not None and flipped <= FLIPPED,
        ),
        judged(
            f"CamVid's eleven classes: mean IoU of at least {MEAN_IOU:.2f} within {MINUTES} minutes of training",
            None if iou is None or trained is None else f"{iou:.4f} after {trained:.0f} s",
            iou is not None and trained is not None and iou >= MEAN_IOU and trained <= 60 * MINUTES,
        ),
    )


def judged(goal: str, found: str | None, reached: bool) -> Goal:
    """Make a goal's record; without a figure it was not measured."""
    if found is None:
        return Goal(goal=goal, found="", verdict="not measured")
    return Goal(goal=goal, found=found, verdict="reached" if reached else "missed")


def is_large(one: Finding) -> bool:
    """Return True if a latency is that of the size and the batches of the goal."""
    batch = one.figures.get("batch")
    return one.figures.get("size") == SIZE and isinstance(batch, int) and batch >= BATCH


def largest(findings: Sequence[Finding], name: str) -> float | None:
    """Return the largest value of a figure; None if there is none."""
    return max((value for one in findings if (value := number(one.figures.get(name))) is not None), default=None)


def number(value: Scalar) -> float | None:
    """Return a figure as a number; one that was not finite is infinite, and None stays."""
    if isinstance(value, str):
        return math.inf if value in ("inf", "nan") else None
    return None if value is None or isinstance(value, bool) else float(value)


def suggested_tolerances(run: GpuRun) -> Iterator[SuggestedTolerance]:
    """Suggest a tolerance for each precision, from the largest error of step answers."""
    answers = run.of("answers")
    groups: dict[str, list[Finding]] = {}
    for one in answers.findings if answers is not None and not run.is_stand_in else ():
        if "max_abs_error" in one.figures:
            groups.setdefault(", ".join(one.subject.split(", ")[:2]), []).append(one)
    for name, ones in groups.items():
        golden = [one for one in ones if one.subject.endswith("golden sample")]
        error = largest(ones, "max_abs_error")
        if error is None:
            continue
        yield SuggestedTolerance(
            name=name,
            golden_error=largest(golden, "max_abs_error"),
            largest_error=error,
            limit=largest(golden, "limit"),
            tolerance=rounded_up(FACTOR * error),
        )


def rounded_up(value: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    if not math.isfinite(value) or value <= 0:
        return value
    power = 10.0 ** math.floor(math.log10(value))
    step = next(step for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))
    return float(f"{step * power:.1e}")
