"""The first fifteen minutes on a new GPU, and their report: `python -m benchmarks.first_gpu_run --out FOLDER`."""

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks.gpu_run.findings import GpuRun, Outcome
from benchmarks.gpu_run.goals import goals_of
from benchmarks.gpu_run.processes import StepContext
from benchmarks.gpu_run.report import markdown
from benchmarks.gpu_run.steps import MACHINE, STEPS, device_name, is_stand_in, run_steps
from benchmarks.gpu_run.training import CAMVID_FOLDERS
from runtime.commands.console import Command, echo
from runtime.errors import ConfigError
from runtime.support.files import make_folder, write_text

REPORT = "report.json"
UNREACHED = "the run has not come to it"
CUT_SHORT = "it was interrupted"


@click.command(cls=Command)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the report, logs and models."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with CamVid's train_images/, train_classes/, val_images/ and val_classes/, for step camvid.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Checkpoint to export and measure.  [default: a small network is trained on drawn cars]",
)
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=900, show_default=True, help="Seconds for all steps together."
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(STEPS)),
    help="Run this step only, beside the first one; may be repeated. An earlier run in --out lends its models to it, "
    "and keeps its other steps.",
)
def main(out: Path, data: Path | None, checkpoint: Path | None, seconds: float, only: tuple[str, ...]) -> None:
    """Find out what works on this machine's GPU, how exact it is and how fast, the most valuable first.

    Each step runs in a process of its own with a time limit. The report is written anew after each step, so a run that
    is cut short leaves what it has. Exit code: 0, 1 if a step failed, or 2 for wrong arguments.
    """
    if (out / REPORT).exists() and not only:
        raise ConfigError(f"{out}: holds an older run; give another folder, or run single steps again with --only")
    missing = [name for name in CAMVID_FOLDERS if data is not None and not (data / name).is_dir()]
    if missing:
        raise ConfigError(
            f"--data {data}: found no {'/, '.join(missing)}/, expected CamVid's images and labels in "
            f"{'/, '.join(CAMVID_FOLDERS)}/; leave --data out to skip step camvid"
        )
    make_folder(out / "steps")
    context = StepContext(
        out=out.resolve(),
        data=None if data is None else data.resolve(),
        checkpoint=None if checkpoint is None else checkpoint.resolve(),
        is_stand_in=False,
        ends=time.time() + seconds,
    )
    began, started = time.time(), datetime.now(UTC).isoformat(timespec="seconds")
    names = [MACHINE, *only] if only else list(STEPS)
    old = GpuRun.read_outcomes(out / REPORT) if (out / REPORT).exists() else ()
    known = {outcome.step: outcome for outcome in old if outcome.step not in names}

    def write() -> GpuRun:
        run = GpuRun(
            device=device_name(known),
            is_stand_in=is_stand_in(known),
            started=started,
            seconds=round(time.time() - began, 1),
            outcomes=tuple(
                known.get(step.name) or Outcome(step=step.name, title=step.title, end="not reached", text=UNREACHED)
                for step in STEPS.values()
                if step.name in known or step.name in names
            ),
        )
        goals = goals_of(run)
        run.write(out, [asdict(goal) for goal in goals])
        write_text(out / "report.md", markdown(run, goals))
        return run

    write()
    written = f"written: {out / REPORT} and {out / 'report.md'}"
    try:
        for outcome in run_steps(names, context, known, note=lambda text: echo(text, err=True)):
            known[outcome.step] = outcome
            echo(f"{outcome.step}: {outcome.end}{', ' if outcome.text else ''}{outcome.text}", err=True)
            write()
    except KeyboardInterrupt:
        cut = next((step for step in STEPS.values() if step.name in names and step.name not in known), None)
        if cut is not None:
            known[cut.name] = Outcome(step=cut.name, title=cut.title, end="not reached", text=CUT_SHORT)
        write()
        echo(written, err=True)
        raise
    run = write()
    echo(markdown(run, goals_of(run)))
    echo(written, err=True)
    click.get_current_context().exit(int(any(one.is_bad for one in run.outcomes if one.step in names)))


if __name__ == "__main__":
    main()
