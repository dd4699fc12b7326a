"""Files at URLs: read in one piece when they are decoded, written whole or not at all."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePath
from typing import IO, Any
from urllib.parse import urlsplit

from runtime.errors import ConfigError, ImageError, OutputError
from runtime.image_files.sources import reason

URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
"""The beginning of a URL. A protocol has two letters at least, so that no drive of Windows is one."""

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "r2", "memory"})
"""Protocols of stores in which a file appears when all of it was sent."""

WHOLE_BYTES = 2**26
"""Files of at most so many bytes are fetched by one request."""

SEARCHED_BYTES = 2**16
"""Bytes that are fetched at once where the ends of a file are all that is asked for."""


def is_url(text: object) -> bool:
    """Return True for a text that begins with a protocol and "://"."""
    return isinstance(text, str) and URL.match(text) is not None


@dataclass(frozen=True)
class RemoteFile:
    """A file or folder at a URL; `size` is a file's number of bytes where a listing has told it."""

    url: str
    size: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.url

    @property
    def parent(self) -> str:
        """The URL of its folder."""
        return self.url.rpartition("/")[0]

    def __truediv__(self, name: PurePath | str) -> "RemoteFile":
        """Return the file of this name in the folder at this URL."""
        return RemoteFile(f"{self.url}/{PurePath(name).as_posix()}")

    def open(self, *, block_size: int | None = None) -> IO[bytes]:
        """Open the file: a small one is fetched by one request, of others `block_size` bytes at once.

        Raises what fsspec raises.
        """
        system, path = file_system(self.url)
        if block_size is None and self.size is not None and self.size <= WHOLE_BYTES:
            return io.BytesIO(system.cat_file(path))
        file: IO[bytes] = system.open(path, "rb", **({} if block_size is None else {"block_size": block_size}))
        return file

    def write(self, content: bytes) -> None:
        """Write the file whole: stores of objects show it when all was sent, elsewhere it is renamed.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            system, path = file_system(self.url)
            if self.url.partition("://")[0].lower() in OBJECT_STORES:
                system.pipe_file(path, content)
                return
            folder, _, name = path.rpartition("/")
            temporary = f"{folder}/.{name}.{os.urandom(4).hex()}"
            system.makedirs(folder, exist_ok=True)
            try:
                system.pipe_file(temporary, content)
                system.mv(temporary, path)
            except BaseException:
                if system.exists(temporary):
                    system.rm_file(temporary)
                raise
        except ConfigError:
            raise
        except Exception as error:  # each file system has its own errors
            raise OutputError(f"{self.url}: cannot be written ({why(error)})") from error


Place = Path | RemoteFile
"""A file on disk or at a URL."""


class Download:
    """A remote file as a binary file object, which is fetched by the thread that decodes it; `name` is its URL.

    The content is dropped when all of it was read; reading again fetches it again.
    """

    def __init__(self, file: RemoteFile) -> None:
        self.name = file.url
        self._file = file
        self._content: IO[bytes] | None = None

    def read(self, count: int = -1) -> bytes:
        """Return the next `count` bytes.

        Raises:
            ImageError: the file cannot be fetched.
        """
        with remote_errors(self.name):
            if self._content is None:
                self._content = self._file.open()
            piece = self._content.read(count)
            if not piece:
                self._content.close()
                self._content = None
        return piece


def readable(place: Place) -> Path | Download:
    """Return what `Predictor` reads a file from, each time another object."""
    return Download(place) if isinstance(place, RemoteFile) else Path(place)


def content_of(place: Place) -> bytes | None:
    """Return the bytes of a file; None if there is none.

    Raises:
        OutputError: it cannot be read.
    """
    if isinstance(place, Path):
        return place.read_bytes() if place.is_file() else None
    try:
        with place.open() as file:
            return file.read()
    except FileNotFoundError:
        return None
    except ConfigError:
        raise
    except Exception as error:  # each file system has its own errors
        raise OutputError(f"{place}: cannot be read ({why(error)})") from error


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turn what fsspec raises in the block into an `ImageError` about the URL."""
    try:
        yield
    except (ImageError, ConfigError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{url}: no such file or folder") from error
    except Exception as error:  # each file system has its own errors
        raise ImageError(f"{url}: cannot be read ({why(error)})") from error


def why(error: Exception) -> str:
    """Return an error's reason on one line; refusals of a store are told in one word, whatever the store says."""
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, FileNotFoundError):
        return "no such bucket or folder"
    return reason(error)


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        ConfigError: fsspec, or the package for this protocol, is not installed, or the protocol is unknown.
    """
    try:
        fsspec = import_module("fsspec")  # not every installation has it
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{url}: is a URL, which is read by fsspec, and that is not installed; install unet-deploy with its extra "
            "[ray], or pip install fsspec and the package for this protocol, such as s3fs"
        ) from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{url}: needs a package that is not installed ({' '.join(str(error).split())})") from error
    except ValueError as error:
        raise ConfigError(f"{url}: is a URL that is not read ({' '.join(str(error).split())})") from error
    return system, path


def local_path(url: str) -> str:
    """Return the path that a URL file:///folder/file names, and every other text as it is.

    Raises:
        ConfigError: the URL names another machine.
    """
    if not url.lower().startswith("file://"):
        return url
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{url}: names the machine {parts.netloc}; expected three slashes, as in file:///data/images")
    from urllib.request import url2pathname  # loads the modules of HTTP

    return url2pathname(parts.path)
