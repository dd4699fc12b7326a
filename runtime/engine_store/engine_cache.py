"""TensorRT engines kept on disk: found by content, loaded only from a folder that is ours alone.

ONNX Runtime names engines after the graph, not after its weights, and an engine is executable code. So each engine has
a folder of its own, named after a hash over everything that makes it what it is:

    <user cache>/unet-deploy/engines/     0700
        <key>/                            0700: what ONNX Runtime wrote, and manifest.json with its hashes
        <key>.lock                        held by the process that builds or loads it
        .<key>.<random>/                  being built, or left by a process that was killed
        timing-<hash>/                    measured kernels of one GPU and its versions

An engine is published by renaming its folder, so others see all of it or nothing. What is damaged, or what TensorRT
does not take, is built anew once; other errors, of full memory say, are not the engine's fault and pass through.
`runtime.support.permissions` says whose folders and files are trusted.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runtime.engine_store.lock import locked
from runtime.engine_store.permissions import ENGINES, explained
from runtime.errors import OutputError
from runtime.support.files import write_text

MANIFEST, LOCK, TIMING = "manifest.json", ".lock", ".timing"
KEY_DIGITS = 64
MAX_MANIFEST = 2**20

T = TypeVar("T")
Load = Callable[[Path, bool], T]
"""Opens a session on a folder's engine; with True it builds one there instead."""


class DamagedError(Exception):
    """An engine that has to be built anew; says why."""


class WrongError(DamagedError):
    """An engine that answers wrongly. If it did so when it was new, another one would too."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One engine on disk: `bytes` of its files, last `used` and `created` in seconds since 1970, what it is `about`."""

    key: str
    path: Path
    bytes: int
    used: float
    created: float
    about: Mapping[str, Any]


def user_cache() -> Path:
    """The user's cache folder for this library: by XDG_CACHE_HOME, or as Windows and macOS have it.

    A user who has no home folder, as in containers, has it at "/", where few may write.
    """
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/")
    if sys.platform == "win32":
        return (
            Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "unet-deploy" / "unet-deploy" / "Cache"
        )
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "unet-deploy"
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else home / ".cache") / "unet-deploy"  # noqa: PTH117 - "" is none


class EngineCache:
    """Engines in a folder; any number of threads and processes may use it at once."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        given = Path(folder).absolute() if folder is not None else user_cache() / "engines"
        self.folder = Path(os.path.realpath(given.parent)) / given.name

    def __contains__(self, key: str) -> bool:
        """Return True if there is an engine under this key, by its manifest; `open` looks closer."""
        return (self.folder / key / MANIFEST).is_file()

    def open(
        self,
        key: str,
        about: Mapping[str, Any],
        load: Load[T],
        note: Callable[[str], None],
        *,
        timing: str = "",
        sound: Callable[[Exception], bool] = lambda _: False,
    ) -> T:
        """Load an engine, or build and publish it, and return what `load` gives.

        `load` is called with an engine's folder and False. If there is no engine, or `load` raises `DamagedError` or
        rebuilds it, `load` is called once with a new folder and True. `timing` is the key that measured kernels are
        kept under; "" keeps none. They are in the new folder, and `load` is called once more without them if it raises
        `DamagedError` there. An engine that was built is kept although `load` raises an error that is `sound`: one that
        says no more than that the engine finds no room now. So is one that answers wrongly, and it is not built again.

        Raises:
            WrongError: `load` raises it for an engine that is new, or was wrong when it was.
            DeviceError: the folder is not ours alone, or cannot be written; and whatever else `load` raises.
        """
        self.make_safe()
        with locked(self._lock(key), note):
            self._sweep(key)
            entry = self.folder / key
            if os.path.lexists(entry):
                try:
                    return self._load(entry, load)
                except DamagedError as damage:
                    if isinstance(damage, WrongError) and _read_manifest(entry).get("wrong") is True:
                        raise
                    note(f"engine {key[:12]}: {damage}; it is built anew")
            return self._build(key, about, load, note, timing, sound)

    def _load(self, entry: Path, load: Load[T]) -> T:
        ENGINES.check_own(entry, folder=True)
        files = _read_manifest(entry)["files"]
        found = {path.name for path in entry.iterdir()} - {MANIFEST}
        if found != files.keys():
            raise DamagedError(f"has other files than its manifest says ({', '.join(sorted(found ^ files.keys()))})")
        for name, expected in files.items():
            ENGINES.check_own(entry / name)
            if _digest(entry / name) != expected:
                raise DamagedError(f"{name} does not have its hash")
        loaded = load(entry, False)
        if _manifest_of(entry) != files:
            raise DamagedError("was changed when it was loaded, so TensorRT found it stale")
        with suppress(OSError):  # a read-only disk
            os.utime(entry / MANIFEST)
        return loaded

    def _build(
        self,
        key: str,
        about: Mapping[str, Any],
        load: Load[T],
        note: Callable[[str], None],
        timing: str,
        sound: Callable[[Exception], bool],
    ) -> T:
        temporary = self.folder / f".{key}.{os.urandom(4).hex()}"
        start = time.monotonic()

        def keep(**facts: bool) -> None:
            try:
                self._keep_timing(temporary, timing)
                seconds = round(time.monotonic() - start, 1)
                self._publish(key, temporary, {"about": dict(about), "seconds": seconds, **facts})
            except (OSError, OutputError) as error:  # the disk is full, say: the session works all the same
                note(f"engine {key[:12]}: is not kept for the next start ({error})")

        try:
            with explained(self.folder):
                temporary.mkdir(mode=0o700)
                self._copy_timing(timing, temporary)
            built = self._load_new(key, temporary, load, note)
            keep()
            return built
        except WrongError:
            keep(wrong=True)
            raise
        except Exception as error:
            if sound(error):
                keep()
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _load_new(self, key: str, folder: Path, load: Load[T], note: Callable[[str], None]) -> T:
        timings = list(folder.glob(f"*{TIMING}"))
        try:
            return load(folder, True)
        except DamagedError as damage:
            if isinstance(damage, WrongError) or not timings:
                raise
            note(f"measured kernels of engine {key[:12]}: {damage}; they are measured anew")
        for path in timings:
            path.unlink()
        return load(folder, True)  # after the error, which held memory

    def _publish(self, key: str, temporary: Path, facts: Mapping[str, Any]) -> None:
        files = _manifest_of(temporary)
        if not files:
            raise OSError("ONNX Runtime wrote no engine")
        for path in temporary.iterdir():
            path.chmod(0o600)
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        manifest = {"key": key, "created": time.time(), "files": files, **facts}
        write_text(temporary / MANIFEST, json.dumps(manifest, sort_keys=True, indent=1))
        (temporary / MANIFEST).chmod(0o600)
        _remove(self.folder / key)
        temporary.rename(self.folder / key)

    def _copy_timing(self, timing: str, folder: Path) -> None:
        kept = self.folder / f"timing-{timing}"
        if not timing or not os.path.lexists(kept):
            return
        ENGINES.check_own(kept, folder=True)
        for path in kept.glob(f"*{TIMING}"):
            ENGINES.check_own(path)
            shutil.copyfile(path, folder / path.name)

    def _keep_timing(self, folder: Path, timing: str) -> None:
        """Move the measured kernels out of an engine's folder; of two that build at once the later one's are kept."""
        for path in folder.glob(f"*{TIMING}"):
            if timing:
                kept = self.folder / f"timing-{timing}"
                kept.mkdir(mode=0o700, exist_ok=True)
                path.chmod(0o600)
                path.replace(kept / path.name)
            else:
                path.unlink()

    def entries(self) -> list[Entry]:
        """All engines, the longest unused first."""
        found = []
        for manifest in self.folder.glob(f"{'[0-9a-f]' * KEY_DIGITS}/{MANIFEST}"):
            with suppress(OSError, DamagedError):  # removed just now, or built anew at its next use
                data = _read_manifest(manifest.parent)
                found.append(
                    Entry(
                        key=manifest.parent.name,
                        path=manifest.parent,
                        bytes=sum(path.stat().st_size for path in manifest.parent.iterdir()),
                        used=manifest.stat().st_mtime,
                        created=data["created"],
                        about=data["about"],
                    )
                )
        return sorted(found, key=lambda entry: entry.used)

    def prune(self, *, unused_days: float | None = None, max_bytes: int | None = None) -> list[Entry]:
        """Remove engines unused for so many days, then the longest unused ones until at most `max_bytes` are left.

        The remains of killed processes go too. Engines that are being built or loaded stay. Returns what was removed.

        Raises:
            DeviceError: the folder is not ours alone.
        """
        if not self.folder.is_dir():
            return []
        self.make_safe()
        self._remove_unfinished()
        entries = self.entries()
        left, removed = sum(entry.bytes for entry in entries), []
        for entry in entries:
            old = unused_days is not None and time.time() - entry.used > unused_days * 86_400
            if (old or (max_bytes is not None and left > max_bytes)) and self._remove_unused(entry.key):
                left -= entry.bytes
                removed.append(entry)
        return removed

    def _remove_unused(self, key: str) -> bool:
        lock = self._lock(key)
        with suppress(BlockingIOError), locked(lock, None):
            self._sweep(key)
            _remove(self.folder / key)
            with suppress(OSError):  # Windows keeps a lock that is held
                lock.unlink()
            return True
        return False

    def _remove_unfinished(self) -> None:
        for key in {path.name[1 : 1 + KEY_DIGITS] for path in self.folder.glob(f".{'[0-9a-f]' * KEY_DIGITS}.*")}:
            with suppress(BlockingIOError), locked(self._lock(key), None):
                self._sweep(key)

    def _sweep(self, key: str) -> None:
        """Remove the remains of killed processes; call it with the lock held."""
        for path in self.folder.glob(f".{key}.*"):
            _remove(path)

    def _lock(self, key: str) -> Path:
        return self.folder / f"{key}{LOCK}"

    def make_safe(self) -> None:
        with explained(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            ENGINES.check_own(self.folder, folder=True)
            for parent in self.folder.parents:
                ENGINES.check_parent(parent)


def _read_manifest(entry: Path) -> dict[str, Any]:
    path = entry / MANIFEST
    try:
        ENGINES.check_own(path)
        if path.stat().st_size > MAX_MANIFEST:
            raise DamagedError("its manifest is too large")
        data = json.loads(path.read_bytes())
        whole = (
            data["key"] == entry.name
            and isinstance(data["files"], dict)
            and isinstance(data["about"], dict)
            and isinstance(data["created"], float)
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError("has no manifest that can be read") from error
    if not whole:
        raise DamagedError("has another engine's manifest")
    return dict(data)


def _manifest_of(folder: Path) -> dict[str, str]:
    return {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Remove a folder, or whatever is in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
