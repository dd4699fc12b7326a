"""The work of `unet-predict`: from images to files or to one file for all, with progress and a summary."""

import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click

from runtime.card import ModelCard, OutputSpec
from runtime.cluster.worker import answer_jobs
from runtime.commands.console import echo, progress_hidden
from runtime.commands.inputs import find_images
from runtime.commands.outputs import (
    FileSink,
    TableSink,
    Tally,
    file_jobs,
    open_sink,
    table_jobs,
    table_on_disk,
    write_legend,
)
from runtime.errors import ConfigError, ImageError, shown
from runtime.image import SPARE, Decode, Limits
from runtime.image_files.folders import left_out_note
from runtime.inference.predict_options import resolve_options
from runtime.jobs.job import Job, answer_states
from runtime.jobs.manifest import Manifest, open_manifest
from runtime.jobs.outcome import JobOutcome
from runtime.model_file.digest import VERIFIED
from runtime.model_file.reader import read_model
from runtime.options import ProviderOptions
from runtime.output_formats import FORMATS, Format, TableFormat
from runtime.predictor import Predictor
from runtime.storage.remote import Place
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

    @property
    def decode(self) -> Decode:
        """The predictor's way to decode."""
        return "scaled" if self.fast_decode else "full"

    def open(self) -> Predictor:
        """Open the predictor, with the notes of `check`, and one on a package that would make it faster.

        Raises:
            ConfigError: as `check`.
        """
        predictor = Predictor(self.model, self.device, self.threads, verify=self.verify, decode=self.decode)
        self.check(predictor.card, predictor.report.integrity)
        if advice := missing_speed(self.device, predictor):
            echo(f"note: {self.model}: {advice}", err=True)
        return predictor

    def check(self, card: ModelCard, integrity: str) -> None:
        """Refuse options that are not for a model.

        Notes say if the model has no digest to verify (`integrity`), or if `fast_decode` changes nothing.

        Raises:
            ConfigError: the model takes the most probable one of several classes, so no threshold; or an option of
                `Predictor.predict` is invalid.
        """
        spec, output = card.input, card.output
        if self.verify and integrity != VERIFIED:
            echo(f"note: {self.model}: its digest is {integrity}", err=True)
        if self.fast_decode and spec.fit == "native" and SPARE * spec.scale > 1 / 2 and "size" not in self.options:
            echo(
                f"note: --fast-decode changes nothing: {self.model} sees images at more than a quarter of their size",
                err=True,
            )
        if "threshold" in self.options and not output.thresholded:
            classes = len(output.classes)
            raise ConfigError(f"--threshold: is for one class, {self.model} has {classes} and takes the most probable")
        resolve_options(card, **self.options)


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


class Engine(Protocol):
    """The place where images are answered: this process, or the workers of a cluster."""

    place: str
    """The name of the place, for the summary."""

    skips: bool
    """True if images that have a complete file are skipped by whoever answers them."""

    def start(self) -> None:
        """Get ready, before anything is written; raises what keeps the work from beginning."""

    def answers(self, jobs: list[Job], sink: FileSink | TableSink) -> Generator[JobOutcome]:
        """Answer jobs, and yield what became of each, in order."""

    def stop(self) -> None:
        """Let go of everything."""


class ThisProcess:
    """Answers images by a `Predictor` in this process."""

    place, skips = "this machine", False

    def __init__(self, arguments: PredictorArguments, batch_size: int | None) -> None:
        self._arguments, self._batch_size = arguments, batch_size

    def start(self) -> None:
        self._predictor = self._arguments.open()
        self.place = self._predictor.report.device

    def answers(self, jobs: list[Job], sink: FileSink | TableSink) -> Generator[JobOutcome]:
        return answer_jobs(
            self._predictor,
            jobs,
            sink.make,
            batch_size=self._batch_size,
            threads=self._arguments.threads,
            options=self._arguments.options,
        )

    def stop(self) -> None:
        """Do nothing: the process ends soon."""


def predict_files(
    arguments: PredictorArguments,
    images: Sequence[str],
    out: Place,
    asked: Format | TableFormat | None,
    *,
    skip_existing: bool,
    engine: Engine,
    manifest: Place | None = None,
) -> int:
    """Answer images to the folder or file `out`, print a summary, and return the exit code.

    `asked` is the format, or None for the model's default.
    """
    left_out: Counter[str] = Counter()
    masks: list[Place] = []
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
        if skip_existing and (not isinstance(out, Path) or out.is_dir()):
            write_legend(form, out, output, keep=True)
    tally = Tally()
    resume, one_file = jobs if skip_existing else None, isinstance(form, TableFormat)
    with (
        table_on_disk(form, out, keep=skip_existing) as path,
        open_manifest(manifest, arguments.model, resume=resume, one_file=one_file) as table,
        ExitStack() as last,
    ):
        left = jobs
        if skip_existing and (isinstance(form, TableFormat) or not engine.skips):
            left = unfinished(jobs, path, form, output, arguments.options["limits"])
        tally.skipped = len(jobs) - len(left)
        if left:
            last.callback(engine.stop)
            engine.start()
            if isinstance(form, Format):
                remove_leftovers_of(job.target for job in left if isinstance(job.target, Path))
        last.callback(print_summary, tally, left, left_out, form, out, engine, count_fast=arguments.fast_decode)
        if table:
            unasked = set(jobs).difference(left)
            for job in jobs:
                if job in unasked:
                    table.add(JobOutcome.skipped(job))
        if left:
            with open_sink(form, path, output, skip_existing, tally, table is not None) as sink:
                take_all(engine.answers(left, sink), len(left), sink, tally, table)
    if not tally.failures:
        return 0
    return 1 if tally.written or tally.skipped else ImageError.exit_code


def print_summary(
    tally: Tally,
    asked: list[Job],
    left_out: Counter[str],
    form: Format | TableFormat,
    out: Place,
    engine: Engine,
    *,
    count_fast: bool,
) -> None:
    """Print what was written, also after Ctrl-C or on a full disk; notes tell what was left out, and odd names."""
    if asked:
        parts = [f"{tally.written} of {len(asked)} written to {out} on {engine.place}"]
        parts += [f"{len(tally.failures)} failed"] if tally.failures else []
        parts += [f"{tally.skipped} skipped"] if tally.skipped else []
        parts += [f"{tally.fast} decoded at a part of their size"] if count_fast else []
        is_csv = isinstance(form, TableFormat) and form.suffix == ".csv"
        if is_csv and (warning := formula_note(str(out), [job.name for job in asked])):
            echo(f"note: {warning}", err=True)
        echo(", ".join(parts))
    else:
        echo(f"nothing to do: {tally.skipped} of {tally.skipped} are in {out} already")
    if note := left_out_note(left_out):
        echo(f"note: {note}", err=True)


def unfinished(
    jobs: list[Job], out: Place, form: Format | TableFormat, output: OutputSpec, limits: Limits
) -> list[Job]:
    """Return the jobs that have no complete answer yet. A note counts the incomplete files."""
    if isinstance(form, TableFormat):
        assert isinstance(out, Path)
        present = {name for name, _ in form.layout(output).read(out)} if out.exists() else set()
        return [job for job in jobs if job.name not in present]
    states = answer_states(jobs, form, len(output.classes), limits)
    if incomplete := states.count("incomplete"):
        echo(
            f"note: {incomplete} of {len(jobs)} files are truncated or of another format or size; writing them again",
            err=True,
        )
    return [job for job, state in zip(jobs, states, strict=True) if state != "whole"]


def take_all(
    outcomes: Generator[JobOutcome], count: int, sink: FileSink | TableSink, tally: Tally, manifest: Manifest | None
) -> None:
    """Hand each answer to the sink, in order, and show progress; a failed image is reported and counted."""
    start = time.monotonic()
    with (
        closing(outcomes),
        click.progressbar(
            length=count,
            label="predicting",
            show_pos=True,
            item_show_func=lambda rate: rate,
            file=sys.stderr,
            hidden=progress_hidden(),
        ) as bar,
    ):
        for done, outcome in enumerate(outcomes, 1):
            if outcome.status == "failed":
                tally.failures.append(outcome.error)
                clear = "" if progress_hidden() else "\r\x1b[K"  # over the progress bar, which is drawn again
                click.echo(f"{clear}error: {shown(outcome.error)}", err=True)
            elif outcome.status == "skipped":
                tally.skipped += 1
            else:
                tally.fast += outcome.fast
                sink.take(outcome)
            if manifest:
                manifest.add(outcome)
            bar.update(1, f"{done / (time.monotonic() - start):.1f} images/s")
