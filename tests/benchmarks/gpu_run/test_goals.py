"""The goals against findings, and the tolerances that errors suggest."""

import pytest

from benchmarks.gpu_run.findings import Finding, GpuRun, Outcome
from benchmarks.gpu_run.goals import SuggestedTolerance, goals_of, rounded_up, suggested_tolerances


def run_of(stand_in=False, **steps):
    outcomes = tuple(Outcome(step=name, title="", end="passed", findings=tuple(found)) for name, found in steps.items())
    return GpuRun(device="a card", is_stand_in=stand_in, started="now", seconds=1.0, outcomes=outcomes)


def latency(contestant="unet-deploy", precision="fp16", size="960x640", batch=4, **figures):
    work = {"precision": precision, "size": size, "batch": batch}
    return Finding.measured(f"latency, {contestant}", {**work, "median_ms": 1.0, **figures})


SPEED = [
    latency(peak_share=0.41),
    latency(peak_share=0.9, batch=1),
    latency(peak_share=0.9, size="240x160"),
    latency(peak_share=0.9, precision="tf32"),
    latency(peak_share=0.9, contestant="ONNX Runtime"),
]
FLOOR = [
    Finding.measured("floor, fp16", {"times_floor": 2.96}),
    Finding.measured("floor, fp32", {"times_floor": 9.0}),
]
ANSWERS = [
    Finding.verdict("fp16, TF32 on, 8 pictures", True, "", {"max_abs_error": 1e-3, "flipped": 0.00012}),
    Finding.verdict("int8, TF32 on, 8 pictures", True, "", {"max_abs_error": 1e-2, "flipped": 0.02}),
]
CAMVID = [Finding.measured("CamVid", {"mean_iou": 0.7012, "trained_s": 288.4})]


def test_goals_are_reached_or_missed():
    found = goals_of(run_of(speed=SPEED, floor=FLOOR, answers=ANSWERS, camvid=CAMVID))
    assert [(one.found, one.verdict) for one in found] == [
        ("41.0 %", "reached"),
        ("2.96 times", "reached"),
        ("0.0120 %", "missed"),
        ("0.7012 after 288 s", "reached"),
    ]


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"speed": [latency(peak_share=0.39)]}, 0),
        ({"floor": [Finding.measured("floor, fp16", {"times_floor": 3.1})]}, 1),
        ({"camvid": [Finding.measured("CamVid", {"mean_iou": 0.69, "trained_s": 200.0})]}, 3),
        ({"camvid": [Finding.measured("CamVid", {"mean_iou": 0.75, "trained_s": 301.0})]}, 3),
    ],
)
def test_a_goal_is_missed(changed, place):
    assert [one.verdict for one in goals_of(run_of(**changed))][place] == "missed"


@pytest.mark.parametrize("stand_in", [False, True])
def test_without_figures_and_on_a_stand_in_nothing_is_measured(stand_in):
    found = {"speed": SPEED, "floor": FLOOR, "answers": ANSWERS, "camvid": CAMVID} if stand_in else {}
    goals = goals_of(run_of(stand_in=stand_in, **found))
    assert {(one.found, one.verdict) for one in goals} == {("", "not measured")}


def test_tolerances_are_twice_the_largest_error_rounded_up():
    golden = {"max_abs_error": 2e-4, "limit": 0.02, "simulated": None}
    answers = [
        Finding.measured("fp32, TF32 on, placement", {"CUDAExecutionProvider": 60}),
        Finding.verdict("fp32, TF32 on, golden sample", True, "", golden),
        Finding.verdict("fp32, TF32 on, 2x160x240", True, "", {"max_abs_error": 7e-4, "limit": 0.02}),
        Finding.verdict("fp32, TF32 off, 2x160x240", True, "", {"max_abs_error": 3e-7, "limit": 1e-4}),
        Finding.verdict("fp16, TF32 on, 2x160x240", False, "", {"max_abs_error": "inf", "limit": 0.02}),
    ]
    on, off, broken = suggested_tolerances(run_of(answers=answers))
    assert on == SuggestedTolerance(
        name="fp32, TF32 on", golden_error=2e-4, largest_error=7e-4, limit=0.02, tolerance=2e-3
    )
    assert (off.name, off.golden_error, off.limit, off.tolerance) == ("fp32, TF32 off", None, None, 1e-6)
    assert broken.tolerance == float("inf")
    assert not [*suggested_tolerances(run_of(stand_in=True, answers=answers))]


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0, 0.0), (1e-3, 1e-3), (1.4e-3, 2e-3), (2e-3, 2e-3), (4.1e-3, 5e-3), (6e-7, 1e-6)]
)
def test_rounded_up(value, rounded):
    assert rounded_up(value) == rounded
