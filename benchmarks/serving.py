"""A load on unet-serve on this machine: `python -m benchmarks.serving MODEL DATA`."""

from importlib import import_module
from pathlib import Path

import click

from runtime.commands.console import Command
from runtime.commands.entry import exit_without
from runtime.support.cpu_count import MAX_THREADS

MOST = 64
"""Images of a folder that are sent."""


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--clients",
    type=click.IntRange(1, 1_024),
    default=64,
    show_default=True,
    help="Number of clients; each sends the next image as soon as it has its mask.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=60, show_default=True, help="Seconds of each turn of the load."
)
@click.option("--workers", type=click.IntRange(1, 1_024), default=1, show_default=True, help="Processes of the server.")
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="CPU threads of each worker.  [default: all cores, shared by the workers]",
)
@click.option("--device", default="cpu", show_default=True, help="Device of the server, as of unet-serve.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Turns of each contestant.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder for results.json and serving.md.")
def main(
    model: Path,
    data: Path,
    clients: int,
    seconds: float,
    workers: int,
    threads: int | None,
    device: str,
    rounds: int,
    out: Path | None,
) -> None:
    """Put unet-serve with MODEL under load from images in the folder DATA, in turns with bare predict_async.

    Clients and server share this machine. Every answer is compared with that of predict. Of more than 64 images, 64
    are taken, evenly spread.
    """
    try:
        import_module("runtime.serve.process")  # a missing extra is told here, and not in the server's log
    except ModuleNotFoundError as error:
        exit_without(error, "serve")
    from benchmarks.cases.serving import measure
    from benchmarks.measuring.environment import busy_cores, environment
    from benchmarks.reporting.single import report_part
    from runtime.image import list_images
    from runtime.support.cpu_count import available_threads
    from runtime.support.files import make_folder
    from unet_core.reporting.progress import Display

    if out is not None:
        make_folder(out)
    images = list_images(data)
    busy_before = busy_cores()
    found = measure(
        model,
        images[:: max(1, -(-len(images) // MOST))],
        clients=clients,
        seconds=seconds,
        workers=workers,
        threads=threads or max(1, available_threads() // workers),
        device=device,
        rounds=rounds,
        display=Display(),
    )
    method = {"rounds": rounds, "seconds": seconds}
    report_part("serving", found, environment=environment(model), method=method, busy_before=busy_before, out=out)


if __name__ == "__main__":
    main()
