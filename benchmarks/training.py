"""The speed of training, part by part: `python -m benchmarks.training DATA`."""

from pathlib import Path

import click

from runtime.commands.console import Command, Listed, Size
from runtime.commands.entry import exit_without


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--size", type=Size(), default="240x160", show_default=True, help="Size of the network's input.")
@click.option(
    "--widths",
    type=Listed(int),
    default="16,32,64,128",
    show_default=True,
    help="Channels of each level, from the top.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images in a step.")
@click.option("--rounds", type=click.IntRange(min=5), default=10, show_default=True, help="Rounds of each contestant.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of PyTorch.  [default: one for each core that this process may use]",
)
@click.option(
    "--device", default="auto", show_default=True, help="Device to train on: auto, cpu, gpu, cuda or cuda:N (or N)."
)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder for results.json and training.md.")
def main(
    data: Path,
    size: tuple[int, int],
    widths: tuple[int, ...],
    batch_size: int,
    rounds: int,
    threads: int | None,
    device: str,
    out: Path | None,
) -> None:
    """Measure loading, decoding and training steps on the training images of DATA (masks of one class)."""
    try:
        from benchmarks.cases.training import measure
        from unet_core.config import TrainConfig
        from unet_core.reporting.progress import Display
    except ModuleNotFoundError as error:  # here, since importing PyTorch takes seconds that --help does not need
        exit_without(error, extra="export")
    from benchmarks.measuring.environment import busy_cores, machine
    from benchmarks.reporting.single import report_part
    from runtime.support.cpu_count import available_threads
    from runtime.support.files import make_folder

    if out is not None:
        make_folder(out)
    config = TrainConfig(
        data=str(data),
        out="unused",
        height=size[0],
        width=size[1],
        widths=widths,
        batch_size=batch_size,
        device=device,
    )
    threads = threads or available_threads()
    busy_before = busy_cores()
    found = measure(config, threads=threads, rounds=rounds, display=Display())
    method = {"rounds": rounds, "threads": threads}
    report_part("training", found, environment=machine(), method=method, busy_before=busy_before, out=out)


if __name__ == "__main__":
    main()
