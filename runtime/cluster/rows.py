"""`RowWorker`: answers batches of rows of a Ray Dataset."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cluster.library import ray_library
from runtime.cluster.worker import ImageWorker, WorkerSettings
from runtime.errors import ConfigError
from runtime.jobs.job import Job
from runtime.jobs.outcome import JobOutcome
from runtime.output_formats import Format
from runtime.storage.remote import Place, RemoteFile, is_url, local_path

CONTENTS = ("bytes", "image")
"""Columns that hold images; they are not given on."""


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """The folder of answers, None to give them as a column, and that of the images, below which they are named."""

    output: Place | None
    root: Place | None


class Content(io.BytesIO):
    """The bytes of an image file, with the name that messages show."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class RowWorker:
    """An `ImageWorker` for Ray Data, which makes one in each of its processes and calls it with batches of columns."""

    def __init__(self, settings: WorkerSettings, rows: RowSettings, model: Any) -> None:
        assert isinstance(settings.form, Format)
        self._rows, self._suffix = rows, settings.form.suffixes[0]
        self._worker = ImageWorker(settings)
        self._worker.start(ray_library().get(model))

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Answer rows; see `runtime.distributed.segment` for their columns."""
        count = len(next(iter(batch.values())))
        paths = [str(path) for path in batch["path"]] if "path" in batch else ["image"] * count
        if "bytes" in batch:
            sources: list[Any] | None = [
                Content(bytes(one), path) for one, path in zip(batch["bytes"], paths, strict=True)
            ]
        elif "image" in batch:
            sources = [np.asarray(one) for one in batch["image"]]
        elif "path" in batch:
            sources = None
        else:
            raise ConfigError(f"dataset: has the columns {', '.join(batch)}, expected one of path, bytes, image")
        if self._rows.output is not None and "path" not in batch:
            raise ConfigError(
                f"dataset: has the columns {', '.join(batch)}, expected path, which names the files in output"
            )
        outcomes = self._answer(paths, sources)
        columns = {name: values for name, values in batch.items() if name not in CONTENTS}
        if self._rows.output is None:
            columns["answer"] = np.empty(count, object)
            columns["answer"][:] = [outcome.entry for outcome in outcomes]
        return {
            **columns,
            "file": np.array([outcome.file for outcome in outcomes]),
            "status": np.array([outcome.status for outcome in outcomes]),
            "error": np.array([outcome.error for outcome in outcomes]),
            "ms": np.array([np.nan if one.ms is None else one.ms for one in outcomes], np.float32),
            "foreground": np.array(
                [np.nan if one.foreground is None else one.foreground for one in outcomes], np.float32
            ),
        }

    def _answer(self, paths: Sequence[str], sources: list[Any] | None) -> list[JobOutcome]:
        """Answer images; those whose path is not below the root are not looked at."""
        outcomes: dict[int, JobOutcome] = {}
        jobs: dict[int, Job] = {}
        for i, path in enumerate(paths):
            source = source_of(path, self._rows.root)
            try:
                jobs[i] = Job(source, self._target(source), path)
            except ConfigError as error:
                outcomes[i] = JobOutcome.lost(Job(source, source, path), str(error))
        contents = None if sources is None else [sources[i] for i in jobs]
        outcomes.update(zip(jobs, self._worker.answer(list(jobs.values()), contents), strict=True))
        return [outcomes[i] for i in range(len(paths))]

    def _target(self, source: Place) -> Place:
        """Return the file of an image's answer; without a folder of answers it is never written."""
        if self._rows.output is None or self._rows.root is None:
            return source
        try:
            name = PurePosixPath(str(source)).relative_to(str(self._rows.root))
            if ".." in name.parts:
                raise ValueError(name)
        except ValueError as error:
            raise ConfigError(f"{source}: is not below {self._rows.root}, which is given as root") from error
        return self._rows.output / name.with_suffix(self._suffix)


def place_of(text: str | os.PathLike[str]) -> Place:
    """Return the file or folder that a path or URL names, a path from the root of the disk."""
    name = local_path(os.fspath(text))
    return RemoteFile(name.rstrip("/")) if is_url(name) else Path(name).absolute()


def source_of(text: str, root: Place | None) -> Place:
    """Return the file that a row's path names; Ray Data leaves out the protocol, which then is that of the root."""
    if isinstance(root, RemoteFile) and not is_url(text):
        text = f"{root.url.partition('://')[0]}://{text}"
    return place_of(text)
