"""The manifest: its columns, when it is written, and what it keeps of an older one."""

from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

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
        manifest.add(replace(written("c", 1.0, 0.5), file="/elsewhere/c.png"))
        manifest.add(written("d", 3.0, 0.75))
    with open_manifest(path, model, resume=[job(name) for name in "abce"]) as manifest:
        manifest.add(written("b", 1.0, 1.0))
        for name in "ace":
            manifest.add(JobOutcome.skipped(job(name)))
    assert rows(path) == [
        row("b", ms=1.0, foreground=1.0),
        row("a", "skipped", ms=2.5, foreground=0.25),
        row("c", "skipped", model=None),
        row("e", "skipped", model=None),
        row("d", ms=3.0, foreground=0.75),
    ]


def test_a_run_that_ends_early_loses_no_row_of_the_earlier_one(tmp_path, model):
    path = tmp_path / "manifest.parquet"
    with open_manifest(path, model) as manifest:
        for name in "abc":
            manifest.add(written(name, 1.0, 0.5))
    with suppress(KeyboardInterrupt), open_manifest(path, model, resume=[job(name) for name in "abc"]) as manifest:
        manifest.add(JobOutcome.skipped(job("b")))
        raise KeyboardInterrupt
    assert rows(path) == [row(name, "skipped" if name == "b" else "written", ms=1.0, foreground=0.5) for name in "bac"]


def test_answers_of_another_model_are_not_skipped(tmp_path, model):
    path = tmp_path / "manifest.parquet"
    jobs = [job(name) for name in "abc"]
    with open_manifest(path, model) as manifest:
        manifest.add(written("a", 2.5, 0.25))
        manifest.add(JobOutcome.failed(jobs[1], ImageError("bad")))
    before = path.read_bytes()
    model.write_bytes(b"another model")
    with pytest.raises(OutputError) as refused, open_manifest(path, model, resume=jobs):
        pytest.fail("the work began")
    assert str(refused.value) == (
        f"{path}: says that 1 of 3 answers are of another model; leave out --skip-existing to write all anew, or "
        "choose another place with -o"
    )
    assert path.read_bytes() == before
    with open_manifest(path, model, resume=jobs[1:]) as manifest:
        manifest.add(written("b", 1.0, 1.0))
    assert [found["path"] for found in rows(path)] == ["/in/b.jpg", "/in/a.jpg"]


def test_files_of_other_images_are_not_skipped(tmp_path, model):
    path = tmp_path / "manifest.parquet"
    with open_manifest(path, model) as manifest:
        manifest.add(written("a", 2.5, 0.25))
    other = replace(job("a"), source=Path("/another/day/a.jpg"))
    with pytest.raises(OutputError) as refused, open_manifest(path, model, resume=[job("b"), other]):
        pytest.fail("the work began")
    assert str(refused.value) == (
        f"/out/a.png: is the answer to /in/a.jpg, as {path} says, and not to /another/day/a.jpg; choose another place "
        "with -o, or move the manifest if the images were moved"
    )
    with open_manifest(path, model, resume=[job("b"), other], one_file=True) as manifest:
        manifest.add(JobOutcome.lost(other, "bad"))
    assert [found["path"] for found in rows(path)] == ["/another/day/a.jpg", "/in/a.jpg"]


def test_a_job_that_is_killed_leaves_the_rows_of_a_minute_ago(tmp_path, model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    path = tmp_path / "manifest.parquet"
    with open_manifest(path, model) as manifest:
        manifest.add(written("a", 1.0, 0.5))
        assert not path.exists()
        now[0] = module.EVERY
        manifest.add(written("b", 1.0, 0.5))
        assert rows(path) == [row(name, ms=1.0, foreground=0.5) for name in "ab"]
        manifest.add(written("c", 1.0, 0.5))
        assert len(rows(path)) == 2
    assert len(rows(path)) == 3


def test_a_store_that_fails_on_the_way_does_not_end_the_job(tmp_path, model, monkeypatch):
    def refuse(*_, **__):
        raise OutputError("no room")

    monkeypatch.setattr(module, "EVERY", 0)
    path = tmp_path / "manifest.parquet"
    with open_manifest(path, model) as manifest:
        with monkeypatch.context() as broken:
            broken.setattr(module, "write_bytes", refuse)
            manifest.add(written("a", 1.0, 0.5))
            with pytest.raises(OutputError, match="no room"):
                manifest.write()
        manifest.add(written("b", 1.0, 0.5))
    assert len(rows(path)) == 2


def test_work_that_did_not_begin_leaves_the_older_one(tmp_path, model):
    path = tmp_path / "manifest.parquet"
    with open_manifest(path, model) as manifest:
        manifest.add(written("a", 1.0, 0.5))
    before = path.read_bytes()
    with suppress(OutputError), open_manifest(path, model):
        raise OutputError("no device")
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_refused(tmp_path, model):
    with pytest.raises(OutputError) as refused, open_manifest(tmp_path, model):
        pytest.fail("the work began")
    assert str(refused.value) == f"{tmp_path}: is a folder, expected a file name; add one"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError])
def test_it_is_written_also_when_the_work_ends_by_an_error(tmp_path, model, error):
    path = tmp_path / "manifest.parquet"
    with suppress(error), open_manifest(path, model) as manifest:
        manifest.add(written("a", 1.0, 0.5))
        raise error
    assert rows(path) == [row("a", ms=1.0, foreground=0.5)]


def test_another_file_in_its_place_is_refused_before_the_work(tmp_path, model):
    path = tmp_path / "manifest.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(OutputError) as refused, open_manifest(path, model, resume=[]):
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
