"""`ImageWorker`: a process of a Ray cluster that holds a predictor and answers batches of images."""

import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError
from runtime.image import Decode, Limits
from runtime.inference.stream import MAX_WORKERS
from runtime.jobs.job import Job, answer_states, write_answer
from runtime.jobs.outcome import JobOutcome
from runtime.output_formats import Format, TableFormat
from runtime.predictor import Predictor
from runtime.result import Segmentation
from runtime.storage.remote import readable
from runtime.support.version import installed_version


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """All that a worker has to know beside the model.

    Attributes:
        form: format of the answers.
        device, threads, verify, decode: as of `Predictor`.
        gpus: GPUs that Ray gives the worker; without any it sees none.
        options: those of `Predictor.predict`.
        batch_size: as of `Predictor.stream`.
        skip_existing: skip images whose answer has a whole file.
        returned: give the bytes of each answer's file as the outcome's entry, and write no file.
        visible: paths on disk that every machine has to see.
        version: version of this library that planned the work.
    """

    form: Format | TableFormat
    device: str = "auto"
    threads: int = 1
    verify: bool = True
    decode: Decode = "full"
    gpus: float = 0
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    skip_existing: bool = False
    returned: bool = False
    visible: tuple[Path, ...] = ()
    version: str = field(default_factory=installed_version)


class ImageWorker:
    """A predictor in a process of its own; made by Ray, which calls `start` first and then `answer`."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings

    def start(self, model: bytes) -> str:
        """Open the model, and return the device that it runs on.

        Raises:
            ConfigError: this machine does not see the files of the job, or has another version of this library.
            DeviceError, ModelError: as `Predictor`.
        """
        settings, machine = self._settings, socket.gethostname()
        if installed_version() != settings.version:
            raise ConfigError(
                f"{machine}: has unet-deploy {installed_version()}, expected {settings.version} as where the job was "
                "started; install the same version everywhere"
            )
        for path in settings.visible:
            if not path.exists():
                raise ConfigError(
                    f"{path}: is not on the machine {machine}; give a folder that all machines of the cluster share, "
                    "or a URL such as s3://bucket/folder"
                )
        if not settings.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # those of the machine are other people's
        self._predictor = Predictor(
            model, settings.device, settings.threads, verify=settings.verify, decode=settings.decode
        )
        return self._predictor.report.device

    def answer(self, jobs: Sequence[Job], sources: Sequence[Any] | None = None) -> list[JobOutcome]:
        """Answer images, and write each answer to its file; what became of them, in order.

        `sources` are their contents where they need not be read; a bad image is an `JobOutcome` and no error.

        Raises:
            OutputError: an answer cannot be written.
        """
        form, output = self._settings.form, self._predictor.card.output
        outcomes: dict[int, JobOutcome] = {}
        if self._settings.skip_existing and isinstance(form, Format):
            limits = self._settings.options.get("limits", Limits())
            states = answer_states(jobs, form, len(output.classes), limits)
            outcomes = {i: JobOutcome.skipped(jobs[i]) for i, state in enumerate(states) if state == "whole"}
        left = [i for i in range(len(jobs)) if i not in outcomes]
        by_source = {i: readable(jobs[i].source) if sources is None else sources[i] for i in left}
        for i, answer in zip(left, self._stream(jobs, left, by_source), strict=True):
            outcomes[i] = JobOutcome.failed(jobs[i], answer) if isinstance(answer, Exception) else answer
        return [outcomes[i] for i in range(len(jobs))]

    def _stream(self, jobs: Sequence[Job], left: Sequence[int], sources: dict[int, Any]) -> Iterable[Any]:
        """Yield the outcome of each job that is left, or its exception."""
        form, settings = self._settings.form, self._settings
        layout = form.layout(self._predictor.card.output) if isinstance(form, TableFormat) else None
        jobs_by_source = {id(source): jobs[i] for i, source in sources.items()}

        def make(source: Any, result: Segmentation) -> JobOutcome:
            job, fast = jobs_by_source[id(source)], result.is_fast_decoded
            if layout is not None:
                return JobOutcome.of(job, result, measured=True, fast=fast, entry=layout.entry(job.name, result))
            assert isinstance(form, Format)
            if settings.returned:
                return replace(JobOutcome.of(job, result, measured=True, entry=form.encode(result)), file="")
            write_answer(form, result, job.target)
            return JobOutcome.of(job, result, measured=True, fast=fast)

        at_urls = any(not isinstance(place, Path) for i in left for place in (jobs[i].source, jobs[i].target))
        answers = self._predictor.stream(
            [sources[i] for i in left],
            then=make,
            batch_size=settings.batch_size,
            workers=MAX_WORKERS if at_urls else min(settings.threads, MAX_WORKERS),
            errors="yield",
            **settings.options,
        )
        with closing(answers):
            yield from answers
