"""The work of `unet-predict --engine ray`: images answered by the workers of a Ray cluster."""

import os
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from runtime.cluster.library import LOCAL, address_of, connected
from runtime.cluster.scheduler import Scheduler, room_for, room_note
from runtime.cluster.worker import WorkerSettings
from runtime.commands.console import echo
from runtime.commands.outputs import FileSink, TableSink
from runtime.commands.predict_files import PredictorArguments, format_of
from runtime.errors import OutputError
from runtime.jobs.job import Job
from runtime.jobs.outcome import JobOutcome
from runtime.model_file.digest import check_digest
from runtime.model_file.reader import read_model
from runtime.output_formats import Format, TableFormat
from runtime.storage.remote import Place
from runtime.support.files import make_folder, new_temporary, reason_of, remove_leftovers_of


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The cluster to work on: its address, None for one of this machine; number of workers, None for all that fit."""

    address: str | None
    workers: int | None
    gpus_per_worker: float


class RayCluster:
    """Answers images by workers of a Ray cluster; an engine of `predict_files`."""

    place, skips = "Ray", True

    def __init__(
        self,
        arguments: PredictorArguments,
        options: ClusterOptions,
        form: Format | TableFormat | None,
        batch_size: int | None,
        out: Place,
        skip_existing: bool,
    ) -> None:
        self._arguments, self._options, self._form = arguments, options, form
        self._batch_size, self._out, self._skip_existing = batch_size, out, skip_existing
        self._open = ExitStack()

    def start(self) -> None:
        """Check all that can be checked here, and connect."""
        card, _ = read_model(self._arguments.model)
        integrity = check_digest(self._arguments.model).told if self._arguments.verify else ""
        self._arguments.check(card, integrity)
        self._form = format_of(card.output, self._form)
        address, threads = address_of(self._options.address), self._arguments.threads or 1
        self._ray = self._open.enter_context(connected(address))
        may_grow = address != LOCAL and self._options.workers is not None
        room = room_for(self._ray, threads, self._options.gpus_per_worker, may_be_none=may_grow)
        self._workers = self._options.workers or room
        visible: tuple[Path, ...] = ()
        if isinstance(self._out, Path) and isinstance(self._form, Format):
            visible = (self._mark(self._out),)
        self._settings = WorkerSettings(
            form=self._form,
            device=self._arguments.device,
            threads=threads,
            verify=self._arguments.verify,
            decode=self._arguments.decode,
            gpus=self._options.gpus_per_worker,
            options=self._arguments.options,
            batch_size=self._batch_size,
            skip_existing=self._skip_existing,
            visible=visible,
        )
        if note := room_note(self._ray, self._workers, self._settings):
            tell(note)

    def _mark(self, folder: Path) -> Path:
        """Put a file into the folder of answers, by which workers know that they see the same folder."""
        name = make_folder(folder).absolute() / "unet-predict.mark"
        remove_leftovers_of([name])
        try:
            mark, descriptor = new_temporary(name)
            mark.touch()
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({reason_of(error)}); choose another one") from error
        self._open.callback(mark.unlink, missing_ok=True)
        if descriptor is not None:
            self._open.callback(os.close, descriptor)
        return mark

    def answers(self, jobs: list[Job], sink: FileSink | TableSink) -> Generator[JobOutcome]:
        """Answer jobs, and yield what became of each, in order."""
        jobs = [Job(absolute(job.source), absolute(job.target), job.name) for job in jobs]
        on_disk = (job.source for job in jobs if isinstance(job.source, Path) and job.source.exists())
        settings = replace(self._settings, visible=(*self._settings.visible, *islice(on_disk, 1)))
        scheduler = Scheduler(self._ray, settings, self._arguments.model.read_bytes(), self._workers, tell)
        self._open.callback(scheduler.stop)
        try:
            for outcome in scheduler.answers(jobs):
                if isinstance(sink, FileSink) and outcome.status == "written":
                    sink.count()
                yield outcome
        finally:
            count, devices = scheduler.devices.total(), ", ".join(sorted(scheduler.devices))
            self.place = f"{count} worker{'s' * (count != 1)} of Ray ({devices})"
            if scheduler.retried:
                tell(f"{scheduler.retried} images were given to another worker, since theirs died or could not write")

    def stop(self) -> None:
        """End the workers, and the cluster if it was started here."""
        self._open.close()


def absolute(place: Place) -> Place:
    """Return a path that is the same in every folder, and a URL as it is."""
    return place.absolute() if isinstance(place, Path) else place


def tell(text: str) -> None:
    """Print a note."""
    echo(f"note: {text}", err=True)
