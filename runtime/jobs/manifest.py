"""The manifest: a Parquet file with a row for each image, written anew every minute and at the end."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import file_digest
from importlib import import_module
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError, OutputError
from runtime.jobs.job import Job
from runtime.jobs.outcome import JobOutcome, address
from runtime.storage.remote import Place, RemoteFile, content_of
from runtime.support.files import write_bytes

GROUP = 10_000
"""Rows that are compressed together."""

EVERY = 60
"""Seconds after which the file is written anew, so that a job that is killed leaves most of its rows."""

SHARE = 20
"""Times as long as writing it took, the file is left alone, so that a large one costs a twentieth of the time."""

COLUMNS = {
    "path": "string",
    "file": "string",
    "status": "string",
    "error": "string",
    "ms": "float32",
    "foreground": "float32",
    "model": "string",
}
"""Columns by name, with the name of their type in Arrow; see `JobOutcome`, whose empty texts are null here."""


class Manifest:
    """The rows of a Parquet file of outcomes.

    Args:
        place: the path or URL of the file.
        model: the sha256 of the model's file, which stands in each new row.
        older: the content of the file that an earlier run left, whose rows are kept until new ones replace them.

    Raises:
        ConfigError: pyarrow is not installed.
        OutputError: `older` is not a manifest.
    """

    def __init__(self, place: Place, model: str, older: bytes | None = None) -> None:
        self._arrow, self._parquet = libraries()
        self._schema = self._arrow.schema([(name, getattr(self._arrow, kind)()) for name, kind in COLUMNS.items()])
        self._place, self._model = place, model
        self._older = self._schema.empty_table() if older is None else self._older_rows(older)
        self._replaceable = {path: i for i, path in enumerate(self._older["path"].to_pylist())}
        self._groups: list[Any] = []
        self._rows: list[dict[str, Any]] = []
        self._due = time.monotonic() + EVERY

    def refuse_mixing(self, jobs: Sequence[Job], *, one_file: bool) -> None:
        """Refuse to skip jobs whose files an earlier run made with another model, or for other images.

        `one_file` says that the answers of all images are in one file.

        Raises:
            OutputError: there are some.
        """
        older = [self._older[name].to_pylist() for name in ("path", "file", "model")]
        made = {(path, file): model for path, file, model in zip(*older, strict=True) if file}
        owners = {} if one_file else {file: path for path, file in made}
        others = 0
        for path, file in ((address(job.source), address(job.target)) for job in jobs):
            if owners.get(file, path) != path:
                raise OutputError(
                    f"{file}: is the answer to {owners[file]}, as {self._place} says, and not to {path}; choose "
                    "another place with -o, or move the manifest if the images were moved"
                )
            others += made.get((path, file)) not in (None, self._model)
        if others:
            raise OutputError(
                f"{self._place}: says that {others} of {len(jobs)} answers are of another model; leave out "
                "--skip-existing to write all anew, or choose another place with -o"
            )

    def add(self, outcome: JobOutcome) -> None:
        """Add a row, which replaces an older one of the same image. Now and then the file is written."""
        row = {name: getattr(outcome, name, None) or None for name in ("path", "file", "status", "error")}
        row |= {"ms": outcome.ms, "foreground": outcome.foreground, "model": self._model}
        older = self._replaceable.pop(outcome.path, None)
        if outcome.status == "skipped":
            row["model"] = None  # unknown, unless the earlier run wrote it down
            known = {} if older is None else self._older.slice(older, 1).to_pylist()[0]
            if known.get("file") == outcome.file:
                row |= {name: known[name] for name in ("ms", "foreground", "model")}
        self._rows.append(row)
        if len(self._rows) == GROUP:
            self._groups.append(self._table())
            self._rows = []
        if (now := time.monotonic()) >= self._due:
            with suppress(OutputError):  # the last time will tell
                self.write()
            self._due = now + max(EVERY, SHARE * (time.monotonic() - now))

    def write(self) -> None:
        """Write the file whole: the rows so far, and those of the earlier run that none has replaced.

        Raises:
            OutputError: it cannot be written.
        """
        kept = self._older.take(self._arrow.array(self._replaceable.values(), "int64"))
        if not (tables := [one for one in (*self._groups, self._table(), kept) if len(one)]):
            return
        content = self._arrow.BufferOutputStream()
        with self._parquet.ParquetWriter(content, self._schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
        if isinstance(self._place, RemoteFile):
            self._place.write(content.getvalue().to_pybytes())
        else:
            write_bytes(self._place, content.getvalue().to_pybytes(), follow=True)

    def _table(self) -> Any:
        """Return the rows of the group that is not yet full."""
        return self._arrow.Table.from_pylist(self._rows, self._schema)

    def _older_rows(self, content: bytes) -> Any:
        """Return the rows of a file."""
        try:
            table = self._parquet.read_table(self._arrow.BufferReader(content), columns=list(COLUMNS))
            return table.select(list(COLUMNS)).cast(self._schema)
        except Exception as error:  # pyarrow has its own errors
            raise OutputError(
                f"{self._place}: is no manifest of an earlier run; move it, or choose another one"
            ) from error


@contextmanager
def open_manifest(
    place: Place | None, model: Path, *, resume: Sequence[Job] | None = None, one_file: bool = False
) -> Iterator[Manifest | None]:
    """Open a manifest at a path or URL; it is written last when the block ends, also by an error or Ctrl-C.

    `model` is the model's file. `resume` are the jobs of which an earlier run may have done some: then the rows that
    it left stay, and images that are skipped keep what they say of them. `one_file` says that all answers are in one
    file. Without a place there is no manifest.

    Raises:
        ConfigError: pyarrow is not installed.
        OutputError: the manifest cannot be written, or the earlier run had another model or other images.
    """
    if place is None:
        yield None
        return
    if isinstance(place, Path) and place.is_dir():
        raise OutputError(f"{place}: is a folder, expected a file name; add one")
    libraries()
    with open(model, "rb") as file:
        sha256 = file_digest(file, "sha256").hexdigest()
    manifest = Manifest(place, sha256, None if resume is None else content_of(place))
    manifest.refuse_mixing(resume or (), one_file=one_file)
    try:
        yield manifest
    finally:
        manifest.write()


def libraries() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "--manifest: is written by pyarrow, which is not installed; install unet-deploy with its extra [ray], or "
            "pip install pyarrow"
        ) from error
