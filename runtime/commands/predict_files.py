"""The work of `unet-predict`: from images to files or to one file for all, with progress and a summary."""

import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from runtime.card import OutputSpec
from runtime.commands.console import echo, progress_hidden
from runtime.commands.inputs import find_images
from runtime.commands.outputs import FileSink, Job, TableSink, Tally, file_jobs, open_sink, table_jobs, write_legend
from runtime.errors import ConfigError, DeviceError, ImageError, one_line, shown
from runtime.image import SPARE, Decode, Limits, image_size
from runtime.image_files.folders import left_out_note
from runtime.inference.stream import MAX_WORKERS
from runtime.model_file.digest import VERIFIED
from runtime.model_file.reader import read_model
from runtime.options import ProviderOptions
from runtime.output_formats import FORMATS, Format, TableFormat
from runtime.predictor import Predictor
from runtime.support.files import formula_note, remove_leftovers_of


@dataclass(frozen=True, kw_only=True)
class PredictorArguments:
    """The arguments of a `Predictor` that is opened when it is needed; `options` are those of `Predictor.predict`."""

    model: Path
    device: str
    threads: int | None
    verify: bool
    fast_decode: bool
    options: dict[str, Any]

    def open(self) -> Predictor:
        """Open the predictor. Notes say if the model has no digest to verify, or if `fast_decode` changes nothing.

        Raises:
            ConfigError: the model takes the most probable one of several classes, so no threshold.
        """
        decode: Decode = "scaled" if self.fast_decode else "full"
        predictor = Predictor(self.model, self.device, self.threads, verify=self.verify, decode=decode)
        if self.verify and predictor.report.integrity != VERIFIED:
            echo(f"note: {self.model}: its digest is {predictor.report.integrity}", err=True)
        spec = predictor.card.input
        if self.fast_decode and spec.fit == "native" and SPARE * spec.scale > 1 / 2 and "size" not in self.options:
            echo(
                f"note: --fast-decode changes nothing: {self.model} sees images at more than a quarter of their size",
                err=True,
            )
        if advice := missing_speed(self.device, predictor):
            echo(f"note: {self.model}: {advice}", err=True)
        output = predictor.card.output
        if "threshold" in self.options and not output.thresholded:
            classes = len(output.classes)
            raise ConfigError(f"--threshold: is for one class, {self.model} has {classes} and takes the most probable")
        return predictor


def missing_speed(device: str, predictor: Predictor) -> str:
    """Say that OpenVINO is not installed where "auto" would have taken it; else ""."""
    from runtime.devices.openvino import advice_to_install

    if device != "auto" or predictor.report.device != "cpu":
        return ""
    return advice_to_install(predictor.card, ProviderOptions())


def format_of(output: OutputSpec, asked: Format | TableFormat | None) -> Format | TableFormat:
    """Return the format that was asked for, else the default one for a model.

    Raises:
        OutputError: the format cannot hold the model's answers.
    """
    if asked is None:
        return FORMATS["tiff" if output.overlapping else "mask"]
    if isinstance(asked, Format):
        asked.check(output, f"--format {asked.name}")
    return asked


def predict_pipe(arguments: PredictorArguments, asked: Format | None) -> None:
    """Answer one image from standard input to standard output."""
    predictor = arguments.open()
    form = format_of(predictor.card.output, asked)
    assert isinstance(form, Format)
    result = predictor.predict(sys.stdin.buffer, **arguments.options)
    sys.stdout.buffer.write(form.encode(result))
    sys.stdout.buffer.flush()


def predict_files(
    arguments: PredictorArguments,
    images: Sequence[str],
    out: Path,
    asked: Format | TableFormat | None,
    *,
    batch_size: int | None,
    skip_existing: bool,
) -> int:
    """Answer images to the folder or file `out`, print a summary, and return the exit code.

    `asked` is the format, or None for the model's default.
    """
    left_out: Counter[str] = Counter()
    masks: list[Path] = []
    card = read_model(arguments.model)[0]
    output = card.output
    found = find_images(images, out, left_out, masks, arrays=card.input.channels == "raw")
    if masks:
        count = f"{len(masks)} masks, such as {masks[0]}, are" if len(masks) > 1 else f"1 mask, {masks[0]}, is"
        echo(f"note: {count} left out (*_mask.*, *_masks/); to segment a mask, name its file", err=True)
    form = format_of(output, asked)
    if isinstance(form, TableFormat):
        jobs = table_jobs(found, out, form.suffix)
    else:
        jobs = file_jobs(found, out, form.suffixes[0])
    limits = arguments.options["limits"]
    left = unfinished(jobs, out, form, output, limits) if skip_existing else jobs
    skipped = len(jobs) - len(left)
    if isinstance(form, Format) and skip_existing and out.is_dir():
        write_legend(form, out, output, keep=True)
    if not left:
        echo(f"nothing to do: {skipped} of {skipped} are in {out} already")
        if note := left_out_note(left_out):
            echo(f"note: {note}", err=True)
        return 0
    predictor = arguments.open()
    tally = Tally()
    by_source = {job.source: job for job in left}
    if isinstance(form, Format):
        remove_leftovers_of(job.target for job in left)
    try:
        with open_sink(form, out, output, skip_existing, tally) as sink:
            answers = predictor.stream(
                list(by_source),
                then=lambda source, result: sink.make(by_source[source], tally.counted(result)),
                batch_size=batch_size,
                workers=None if arguments.threads is None else min(arguments.threads, MAX_WORKERS),
                errors="yield",
                **arguments.options,
            )
            take_all(left, answers, sink, tally.failures)
    finally:  # also after Ctrl-C or on a full disk
        parts = [f"{tally.written} of {len(left)} written to {out} on {predictor.report.device}"]
        parts += [f"{len(tally.failures)} failed"] if tally.failures else []
        parts += [f"{skipped} skipped"] if skipped else []
        parts += [f"{len(tally.fast)} decoded at a part of their size"] if arguments.fast_decode else []
        if (
            out.suffix.lower() == ".csv"
            and isinstance(form, TableFormat)
            and (note := formula_note(out, [job.name for job in left]))
        ):
            echo(f"note: {note}", err=True)
        echo(", ".join(parts))
        if note := left_out_note(left_out):
            echo(f"note: {note}", err=True)
    if not tally.failures:
        return 0
    return 1 if tally.written or skipped else ImageError.exit_code


def unfinished(jobs: list[Job], out: Path, form: Format | TableFormat, output: OutputSpec, limits: Limits) -> list[Job]:
    """Return the jobs that have no complete answer yet. A note counts the incomplete files."""
    if isinstance(form, TableFormat):
        present = {name for name, _ in form.layout(output).read(out)} if out.exists() else set()
        return [job for job in jobs if job.name not in present]
    left, incomplete = [], 0
    for job in jobs:
        exists = job.target.is_file()
        try:
            if exists:
                size = image_size(job.source, limits, upright=False)
                if form.is_finished(job.target, len(output.classes), size):
                    continue
        except ImageError:
            pass  # reading the image again will report this
        left.append(job)
        incomplete += exists
    if incomplete:
        echo(
            f"note: {incomplete} of {len(jobs)} files are truncated or of another format or size; writing them again",
            err=True,
        )
    return left


def take_all(jobs: list[Job], answers: Generator[Any], sink: FileSink | TableSink, failures: list[str]) -> None:
    """Hand each answer to the sink, in order, and show progress; a failed image is reported and added to `failures`."""
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
                failures.append(failure_line(job, answer))
                clear = "" if progress_hidden() else "\r\x1b[K"  # over the progress bar, which is drawn again
                click.echo(f"{clear}error: {shown(one_line(failures[-1]))}", err=True)
            else:
                sink.take(answer)
            bar.update(1, f"{done / (time.monotonic() - start):.1f} images/s")


def failure_line(job: Job, error: Exception) -> str:
    """Return one line about an image that failed; raises an error that concerns more than this image."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, DeviceError):
        return f"{job.source}: {error}"
    if isinstance(error, MemoryError):
        return f"{job.source}: out of memory; try --tile"
    raise error
