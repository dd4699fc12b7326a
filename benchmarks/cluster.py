"""Images per second of Ray workers on this machine: `python -m benchmarks.cluster MODEL DATA`."""

from pathlib import Path

import click

from runtime.commands.console import Command, Listed


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=2), default=800, show_default=True, help="Number of files to answer.")
@click.option("--workers", type=Listed(int), default="1,2", show_default=True, help="Numbers of workers.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds of each contestant.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder for results.json and cluster.md.")
def main(model: Path, data: Path, count: int, workers: tuple[int, ...], rounds: int, out: Path | None) -> None:
    """Measure MODEL on copies of the images in the folder DATA, by workers of a Ray cluster and by one process."""
    from benchmarks.cases.cluster import measure
    from benchmarks.measuring.environment import busy_cores, environment
    from benchmarks.reporting.single import report_part
    from runtime.image import list_images
    from runtime.support.files import make_folder
    from unet_core.reporting.progress import Display

    if out is not None:
        make_folder(out)
    busy_before = busy_cores()
    found = measure(model, list_images(data), count=count, workers=workers, rounds=rounds, display=Display())
    method = {"rounds": rounds}
    report_part("cluster", found, environment=environment(model), method=method, busy_before=busy_before, out=out)


if __name__ == "__main__":
    main()
