"""The end of a command that measures one part: its results on standard output, and in a folder."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.measuring.environment import busy_cores, disturbance
from benchmarks.reporting.report import markdown
from benchmarks.results import Environment, Measurement, Results, Settings, Skipped
from runtime.commands.console import echo
from runtime.support.files import write_text


def report_part(
    name: str,
    found: Iterable[Measurement | Skipped],
    *,
    environment: Environment,
    method: Settings,
    busy_before: float | None,
    out: Path | None,
) -> None:
    """Print what was found as Markdown, and write it into the folder `out`, as results.json and NAME.md.

    Args:
        name: name of the part.
        found: what was measured, and what was not.
        environment: the machine, and the model if there is one.
        method: the options of the run.
        busy_before: what `busy_cores` told before the first measurement.
        out: a folder that exists; None writes nothing.

    Raises:
        OutputError: a file cannot be written.
    """
    found = tuple(found)
    results = Results(
        environment=environment,
        method=method,
        disturbance=disturbance(busy_before, busy_cores()),
        measurements=tuple(one for one in found if isinstance(one, Measurement)),
        skipped=tuple(one for one in found if isinstance(one, Skipped)),
    )
    text = markdown(results)
    echo(text)
    if out is not None:
        results.write(out)
        write_text(out / f"{name}.md", text)
