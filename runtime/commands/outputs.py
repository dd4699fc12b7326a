"""Outputs of `unet-predict`: the file of each image, checked before the work begins, and the sinks that write them."""

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath

from runtime.answer_files.joined_file import JoinedFile
from runtime.card import OutputSpec
from runtime.commands.inputs import Found
from runtime.errors import OutputError
from runtime.image import SUFFIXES
from runtime.jobs.job import Job, write_answer
from runtime.jobs.outcome import JobOutcome
from runtime.model_file.reader import identity_of
from runtime.output_formats import LEGEND, Format, TableFormat
from runtime.result import Segmentation
from runtime.storage.remote import Place, content_of
from runtime.support.files import make_folder, refuse_inner_links, write_bytes


def file_jobs(found: Iterable[Found], out: Place, suffix: str) -> list[Job]:
    """Plan one file for each image: its name in the folder `out`, with another suffix.

    Raises:
        OutputError: two images share a file, a file would replace an image or a folder, or `out` holds the images.
    """
    if suffix_of(out) in SUFFIXES and not (isinstance(out, Path) and out.is_dir()):
        raise OutputError(f"{out}: looks like a file, expected a folder; files in it are named after their images")
    if isinstance(out, Path) and out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder; choose another one with -o")
    jobs: list[Job] = []
    taken: dict[str, Found] = {}
    real_path, refuse_links = cache(os.path.realpath), cache(refuse_inner_links)
    for item in found:
        name = item.name.with_suffix(suffix)
        job = Job(item.path, out / name, name.as_posix())
        if real_path(item.path.parent) == real_path(job.target.parent):
            raise OutputError(
                f"{job.target.parent}: holds {PurePath(str(item.path)).name} itself and perhaps other images; "
                "choose another folder with -o"
            )
        if isinstance(job.target, Path) and isinstance(out, Path):
            refuse_links(out, item.name.parent)
            if job.target.is_dir():
                raise OutputError(
                    f"{job.target}: is a folder, expected a file or nothing; move it or choose another -o"
                )
        if is_new(item, job.name, taken, job.target):
            jobs.append(job)
    refuse_images_as_targets(jobs)
    return jobs


def suffix_of(place: Place) -> str:
    """Return the suffix of a path or URL in lower case."""
    return PurePath(str(place)).suffix.lower()


def table_jobs(found: Iterable[Found], out: Place, suffix: str) -> list[Job]:
    """Plan one entry of the file `out` for each image, under its name with "/" between the parts.

    Raises:
        OutputError: two images have the same name, or `out` does not end in `suffix`.
    """
    if suffix_of(out) != suffix or (isinstance(out, Path) and out.is_dir()):
        raise OutputError(f"{out}: expected a file that ends in {suffix}; the answers to all images are written to it")
    taken: dict[str, Found] = {}
    jobs = (Job(item.path, out, item.name.as_posix()) for item in found if is_new(item, str(item.name), taken, out))
    return list(jobs)


def is_new(item: Found, name: str, taken: dict[str, Found], target: Place) -> bool:
    """Return False for an image that was given twice.

    Raises:
        OutputError: another image has this name.
    """
    if isinstance(target, Path):
        name = name.casefold()  # on many disks Car.png and car.png are one file
    other = taken.setdefault(name, item)
    if other.path is not item.path and resolved(other.path) != resolved(item.path):
        raise OutputError(f"{target}: would hold the masks of both {other.path} and {item.path}; run them separately")
    return other is item


def resolved(place: Place) -> Place:
    """Return the path that links lead to, and a URL as it is."""
    return place.resolve() if isinstance(place, Path) else place


def refuse_images_as_targets(jobs: list[Job]) -> None:
    """Raise an OutputError if an answer would be written over an image, whatever links lead to it."""
    existing = [
        (job.target, file_identity(job.target))
        for job in jobs
        if not isinstance(job.target, Path) or job.target.exists()
    ]
    if not existing:
        return
    sources = {file_identity(job.source): job.source for job in jobs}
    for target, identity in existing:
        if identity in sources:
            raise OutputError(f"{target}: is the image {sources[identity]} itself; choose another folder with -o")


def file_identity(place: Place) -> tuple[int, int] | str:
    """Device and inode of a file; (-1, -1) for a broken link, which reading the file reports; the URL of others."""
    if not isinstance(place, Path):
        return place.url
    try:
        status = place.stat()
    except OSError:
        return -1, -1
    return status.st_dev, status.st_ino


@dataclass
class Tally:
    """Answers that were written, that were there already, that were decoded in part; a line for each failure."""

    written: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    fast: int = 0


class FileSink:
    """Writes one file for each image."""

    def __init__(self, form: Format, out: Place, tally: Tally, measured: bool) -> None:
        self._form, self._tally, self._measured = form, tally, measured
        self._lock = threading.Lock()
        if isinstance(out, Path):
            make_folder(out)

    def make(self, job: Job, result: Segmentation) -> JobOutcome:
        """Write a file; several threads call this.

        Raises:
            OutputError: the file cannot be written.
        """
        fast = result.is_fast_decoded
        write_answer(self._form, result, job.target)
        self.count()
        return JobOutcome.of(job, result, measured=self._measured, fast=fast)

    def count(self) -> None:
        """Count a file that was written, here or elsewhere."""
        with self._lock:
            self._tally.written += 1

    def take(self, outcome: JobOutcome) -> None:
        """Do nothing: files need no order."""


class TableSink:
    """Writes one entry of a file for each image."""

    def __init__(self, file: JoinedFile, measured: bool) -> None:
        self._file, self._measured = file, measured

    def make(self, job: Job, result: Segmentation) -> JobOutcome:
        """Return an outcome with its entry; several threads call this."""
        fast, entry = result.is_fast_decoded, self._file.make(job.name, result)
        return JobOutcome.of(job, result, measured=self._measured, fast=fast, entry=entry)

    def take(self, outcome: JobOutcome) -> None:
        """Write an entry, in order."""
        self._file.take(outcome.entry)


@contextmanager
def open_sink(
    form: Format | TableFormat, out: Place, output: OutputSpec, keep: bool, tally: Tally, measured: bool
) -> Iterator[FileSink | TableSink]:
    """Open the place that answers are written to.

    A file for all images appears when the context ends, with the entries made so far even after Ctrl-C.

    Args:
        form: format of the files or of the one file.
        out: folder of the files, or path of the one file on disk.
        output: what the model's answers are.
        keep: start a file for all images with the entries that it already has.
        tally: counts what is written.
        measured: give the outcomes what a manifest says of an answer.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    if isinstance(form, Format):
        sink = FileSink(form, out, tally, measured)
        write_legend(form, out, output, keep=False)
        yield sink
        return
    assert isinstance(out, Path)
    file = None
    try:
        with form.open(out, output, keep=keep) as file:
            yield TableSink(file, measured)
    finally:  # also after Ctrl-C
        tally.written += file.published if file else 0


@contextmanager
def table_on_disk(form: Format | TableFormat, out: Place, *, keep: bool) -> Iterator[Place]:
    """Give a path on disk for a file of all answers at a URL, to which it is sent when the block ends.

    With `keep` the path holds what the URL holds. Everything else than such a file stays where it is.

    Raises:
        OutputError: the URL cannot be read or written.
    """
    if isinstance(out, Path) or isinstance(form, Format):
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="unet-") as folder:
        path = Path(folder, PurePath(out.url).name)
        if keep and (content := content_of(out)) is not None:
            path.write_bytes(content)
        before = identity_of(path)
        try:
            yield path
        except OutputError as error:
            raise OutputError(str(error).replace(str(path), out.url)) from error
        finally:  # also after Ctrl-C
            if identity_of(path) != before:
                out.write(path.read_bytes())


def write_legend(form: Format, out: Place, output: OutputSpec, *, keep: bool) -> None:
    """Write the file `LEGEND` to the folder of answers if the format has one; with `keep` it must not change.

    Raises:
        OutputError: the file cannot be written, or has to change though older answers are kept.
    """
    if form.legend is None:
        return
    content, path = form.legend(output), out / LEGEND
    old = content_of(path)
    if old == content:
        return
    if keep and old is not None:
        raise OutputError(
            f"{path}: is not the legend of this model, so the files beside it may have other classes; leave out "
            "--skip-existing, or choose another folder with -o"
        )
    if isinstance(path, Path):
        write_bytes(path, content)
    else:
        path.write(content)
