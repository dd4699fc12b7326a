"""Files at URLs: reading, writing whole, and what is said of those that cannot be."""

import sys

import fsspec
import pytest
from stores import empty_memory

from runtime.errors import ConfigError, ImageError, OutputError
from runtime.storage.remote import (
    WHOLE_BYTES,
    Download,
    RemoteFile,
    content_of,
    file_system,
    is_url,
    local_path,
)


@pytest.fixture
def memory():
    with empty_memory() as system:
        yield system


@pytest.mark.parametrize("text", ["s3://bucket/a.png", "gs://b", "file:///a", "S3://B", "abfss://x@y/z"])
def test_urls_are_known(text):
    assert is_url(text)


@pytest.mark.parametrize("text", ["a.png", "/a//b", "s3:/b/a", "C://a", "data:image/png;base64,AA", "in/*.png", ""])
def test_paths_are_no_urls(text):
    assert not is_url(text)


def test_a_file_url_is_a_path():
    assert local_path("file:///data/my%20images") == "/data/my images"
    assert local_path("file://localhost/a") == "/a"
    assert local_path("s3://b/a%20b") == "s3://b/a%20b"
    with pytest.raises(ConfigError) as refused:
        local_path("file://server/a")
    assert str(refused.value) == (
        "file://server/a: names the machine server; expected three slashes, as in file:///data/images"
    )


def test_what_is_written_is_read(memory):
    file = RemoteFile("memory://bucket/sub") / "a.bin"
    assert (str(file), file.parent) == ("memory://bucket/sub/a.bin", "memory://bucket/sub")
    assert content_of(file) is None
    file.write(b"one")
    file.write(b"two")
    assert content_of(file) == b"two" and memory.find("/bucket") == ["/bucket/sub/a.bin"]


@pytest.mark.parametrize("size", [None, 3, WHOLE_BYTES + 1])
def test_a_download_gives_pieces_and_begins_anew_at_its_end(memory, size):
    memory.pipe_file("/b/a", b"abc")
    download = Download(RemoteFile("memory://b/a", size))
    assert download.name == "memory://b/a"
    assert [download.read(2) for _ in range(4)] == [b"ab", b"c", b"", b"ab"]


def test_a_small_file_is_fetched_by_one_request_and_a_large_one_is_not(memory, monkeypatch):
    memory.pipe_file("/b/a", b"abc")
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: b"in one piece")
    assert Download(RemoteFile("memory://b/a", 3)).read() == b"in one piece"
    assert Download(RemoteFile("memory://b/a", WHOLE_BYTES + 1)).read() == b"abc"


def test_a_file_that_is_not_there_is_an_image_error(memory):
    with pytest.raises(ImageError) as refused:
        Download(RemoteFile("memory://b/gone.png", 3)).read()
    assert str(refused.value) == "memory://b/gone.png: no such file or folder"


def test_other_errors_of_a_store_are_told_with_the_url(memory, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("Access Denied for key AKIA")

    memory.pipe_file("/b/a", b"abc")
    monkeypatch.setattr(type(memory), "cat_file", refuse)
    monkeypatch.setattr(type(memory), "pipe_file", refuse)
    with pytest.raises(ImageError) as unread:
        Download(RemoteFile("memory://b/a", 3)).read()
    assert str(unread.value) == "memory://b/a: cannot be read (permission denied)"
    with pytest.raises(OutputError) as unwritten:
        RemoteFile("memory://b/a").write(b"")
    assert str(unwritten.value) == "memory://b/a: cannot be written (permission denied)"


def test_where_files_appear_while_they_are_sent_they_are_renamed(tmp_path, monkeypatch):
    file = RemoteFile(f"local://{tmp_path}/out/sub/a.bin")
    (tmp_path / "out" / "sub").mkdir(parents=True)
    seen = []
    system, _ = file_system(file.url)
    kept = type(system).pipe_file

    def watched(self, path, content, **named):
        kept(self, path, content, **named)
        seen.append([found.name for found in (tmp_path / "out" / "sub").iterdir()])

    monkeypatch.setattr(type(system), "pipe_file", watched)
    file.write(b"abc")
    ((temporary,),) = seen
    assert temporary.startswith(".a.bin.")
    assert [found.name for found in (tmp_path / "out" / "sub").iterdir()] == ["a.bin"]
    assert (tmp_path / "out" / "sub" / "a.bin").read_bytes() == b"abc"

    def broken(self, path, content, **named):
        kept(self, path, content[:1], **named)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(system), "pipe_file", broken)
    with pytest.raises(OutputError, match=r"a\.bin: cannot be written \(no space left on device\)$"):
        file.write(b"new")
    assert [found.name for found in (tmp_path / "out" / "sub").iterdir()] == ["a.bin"]
    assert content_of(file) == b"abc"


def test_an_unknown_protocol_and_missing_packages_are_told(monkeypatch):
    with pytest.raises(ConfigError) as unknown:
        file_system("carrier-pigeon://b/a")
    assert str(unknown.value) == (
        "carrier-pigeon://b/a: is a URL that is not read (Protocol not known: carrier-pigeon)"
    )

    def missing(*_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError) as refused:
        file_system("s3://b/a")
    assert str(refused.value) == "s3://b/a: needs a package that is not installed (Install s3fs to access S3)"
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError) as refused:
        file_system("s3://b/a")
    assert str(refused.value) == (
        "s3://b/a: is a URL, which is read by fsspec, and that is not installed; install unet-deploy with its extra "
        "[ray], or pip install fsspec and the package for this protocol, such as s3fs"
    )
