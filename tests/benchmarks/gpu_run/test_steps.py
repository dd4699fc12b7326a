"""The order of the steps, their limits, and what they need of one another."""

import time
from dataclasses import replace
from pkgutil import resolve_name

import pytest

from benchmarks.gpu_run import steps
from benchmarks.gpu_run.findings import Finding, Outcome
from benchmarks.gpu_run.steps import CUDA, GPU, PYTORCH, STEPS, TENSORRT, missing_reason, run_steps


def machine(*findings, stand_in=False):
    """The first step's outcome: everything works, but what `findings` say."""
    found = {
        GPU: Finding.verdict(GPU, True, figures={"name": "a card", "stand_in": stand_in}),
        **{subject: Finding.verdict(subject, True) for subject in (CUDA, TENSORRT, PYTORCH)},
        **{one.subject: one for one in findings},
    }
    return {"machine": Outcome(step="machine", title="", end="passed", findings=tuple(found.values()))}


@pytest.fixture
def ran(monkeypatch):
    """(name, limit in seconds, context) of each step that would have been run."""
    found = []

    def run_step(name, title, context, environment, limit_s, function):
        found.append((name, limit_s, context))
        return Outcome(step=name, title=title, end="passed")

    monkeypatch.setattr(steps, "run_step", run_step)
    return found


def test_the_most_valuable_steps_come_first_and_camvid_last():
    assert list(STEPS)[:3] == ["machine", "models", "answers"] and list(STEPS)[-1] == "camvid"
    assert all(callable(resolve_name(step.function)) for step in STEPS.values())
    assert all(step.least_s < step.limit_s for step in STEPS.values())


def test_where_everything_works_all_steps_run(context, ran):
    found = list(
        run_steps(list(STEPS), replace(context, ends=time.time() + 10_000, data=context.out), machine(), print)
    )
    assert [outcome.step for outcome in found] == list(STEPS) == [name for name, *_ in ran]
    assert {name: limit for name, limit, _ in ran} == {name: step.limit_s for name, step in STEPS.items()}
    assert all(0 < step.limit_s - own.left < 5 for step, (_, _, own) in zip(STEPS.values(), ran, strict=True))


def test_the_time_of_the_run_bounds_each_step(context, ran):
    context = replace(context, ends=time.time() + 12)
    found = {one.step: one for one in run_steps(["machine", "answers", "training"], context, machine(), print)}
    assert [name for name, *_ in ran] == ["machine", "answers"] and all(11 < limit <= 12 for _, limit, _ in ran)
    assert found["training"].end == "not reached"
    assert found["training"].text == "12 s of the run were left, and it needs at least 30 s"


@pytest.mark.parametrize(
    ("step", "findings", "stand_in", "reason"),
    [
        ("answers", [], True, None),
        ("answers", [Finding.verdict(CUDA, False, "no libcudnn.so.9")], False, "no libcudnn.so.9"),
        ("dlpack", [Finding.skipped(PYTORCH, "PyTorch sees no GPU")], True, "PyTorch sees no GPU"),
        ("tests", [], True, "compares answers, and a stand-in has none"),
        ("tensorrt", [], True, "compares answers, and a stand-in has none"),
        ("tensorrt", [Finding.skipped(TENSORRT, "no libnvinfer.so.10")], False, "no libnvinfer.so.10"),
        ("models", [Finding.verdict(GPU, False, "no NVIDIA driver")], False, "no NVIDIA driver"),
        ("camvid", [], False, "needs --data, a folder with CamVid's images and labels"),
        ("machine", [Finding.verdict(GPU, False, "no NVIDIA driver")], False, None),
    ],
)
def test_a_step_says_what_is_missing(context, step, findings, stand_in, reason):
    assert missing_reason(STEPS[step], context, machine(*findings, stand_in=stand_in)) == reason


def test_without_files_the_steps_that_read_them_are_skipped(context, ran):
    context.model("fp32").unlink()
    (found,) = run_steps(["answers"], context, machine(), print)
    assert (found.end, ran) == ("skipped", [])
    assert found.text == "needs the files of step models, which are not there; add --only models, or see why it failed"


def test_a_first_step_that_crashed_keeps_nothing_from_being_tried(context, ran):
    known = {"machine": Outcome(step="machine", title="", end="crashed")}
    (found,) = run_steps(["answers"], context, known, print)
    assert (found.end, [name for name, *_ in ran]) == ("passed", ["answers"])
