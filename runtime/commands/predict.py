"""unet-predict: masks for files, folders and pipes from the command line."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from runtime.commands.console import Command, Named, Size, progress_hidden, version_option
from runtime.commands.inputs import Job, find, jobs_of, rows_of
from runtime.commands.outputs import SUFFIX, TABLE, Files, Table, Tally, encoded, is_finished, rows_in, sink
from runtime.errors import ConfigError, DeviceError, ImageError, one_line
from runtime.image import image_size
from runtime.inference.tiling import PredictOptions
from runtime.model_file.reader import read_model
from runtime.predictor import MAX_THREADS, MAX_WORKERS, Predictor
from runtime.result import Segmentation

PIPE = "-"
THRESHOLDED = ("mask", "overlay", TABLE)
"""Formats that a threshold changes."""

Finish = Callable[[Segmentation], Segmentation]


class NetworkSize(Size):
    """`WIDTHxHEIGHT`, or "native" for each image's own size."""

    name = "WxH|native"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "native" else super().convert(value, param, ctx)


@click.command(cls=Command)
@click.argument("model", type=Named("standard input is for an image, name an .onnx file"))
@click.argument("images", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    type=Named("standard output is for one image, without -o, as in MODEL - < IMAGE > MASK"),
    help="Folder for NAME.png of each image; folders below are kept. With rle-csv: the file, NAME.csv.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N.")
@click.option(
    "--format",
    "kind",
    type=click.Choice([*SUFFIX, TABLE]),
    default="mask",
    show_default=True,
    help="mask: 0/255 for one class, class indices for several. probability: of the foreground, 16-bit grey. "
    "npy: of all classes, NAME.npy, float32 [classes, height, width]. overlay: the image with its foreground tinted. "
    "cutout: all but the foreground transparent. rle-csv: one table of run lengths, as Kaggle's Carvana takes it.",
)
@click.option("--threshold", type=click.FloatRange(0, 1, True, True), help="Another one than the model's; one class.")
@click.option("--size", type=NetworkSize(), help="Size that the network sees; by default as trained.")
@click.option("--tile", type=Size(), help="Cut large images into tiles of this size, so that memory is bounded.")
@click.option("--overlap", type=click.FloatRange(0, 0.9), help="What tiles share, of their side.  [default: 0.25]")
@click.option(
    "--tta", type=click.Choice(["flip", "d4"]), help="Mean over mirror images (2 runs) or turns too (8 runs)."
)
@click.option(
    "--batch-size", type=click.IntRange(1, 1024), help="Images run together.  [default: 1 on the CPU, else 8]"
)
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="Of the CPU, for the network and for reading and writing.  [default: all cores that this process may use]",
)
@click.option("--skip-existing", is_flag=True, help="Leave out images whose finished file, or row, is there already.")
@version_option
def predict(
    model: Path,
    images: tuple[str, ...],
    out: Path | None,
    device: str,
    kind: str,
    threshold: float | None,
    batch_size: int | None,
    threads: int | None,
    skip_existing: bool,
    **asked: Any,
) -> None:
    """Segment IMAGES with MODEL (an .onnx file) and write the answers to OUT, each at its image's own size.

    IMAGES are files, folders (searched with all folders below) and patterns in quotes ('in/**/*.jpg'), or - alone: one
    image from standard input, its answer to standard output.

    An image that cannot be read does not stop the others. Exit code: 0 if all were written, 1 if some were not, 2 if
    none was or the command cannot begin, 130 after Ctrl-C.
    """
    if "" in images:
        raise click.UsageError("IMAGES: one name is empty; leave it out (is a variable of the shell unset?)")
    if threshold is not None and kind not in THRESHOLDED:
        raise click.UsageError(f"--threshold changes nothing with --format {kind}")
    if asked["overlap"] is not None and asked["tile"] is None:
        raise click.UsageError("--overlap is for --tile")
    asking: PredictOptions = {name: value for name, value in asked.items() if value is not None}  # type: ignore[assignment]
    if PIPE in images:
        _check_pipe(images, out, kind, skip_existing or batch_size is not None)
        predictor, finished = _opened(model, device, threads, threshold)
        _answer_pipe(predictor, finished, asking, kind)
        return
    if out is None:
        raise click.UsageError("Missing option '-o' / '--out', where to write to.")
    jobs = _planned(images, out, kind)
    left = _unfinished(jobs, out, kind, model) if skip_existing else jobs
    skipped = len(jobs) - len(left)
    if not left:
        click.echo(f"nothing to do: {skipped} of {skipped} are in {out} already")
        return
    predictor, finished = _opened(model, device, threads, threshold)
    tally = Tally()
    try:
        with sink(kind, out, skip_existing, tally) as place:
            answers = _answers(predictor, left, place, finished, asking, batch_size, threads)
            _take_all(left, answers, place, tally.failures)
    finally:  # whatever ends it
        click.echo(_summary(tally, len(left), skipped, f"{out} on {predictor.report.device}"))
    if tally.failures:
        click.get_current_context().exit(1 if tally.written or skipped else ImageError.exit_code)


def _opened(model: Path, device: str, threads: int | None, threshold: float | None) -> tuple[Predictor, Finish]:
    predictor = Predictor(model, device, threads)
    if threshold is None:
        return predictor, lambda result: result
    classes = len(predictor.card.output.classes)
    if classes > 1:
        raise ConfigError(f"--threshold: is for one class, {model} has {classes} and takes the most probable")
    return predictor, lambda result: result.threshold(threshold)


def _check_pipe(images: tuple[str, ...], out: Path | None, kind: str, for_several: bool) -> None:
    if len(images) > 1:
        raise click.UsageError("- is one image from standard input; give it alone, and the other images without it")
    if out is not None:
        raise click.UsageError("- is answered to standard output; leave out -o and add > FILE")
    if kind == TABLE:
        raise click.UsageError(f"- has no name for a table; leave out --format {TABLE}, or name a file")
    if for_several:
        raise click.UsageError("- is one image; leave out --skip-existing and --batch-size")
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("- reads an image from standard input, which is a terminal or closed; use < or |")
    if sys.stdout is None or sys.stdout.isatty():
        raise click.UsageError("- writes a file's bytes to standard output, which is a terminal or closed; use > or |")


def _answer_pipe(predictor: Predictor, finished: Finish, asking: PredictOptions, kind: str) -> None:
    result = predictor.predict(sys.stdin.buffer, **asking)
    output = sys.stdout.buffer
    output.write(encoded(finished(result), kind))
    output.flush()


def _planned(images: tuple[str, ...], out: Path, kind: str) -> list[Job]:
    found = find(images, out)
    return rows_of(found, out) if kind == TABLE else jobs_of(found, out, SUFFIX[kind])


def _unfinished(jobs: list[Job], out: Path, kind: str, model: Path) -> list[Job]:
    """The jobs whose answers are not there, or not as this format writes them; of the latter a note tells."""
    classes = len(read_model(model)[0].output.classes)
    if kind == TABLE:
        present = {name for name, _ in rows_in(out)} if out.exists() else set()
        return [job for job in jobs if job.name not in present]
    left = [job for job in jobs if not (job.target.is_file() and _is_finished(job, kind, classes))]
    others = sum(job.target.is_file() for job in left)
    if others:
        click.echo(f"note: made anew, being cut off or of another format or size: {others} of {len(jobs)}", err=True)
    return left


def _is_finished(job: Job, kind: str, classes: int) -> bool:
    try:
        size = image_size(job.source, upright=False)
    except ImageError:  # which is told when it is read again
        return False
    return is_finished(job.target, kind, classes, size)


def _answers(
    predictor: Predictor,
    jobs: list[Job],
    place: Files | Table,
    finished: Finish,
    asking: PredictOptions,
    batch_size: int | None,
    threads: int | None,
) -> Generator[Any]:
    """What the sink makes of each answer, or the exception in its place, in order; decoded and written in threads."""
    by_source = {job.source: job for job in jobs}

    def make(source: Path, result: Segmentation) -> Any:
        return place.make(by_source[source], finished(result))

    workers = None if threads is None else min(threads, MAX_WORKERS)
    return predictor.stream(
        list(by_source), then=make, batch_size=batch_size, workers=workers, errors="yield", **asking
    )


def _take_all(jobs: list[Job], answers: Generator[Any], place: Files | Table, failures: list[str]) -> None:
    start = time.monotonic()
    with (
        closing(answers),
        click.progressbar(
            length=len(jobs),
            label="predicting",
            show_pos=True,
            item_show_func=lambda rate: rate,
            file=sys.stderr,
            hidden=progress_hidden(),
        ) as bar,
    ):
        for done, (job, answer) in enumerate(zip(jobs, answers, strict=True), 1):
            if isinstance(answer, Exception):
                failures.append(_failure(job, answer))
                _tell(failures[-1])
            else:
                place.take(answer)
            bar.update(1, f"{done / (time.monotonic() - start):.1f} images/s")


def _failure(job: Job, error: Exception) -> str:
    """One line of an image that failed; what is no fault of one image is raised."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, DeviceError):
        return f"{job.source}: {error}"
    if isinstance(error, MemoryError):
        return f"{job.source}: takes more memory than there is; try --tile"
    raise error


def _tell(failure: str) -> None:
    clear = "" if progress_hidden() else "\r\x1b[K"  # over the progress bar, which is drawn anew
    click.echo(f"{clear}error: {one_line(failure)}", err=True)


def _summary(tally: Tally, jobs: int, skipped: int, where: str) -> str:
    parts = [f"{tally.written} of {jobs} written to {where}"]
    parts += [f"{len(tally.failures)} failed"] if tally.failures else []
    parts += [f"{skipped} skipped"] if skipped else []
    return ", ".join(parts)
