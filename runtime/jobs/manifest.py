"""The manifest: a Parquet file with a row for each image, written as they come and published at the end."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError, OutputError
from runtime.jobs.outcome import JobOutcome
from runtime.storage.remote import Place, RemoteFile, content_of
from runtime.support.files import reason_of, write_bytes

GROUP = 10_000
"""Rows that are written to the file at once."""

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
    """A Parquet file of outcomes.

    Args:
        path: the file on disk.
        model: the sha256 of the model's file, which stands in each row.
        older: rows of an older manifest by path: what they say of an answer is kept where it is skipped now.
    """

    def __init__(self, path: Path, model: str, older: dict[str, dict[str, Any]]) -> None:
        self._arrow, parquet = libraries()
        self._schema = self._arrow.schema([(name, getattr(self._arrow, kind)()) for name, kind in COLUMNS.items()])
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._model, self._older = model, older

    def add(self, outcome: JobOutcome) -> None:
        """Write a row."""
        row = {name: getattr(outcome, name, None) or None for name in ("path", "file", "status", "error")}
        row |= {"ms": outcome.ms, "foreground": outcome.foreground, "model": self._model}
        if outcome.status == "skipped":
            row |= self._older.get(outcome.path, {"model": None})
        self._rows.append(row)
        if len(self._rows) >= GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []


@contextmanager
def open_manifest(place: Place | None, model: Path, *, keep: bool = False) -> Iterator[Manifest | None]:
    """Open a manifest at a path or URL; it is published when the block ends, also by an error or Ctrl-C.

    `model` is the model's file. With `keep`, images that are skipped keep what an older manifest there says of them.
    Without a place there is no manifest.

    Raises:
        ConfigError: pyarrow is not installed.
        OutputError: the manifest cannot be written.
    """
    if place is None:
        yield None
        return
    libraries()
    with tempfile.TemporaryDirectory(prefix="unet-") as folder:
        path = Path(folder, "manifest.parquet")
        with open(model, "rb") as file:
            manifest = Manifest(path, sha256(file.read()).hexdigest(), read_answers(place) if keep else {})
        try:
            yield manifest
        finally:
            try:
                manifest.close()
                content = path.read_bytes()
            except OSError as error:
                raise OutputError(f"{place}: cannot be written ({reason_of(error)}); free some space") from error
            if isinstance(place, RemoteFile):
                place.write(content)
            else:
                write_bytes(place, content, follow=True)


def read_answers(place: Place) -> dict[str, dict[str, Any]]:
    """Return what the manifest at a place says of answers, by path: `ms`, `foreground` and `model`.

    Raises:
        OutputError: the file is no manifest.
    """
    arrow, parquet = libraries()
    content = content_of(place)
    if content is None:
        return {}
    try:
        table = parquet.read_table(arrow.BufferReader(content), columns=["path", "ms", "foreground", "model", "status"])
    except Exception as error:  # pyarrow has its own errors
        raise OutputError(f"{place}: is no manifest of an earlier run; move it, or choose another one") from error
    rows = (row for row in table.to_pylist() if row.pop("status") != "failed")
    return {row.pop("path"): row for row in rows}


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
