"""The report in Markdown."""

from benchmarks.gpu_run.findings import Finding, GpuRun, Outcome
from benchmarks.gpu_run.goals import Goal
from benchmarks.gpu_run.report import STAND_IN_NOTE, cell, grouped, markdown

GOALS = [Goal(goal="fast", found="41 %", verdict="reached"), Goal(goal="exact", found="", verdict="not measured")]


def report(*outcomes, **changes):
    fields = {"device": "a card", "is_stand_in": False, "started": "now", "seconds": 12.4}
    return markdown(GpuRun(outcomes=outcomes, **{**fields, **changes}), GOALS)


def test_a_report_has_goals_steps_failures_and_findings():
    answers = Outcome(
        step="answers",
        title="right answers",
        end="failed",
        text="fp16: off by 1",
        seconds=2.6,
        findings=(
            Finding.verdict("fp32", True, "", {"max_abs_error": 2e-7}),
            Finding.verdict("fp16", False, "off by 1 | <b>", {"max_abs_error": 0.5}),
        ),
    )
    hung = Outcome(step="graphs", title="graphs", end="timed out", text="took longer than 60 s", seconds=60)
    assert report(answers, hung) == (
        "# First run on a GPU\n\n"
        "Device: a card\n"
        "Begun now, 12 s so far.\n\n"
        "## Goals\n\n"
        "| goal  | found | verdict      |\n"
        "|-------|-------|--------------|\n"
        "| fast  | 41 %  | reached      |\n"
        "| exact | -     | not measured |\n\n"
        "## Steps\n\n"
        "| step    | finds out     | ended     |   s | why                   |\n"
        "|---------|---------------|-----------|----:|-----------------------|\n"
        "| answers | right answers | failed    |   3 | fp16: off by 1        |\n"
        "| graphs  | graphs        | timed out |  60 | took longer than 60 s |\n\n"
        "## Failures\n\n"
        "- graphs, timed out: took longer than 60 s\n"
        "- answers, fp16: off by 1 \\| &lt;b>\n\n"
        "## Suggested tolerances\n\n"
        "| CUDA | error, golden sample | largest error | limit now | suggested tolerance |\n"
        "|------|---------------------:|--------------:|----------:|--------------------:|\n"
        "| fp32 |                    - |       2.0e-07 |         - |               5e-07 |\n"
        "| fp16 |                    - |         0.500 |         - |                   1 |\n\n"
        "## Step answers\n\n"
        "| what | state  | max_abs_error | text               |\n"
        "|------|--------|--------------:|--------------------|\n"
        "| fp32 | passed |       2.0e-07 |                    |\n"
        "| fp16 | failed |         0.500 | off by 1 \\| &lt;b> |\n"
    )


def test_a_stand_in_is_told_first():
    text = report(is_stand_in=True, device="stand-in")
    assert text.startswith(
        f"# First run on a GPU\n\nDevice: stand-in\nBegun now, 12 s so far.\n\n{STAND_IN_NOTE}\n\n## Goals"
    )
    assert STAND_IN_NOTE not in report()
    assert "Device: none that the driver names\n" in report(device=None)


def test_findings_with_a_figure_in_common_are_a_table():
    findings = [
        Finding.measured("a", {"x": 1}),
        Finding.skipped("b", "no"),
        Finding.measured("c", {"y": 1}),
        Finding.measured("d", {"x": 1, "z": 2}),
        Finding.measured("e", {"z": 2}),
        Finding.skipped("f", "no"),
    ]
    assert [[one.subject for one in ones] for ones in grouped(findings)] == [["a", "d", "e"], ["b", "f"], ["c"]]


def test_many_figures_are_a_list():
    many = Finding.measured("machine", {f"f{index}": index for index in range(7)})
    outcome = Outcome(step="machine", title="", end="passed", findings=(many,))
    assert "- machine: measured; f0 0; f1 1; f2 2; f3 3; f4 4; f5 5; f6 6\n" in report(outcome)


def test_cells():
    found = [cell(value) for value in (None, 3, True, 0.0, 2.5e-5, 0.25, 12345.6, "a" * 200)]
    assert found == ["-", "3", "True", "0", "2.5e-05", "0.250", "12,300", "a" * 180 + " …"]
