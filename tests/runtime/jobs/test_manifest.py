"""The manifest: its columns, when it is published, and what it keeps of an older one."""

from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet
import pytest

from runtime.errors import ImageError, OutputError
from runtime.jobs import manifest as module
from runtime.jobs.job import Job
from runtime.jobs.manifest import open_manifest
from runtime.jobs.outcome import JobOutcome
from runtime.result import Times

SHA = sha256(b"a model").hexdigest()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a model")
    return path


def job(name):
    return Job(Path("/in", f"{name}.jpg"), Path("/out", f"{name}.png"), f"{name}.png")


def rows(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def row(name, status="written", file=True, error=None, ms=None, foreground=None, model=SHA):
    return {
        "path": f"/in/{name}.jpg",
        "file": f"/out/{name}.png" if file else None,
        "status": status,
        "error": error,
        "ms": ms,
        "foreground": foreground,
        "model": model,
    }


def written(name, ms, foreground):
    return JobOutcome(path=f"/in/{name}.jpg", file=f"/out/{name}.png", status="written", ms=ms, foreground=foreground)


def test_a_row_for_each_outcome(tmp_path, model, monkeypatch):
    monkeypatch.setattr(module, "GROUP", 2)
    path = tmp_path / "made" / "manifest.parquet"
    with open_manifest(path, model) as manifest:
        manifest.add(written("a", 2.5, 0.25))
        manifest.add(JobOutcome.failed(job("b"), ImageError("/in/b.jpg: is empty\nor so")))
        manifest.add(JobOutcome.skipped(job("c")))
        assert not path.exists()
    assert rows(path) == [
        row("a", ms=2.5, foreground=0.25),
        row("b", "failed", file=False, error="/in/b.jpg: is empty or so"),
        row("c", "skipped", model=None),
    ]
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 2


def test_skipped_images_keep_what_an_older_manifest_says_of_them(tmp_path, model):
    path = tmp_path / "manifest.parquet"
    with open_manifest(path, model) as manifest:
        manifest.add(written("a", 2.5, 0.25))
        manifest.add(JobOutcome.failed(job("b"), ImageError("bad")))
    model.write_bytes(b"another model")
    with open_manifest(path, model, keep=True) as manifest:
        manifest.add(JobOutcome.skipped(job("a")))
        manifest.add(written("b", 1.0, 1.0))
        manifest.add(JobOutcome.skipped(job("c")))
    other = sha256(b"another model").hexdigest()
    assert rows(path) == [
        row("a", "skipped", ms=2.5, foreground=0.25),
        row("b", ms=1.0, foreground=1.0, model=other),
        row("c", "skipped", model=None),
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError])
def test_it_is_published_also_when_the_work_ends_by_an_error(tmp_path, model, error):
    path = tmp_path / "manifest.parquet"
    with suppress(error), open_manifest(path, model) as manifest:
        manifest.add(written("a", 1.0, 0.5))
        raise error
    assert rows(path) == [row("a", ms=1.0, foreground=0.5)]


def test_another_file_in_its_place_is_refused_before_the_work(tmp_path, model):
    path = tmp_path / "manifest.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(OutputError) as refused, open_manifest(path, model, keep=True):
        pytest.fail("the work began")
    assert str(refused.value) == f"{path}: is no manifest of an earlier run; move it, or choose another one"
    assert path.read_bytes() == b"no parquet"


def test_without_a_place_there_is_none(tmp_path):
    with open_manifest(None, tmp_path / "no model") as manifest:
        assert manifest is None


def test_an_outcome_tells_share_and_time_where_they_are_asked_for(single):
    timed = replace(single, times=Times(decode=1, fit=2, transfer=3, infer=4, restore=5))
    outcome = JobOutcome.of(job("a"), timed, measured=True, entry="e")
    assert (outcome.status, outcome.path, outcome.file) == ("written", "/in/a.jpg", "/out/a.png")
    assert (outcome.ms, outcome.foreground) == (15, 0.5)
    unmeasured = JobOutcome.of(job("a"), timed, measured=False)
    assert (unmeasured.ms, unmeasured.foreground) == (None, None)
