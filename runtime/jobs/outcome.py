"""`JobOutcome`: what became of one image, as a row of the manifest and of a worker's answer."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from runtime.errors import DeviceError, ImageError, one_line
from runtime.jobs.job import Job
from runtime.result import Segmentation
from runtime.storage.remote import Place

Status = Literal["written", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """The fate of one image.

    Attributes:
        path: absolute path or URL of the image.
        file: absolute path or URL of the answer; "" if there is none.
        status: "written", "skipped" (the file was there and whole) or "failed".
        error: the line about a failed image, else "".
        ms: milliseconds of all stages of `Times`; None if the network did not run.
        foreground: share of the foreground's pixels, 0..1; None if the network did not run.
        fast: True if the image was decoded at a part of its size, and none of its pixels were asked for later.
        entry: what `TableFormat` made of the answer; None for formats with one file for each image.
    """

    path: str
    file: str = ""
    status: Status
    error: str = ""
    ms: float | None = None
    foreground: float | None = None
    fast: bool = False
    entry: Any = None

    @classmethod
    def of(cls, job: Job, result: Segmentation, *, measured: bool, fast: bool = False, entry: Any = None) -> Self:
        """Return the outcome of an answer that was written; unless `measured`, without `ms` and `foreground`.

        `fast` is `result.is_fast_decoded` as it was before anything asked for all pixels.
        """
        return cls(
            path=address(job.source),
            file=address(job.target),
            status="written",
            ms=result.times.total if measured and result.times else None,
            foreground=result.area() / math.prod(result.shape) if measured else None,
            fast=fast,
            entry=entry,
        )

    @classmethod
    def skipped(cls, job: Job) -> Self:
        """Return the outcome of an image whose answer was there."""
        return cls(path=address(job.source), file=address(job.target), status="skipped")

    @classmethod
    def failed(cls, job: Job, error: Exception) -> Self:
        """Return the outcome of an image that failed; raises an error that concerns more than this image."""
        return cls.lost(job, failure_line(job, error))

    @classmethod
    def lost(cls, job: Job, text: str) -> Self:
        """Return the outcome of an image that failed with this text."""
        return cls(path=address(job.source), status="failed", error=one_line(text))


def address(place: Place) -> str:
    """Return the absolute path of a file on disk, or the URL of another one."""
    return str(place.absolute()) if isinstance(place, Path) else place.url


def failure_line(job: Job, error: Exception) -> str:
    """Return one line about an image that failed; raises an error that concerns more than this image."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, DeviceError):
        return f"{job.source}: {error}"
    if isinstance(error, MemoryError):
        return f"{job.source}: out of memory; try --tile"
    raise error
