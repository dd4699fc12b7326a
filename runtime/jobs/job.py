"""`Job`: an image and the file of its answer, each on disk or at a URL; whether that file is there; writing it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

from runtime.errors import ImageError
from runtime.image import Limits, image_size
from runtime.output_formats import Format
from runtime.result import Segmentation
from runtime.storage.remote import SEARCHED_BYTES, Place, RemoteFile

LOOKING = 32
"""Threads that look at files at URLs, which wait for the network."""

State = Literal["missing", "incomplete", "whole"]
"""States of the file of an answer; an incomplete one is truncated, or of another format or size."""


@dataclass(frozen=True)
class Job:
    """An image, the file that its answer is written to, and its name in that file."""

    source: Place
    target: Place
    name: str


def answer_state(job: Job, form: Format, classes: int, limits: Limits) -> State:
    """Return the state of a job's answer, by the ends of its file and the header of the image.

    A file on disk is whole with the size of the image as stored, so the image is not turned upright for this.
    """
    if isinstance(job.target, Path) and isinstance(job.source, Path):
        if not job.target.is_file():
            return "missing"
        try:
            size = image_size(job.source, limits, upright=False)
        except ImageError:
            return "incomplete"  # reading the image again will report this
        return "whole" if form.is_finished(job.target, classes, size) else "incomplete"
    try:
        with opened(job.target) as target:
            target.read(1)  # some file systems look for the file only now
            target.seek(0)
            try:
                with opened(job.source) as source:
                    size = image_size(source, limits, upright=False)
            except Exception:  # as above; each file system has its own errors
                return "incomplete"
            return "whole" if form.is_complete(target, classes, size) else "incomplete"
    except FileNotFoundError:
        return "missing"
    except Exception:  # what cannot be read is written again, or writing it tells why it cannot be
        return "incomplete"


def answer_states(jobs: Sequence[Job], form: Format, classes: int, limits: Limits) -> list[State]:
    """Return the state of each job's answer; files at URLs are looked at by several threads."""
    look = partial(answer_state, form=form, classes=classes, limits=limits)
    if all(isinstance(place, Path) for job in jobs for place in (job.source, job.target)):
        return list(map(look, jobs))
    with ThreadPoolExecutor(LOOKING) as pool:
        return list(pool.map(look, jobs))


def opened(place: Place) -> IO[bytes]:
    """Open a file whose ends are read."""
    return place.open(block_size=SEARCHED_BYTES) if isinstance(place, RemoteFile) else open(place, "rb")


def write_answer(form: Format, result: Segmentation, target: Place) -> None:
    """Write an answer to its file, atomically.

    Raises:
        OutputError: the file cannot be written, or the format cannot hold this answer.
    """
    if isinstance(target, RemoteFile):
        target.write(form.encode(result))
    else:
        form.save(result, target)
