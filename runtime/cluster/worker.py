"""`ImageWorker`: a process of a Ray cluster that holds a predictor and answers batches of images."""

import os
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
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

        `sources` are their contents where they need not be read; a bad image is a `JobOutcome` and no error.

        Raises:
            OutputError: an answer cannot be written.
        """
        form, output, settings = self._settings.form, self._predictor.card.output, self._settings
        outcomes: dict[int, JobOutcome] = {}
        if settings.skip_existing and isinstance(form, Format):
            states = answer_states(jobs, form, len(output.classes), settings.options.get("limits", Limits()))
            outcomes = {i: JobOutcome.skipped(jobs[i]) for i, state in enumerate(states) if state == "whole"}
        left = [i for i in range(len(jobs)) if i not in outcomes]
        answers = answer_jobs(
            self._predictor,
            [jobs[i] for i in left],
            self._make,
            sources=None if sources is None else [sources[i] for i in left],
            batch_size=settings.batch_size,
            threads=settings.threads,
            options=settings.options,
        )
        outcomes.update(zip(left, answers, strict=True))
        return [outcomes[i] for i in range(len(jobs))]

    def close(self) -> None:
        """Close the predictor, and remove the model's file from this machine."""
        self._predictor.close()
        del self._predictor

    def _make(self, job: Job, result: Segmentation) -> JobOutcome:
        """Write an answer, or give it as the outcome's entry."""
        form, fast = self._settings.form, result.is_fast_decoded
        if isinstance(form, TableFormat):
            entry = form.layout(self._predictor.card.output).entry(job.name, result)
            return JobOutcome.of(job, result, measured=True, fast=fast, entry=entry)
        if self._settings.returned:
            return replace(JobOutcome.of(job, result, measured=True, entry=form.encode(result)), file="")
        write_answer(form, result, job.target)
        return JobOutcome.of(job, result, measured=True, fast=fast)


def answer_jobs(
    predictor: Predictor,
    jobs: Sequence[Job],
    make: Callable[[Job, Segmentation], JobOutcome],
    *,
    sources: Sequence[Any] | None = None,
    batch_size: int | None,
    threads: int | None,
    options: Mapping[str, Any],
) -> Generator[JobOutcome]:
    """Answer jobs, and yield what became of each, in order; an image that fails is an outcome, too.

    Args:
        predictor: what answers.
        jobs: images and the files of their answers. Two may have the same image.
        make: writes an answer, and tells of it; several threads call this.
        sources: the images' contents, where they need not be read.
        batch_size: as of `Predictor.stream`.
        threads: threads that read and write; files at URLs have more, since these wait for the network.
        options: those of `Predictor.predict`.

    Raises:
        OutputError: an answer cannot be written.
    """
    images = [readable(job.source) for job in jobs] if sources is None else sources
    by_image = {id(image): job for image, job in zip(images, jobs, strict=True)}
    if any(not isinstance(place, Path) for job in jobs for place in (job.source, job.target)):
        threads = MAX_WORKERS
    answers = predictor.stream(
        images,
        then=lambda image, result: make(by_image[id(image)], result),
        batch_size=batch_size,
        workers=None if threads is None else min(threads, MAX_WORKERS),
        errors="yield",
        **options,
    )
    with closing(answers):
        for job, answer in zip(jobs, answers, strict=True):
            yield JobOutcome.failed(job, answer) if isinstance(answer, Exception) else answer
