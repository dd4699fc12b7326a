"""Images at URLs: one file, all that a folder holds, or those that fit a pattern."""

import glob
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePath, PurePosixPath
from typing import Any

from runtime.image_files.folders import count_left_out
from runtime.storage.remote import RemoteFile, file_system, remote_errors


@dataclass(frozen=True, kw_only=True)
class RemoteSearch:
    """A search for images at URLs, which are known by their suffix alone: each file would have to be fetched.

    Attributes:
        suffixes: suffixes of images, in lower case.
        without: URL of a folder that is not searched, or None.
        left_out: counts the suffixes of files that are no images.
    """

    suffixes: Collection[str]
    without: str | None
    left_out: Counter[str]

    def images_of(self, url: str) -> list[tuple[RemoteFile, PurePath]]:
        """List the images of a file, a folder with all below, or a pattern of `*`, `?`, `[...]` and `**`, sorted.

        Each has its name relative to the folder, pattern or file. What is hidden is left out.

        Raises:
            ImageError: the URL cannot be listed.
            ConfigError: no package for this protocol is installed.
        """
        with remote_errors(url):
            system, path = file_system(url)
            path = path.rstrip("/")
            if not glob.has_magic(path) or system.exists(path):
                found = files_of(system, url, path, system.find(path, detail=True))
                if len(found) == 1 and found[0][0] == path:  # a file that was named is an image, whatever it is called
                    return [(found[0][1], PurePosixPath(path.rpartition("/")[2]))]
                return list(self._images(found, path))
            matches = system.glob(path, detail=True)
            if "**" in path:
                root = "/".join(takewhile(lambda part: not glob.has_magic(part), path.split("/")))
                return list(self._images(files_of(system, url, path, matches), root))
            items: list[tuple[RemoteFile, PurePath]] = []
            for match, facts in sorted(matches.items()):
                name = PurePosixPath(match).name
                if name.startswith("."):
                    continue
                if facts.get("type") == "directory":
                    items += self._images(files_of(system, url, path, system.find(match, detail=True)), match)
                else:
                    items += [(file, PurePosixPath(name)) for _, file in files_of(system, url, path, {match: facts})]
            return items

    def _images(self, found: Sequence[tuple[str, RemoteFile]], root: str) -> Iterator[tuple[RemoteFile, PurePath]]:
        """Yield the images among files, each with its name in the folder `root`."""
        for path, file in found:
            name = PurePosixPath(path[len(root) :].lstrip("/"))
            is_hidden = any(part.startswith(".") for part in name.parts)
            if is_hidden or (self.without is not None and file.url.startswith(f"{self.without}/")):
                continue
            if name.suffix.lower() in self.suffixes:
                yield file, name
            else:
                count_left_out(name, self.left_out)


def files_of(system: Any, url: str, path: str, found: dict[str, Any]) -> list[tuple[str, RemoteFile]]:
    """Return the files among what fsspec lists, sorted by path, with the sizes that it tells.

    `path` is what fsspec makes of `url`; so what stands before it in the URL stands before the paths of all files.
    """
    bare, text = path.lstrip("/"), url.rstrip("/")
    before = text[: len(text) - len(bare)] if text.endswith(bare) else None
    files = []
    for one, facts in sorted(found.items()):
        if facts.get("type") == "directory" or one.endswith("/"):
            continue
        full = system.unstrip_protocol(one) if before is None else before + one.lstrip("/")
        size = facts.get("size")
        files.append((one, RemoteFile(full, size if isinstance(size, int) else None)))
    return files
