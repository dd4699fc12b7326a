"""Images per second of one process, and of workers of a Ray cluster on this machine, from files to masks on disk."""

import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases.folder import copies
from benchmarks.results import Measurement, measurements_of
from runtime.cluster.library import LOCAL, connected
from runtime.cluster.scheduler import Scheduler
from runtime.cluster.worker import WorkerSettings, answer_jobs
from runtime.errors import ConfigError, ImageError
from runtime.jobs.job import Job, write_answer
from runtime.jobs.outcome import JobOutcome
from runtime.output_formats import Format, format_named
from runtime.predictor import Predictor
from runtime.result import Segmentation
from runtime.support.cpu_count import available_threads
from unet_core.reporting.progress import Display

PART = "cluster"
ALONE = "one process"

WARM = 32
"""Images of each worker that are answered before time is taken: its first batches."""

Outcomes = Generator[JobOutcome]


def measure(
    model: Path,
    images: Sequence[Path],
    *,
    count: int,
    workers: Sequence[int],
    rounds: int,
    display: Display | None = None,
) -> list[Measurement]:
    """Measure images per second of workers of one thread each, and of one process with as many threads, in turns.

    Starting Ray and opening the model do not count, and neither do the first `WARM` images of each worker or thread
    (half of all at most).

    Args:
        model: an ONNX file that `unet-export` wrote.
        images: files to answer; copies of them make `count` files.
        count: number of files.
        workers: numbers of workers.
        rounds: rounds of all contestants.
        display: shows what is being measured.

    Raises:
        ConfigError: there are no images, Ray is not installed, or there are more workers than CPU cores.
        ModelError: the model's file is invalid.
        ImageError: an image cannot be read.
    """
    display = display or Display(quiet=True)
    if not images:
        raise ConfigError("cluster: there are no images to answer")
    if not 1 <= min(workers) <= max(workers) <= available_threads():
        text, most = ", ".join(map(str, workers)), available_threads()
        raise ConfigError(f"--workers {text}: expected numbers from 1 to {most}, the CPU cores of this process")
    with tempfile.TemporaryDirectory() as folder, connected(LOCAL) as ray:
        paths = copies(images, count, Path(folder))
        with Predictor(model, "cpu", 1) as predictor:
            form = format_named("tiff" if predictor.card.output.overlapping else "mask")
        jobs = [Job(path, path.with_name(f"{path.stem}-mask{form.suffixes[0]}"), path.name) for path in paths]
        rates: dict[str, list[float]] = {}
        for number in range(rounds):
            display.note(f"cluster: round {number + 1} of {rounds}")
            for size in workers:
                for name, answers in (
                    (f"{ALONE}, {size} thread{'s' * (size > 1)}", alone),
                    (f"Ray, {size} worker{'s' * (size > 1)}", by_ray(ray)),
                ):
                    with closing(answers(model, jobs, form, size)) as outcomes:
                        rates.setdefault(name, []).append(rate_of(outcomes, len(jobs), min(WARM * size, count // 2)))
    return measurements_of(
        {name: np.array(values) for name, values in rates.items()},
        part=PART,
        settings={"images": count, "device": "cpu"},
        unit="images/s",
        group="cluster",
        facts={"different": min(count, len(images))},
    )


def rate_of(outcomes: Iterable[JobOutcome], count: int, warm: int) -> float:
    """Consume the outcomes of `count` images, and return images per second after the first `warm` ones."""
    start = time.perf_counter()
    for done, outcome in enumerate(outcomes, 1):
        if outcome.status != "written":
            raise ImageError(outcome.error)
        if done == warm:
            start = time.perf_counter()
    return (count - warm) / (time.perf_counter() - start)


def alone(model: Path, jobs: Sequence[Job], form: Format, threads: int) -> Outcomes:
    """Answer images as `unet-predict` does without a cluster."""

    def write(job: Job, result: Segmentation) -> JobOutcome:
        write_answer(form, result, job.target)
        return JobOutcome.of(job, result, measured=True)

    with Predictor(model, "cpu", threads) as predictor:
        yield from answer_jobs(predictor, jobs, write, batch_size=None, threads=threads, options={})


def by_ray(ray: Any) -> Callable[[Path, Sequence[Job], Format, int], Outcomes]:
    """Return the contestant that answers images by workers of one thread each."""

    def answers(model: Path, jobs: Sequence[Job], form: Format, workers: int) -> Outcomes:
        settings = WorkerSettings(form=form, device="cpu", threads=1)
        scheduler = Scheduler(ray, settings, model.read_bytes(), workers, lambda _: None)
        try:
            yield from scheduler.answers(jobs)
        finally:
            scheduler.stop()

    return answers
