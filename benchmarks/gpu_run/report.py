"""The report of a first run, in Markdown: goals, steps, failures, figures for docs/gpu.md."""

from collections.abc import Sequence

from benchmarks.gpu_run.findings import Finding, GpuRun, Outcome, Scalar
from benchmarks.gpu_run.goals import Goal, suggested_tolerances
from benchmarks.reporting.tables import MISSING, escaped, markdown_table, three_digits

STAND_IN_NOTE = (
    "**The device is a stand-in for a GPU.** It computes nothing: options, placement, memory and plans are real, but "
    "answers were not compared and no times are quoted."
)
MOST_TEXT = 180
"""Characters of a cell with text; longer ones are cut, and are whole in report.json."""

MOST_COLUMNS = 6
"""Figures of a table; findings with more are a list."""


def markdown(run: GpuRun, goals: Sequence[Goal]) -> str:
    """Write the report of a run, as far as it has come."""
    lines = ["# First run on a GPU", "", f"Device: {escaped(run.device or 'none that the driver names')}"]
    lines += [f"Begun {run.started}, {run.seconds:.0f} s so far.", ""]
    lines += [STAND_IN_NOTE, ""] if run.is_stand_in else []
    lines += ["## Goals", "", *goal_lines(goals), "", "## Steps", "", *step_lines(run.outcomes), ""]
    failures = [(outcome, one) for outcome in run.outcomes for one in outcome.findings if one.state == "failed"]
    broken = [outcome for outcome in run.outcomes if outcome.end in ("crashed", "timed out")]
    if failures or broken:
        lines += ["## Failures", ""]
        lines += [f"- {one.step}, {one.end}: {escaped(one.text)}" for one in broken]
        lines += [f"- {outcome.step}, {escaped(one.subject)}: {escaped(one.text)}" for outcome, one in failures]
        lines.append("")
    lines += tolerance_lines(run)
    for outcome in run.outcomes:
        lines += finding_lines(outcome)
    return "\n".join(lines).rstrip() + "\n"


def goal_lines(goals: Sequence[Goal]) -> list[str]:
    """Return the table of the goals."""
    return markdown_table(
        ["goal", "found", "verdict"], [[one.goal, one.found or MISSING, one.verdict] for one in goals]
    )


def step_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table of the steps, with the first failure of each."""
    rows = [
        [one.step, one.title, one.end, f"{one.seconds:.0f}" if one.seconds else MISSING, short(one.text)]
        for one in outcomes
    ]
    return markdown_table(["step", "finds out", "ended", "s >", "why"], rows)


def tolerance_lines(run: GpuRun) -> list[str]:
    """Return the table of the tolerances that the errors suggest; nothing if no answer was compared."""
    rows = [
        [
            one.name,
            cell(one.golden_error),
            cell(one.largest_error),
            cell(one.limit),
            f"{one.tolerance:g}",
        ]
        for one in suggested_tolerances(run)
    ]
    if not rows:
        return []
    heads = ["CUDA", "error, golden sample >", "largest error >", "limit now >", "suggested tolerance >"]
    return ["## Suggested tolerances", "", *markdown_table(heads, rows), ""]


def finding_lines(outcome: Outcome) -> list[str]:
    """Return a step's findings: a table of those that have figures in common, a list where these are many."""
    lines = [f"## Step {outcome.step}", ""] if outcome.findings else []
    for ones in grouped(outcome.findings):
        names = list(dict.fromkeys(name for one in ones for name in one.figures))
        if len(names) > MOST_COLUMNS:
            for one in ones:
                figures = [f"{name} {cell(value)}" for name, value in one.figures.items()]
                lines.append(
                    f"- {escaped('; '.join([f'{one.subject}: {one.state}', *filter(None, [one.text]), *figures]))}"
                )
            lines.append("")
            continue
        texts = [[short(one.text)] for one in ones] if any(one.text for one in ones) else [[] for _ in ones]
        heads = ["what", "state", *(f"{name} >" for name in names), *(["text"] if texts[0] else [])]
        rows = [
            [one.subject, one.state, *(cell(one.figures.get(name)) for name in names), *text]
            for one, text in zip(ones, texts, strict=True)
        ]
        lines += [*markdown_table(heads, rows), ""]
    return lines


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Divide findings into groups that have a figure in common; those without figures are a group."""
    groups: list[tuple[set[str], list[Finding]]] = []
    for one in findings:
        own = set(one.figures)
        group = next((group for group in groups if group[0] & own or (not group[0] and not own)), None)
        if group is None:
            groups.append((own, [one]))
        else:
            group[0].update(own)
            group[1].append(one)
    return [ones for _, ones in groups]


def cell(value: Scalar) -> str:
    """Write a figure."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.1e}" if value and abs(value) < 1e-3 else three_digits(value)
    return short(str(value))


def short(text: str) -> str:
    """Cut a text that is longer than a cell should be."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} …"
