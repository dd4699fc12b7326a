"""The models that a server has open, each of which is swapped when its file is replaced."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from runtime.errors import ModelError, UnetError, one_line
from runtime.inference.batcher import Batching
from runtime.model_file.reader import identity_of
from runtime.predictor import Predictor
from runtime.serve.logs import tell
from runtime.serve.problems import RequestRefusedError
from runtime.serve.settings import ServerSettings

WAITING = 8
"""Decoded images that wait for the network, beside its batch; more requests wait with their encoded images."""

RETRIES = 5
"""Attempts to open a file that is replaced while it is opened."""


class Generation:
    """One content of a model's file, open until the last request that took it is answered.

    Attributes:
        predictor: the model.
        sha256: SHA-256 of the file, 64 hexadecimal digits.
        identity: values that change when the file is replaced.
        loaded: when it was opened.
    """

    def __init__(self, path: Path, settings: ServerSettings, on_batch: Callable[[int], object]) -> None:
        batching = Batching(
            max_batch=settings.max_batch,
            max_delay_ms=settings.max_delay_ms,
            max_waiting=max(WAITING, settings.max_batch or 0),
            on_batch=on_batch,
        )
        for _ in range(RETRIES):
            self.identity = identity_of(path)
            self.predictor = Predictor(
                path,
                settings.device,
                settings.threads,
                limits=settings.limits(),
                batching=batching,
                verify=settings.verify,
            )
            with open(path, "rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if identity_of(path) == self.identity:
                break
            self.predictor.close()
        else:
            raise ModelError(f"{path}: was replaced while it was being opened, {RETRIES} times; ask again")
        self.loaded = datetime.now(UTC)
        self._users, self._is_retired = 0, False

    @contextmanager
    def used(self) -> Iterator["Generation"]:
        """Keep the model open within the block; called in the event loop's thread."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """Close the model when nobody uses it any more."""
        self._is_retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_retired and not self._users:
            asyncio.get_running_loop().run_in_executor(None, self.predictor.close)  # waits for what was cancelled


class ServedModel:
    """A model by its name, with the `Generation` that answers now."""

    def __init__(self, name: str, path: Path, settings: ServerSettings, on_batch: Callable[[str, int], object]) -> None:
        self.name, self.path = name, path.absolute()
        self._settings = settings
        self._on_batch: Callable[[int], object] = lambda count: on_batch(name, count)
        self.current = Generation(self.path, settings, self._on_batch)
        self._refused: tuple[int, ...] = ()

    async def look(self) -> bool | None:
        """Swap the model if its file was replaced; True if that succeeded, False if not, None if nothing changed.

        A file that is damaged or not complete yet changes nothing, and is tried again when it changes.
        """
        found = identity_of(self.path)
        if not found or found in (self.current.identity, self._refused):
            return None
        began = time.monotonic()
        self._refused = found  # whatever is raised, as for want of memory; a try costs much and is not for each look
        try:
            fresh = await asyncio.to_thread(Generation, self.path, self._settings, self._on_batch)
        except (UnetError, OSError, MemoryError) as error:
            reason = one_line(str(error)) or "out of memory"
            tell("error", "model was not swapped; the old one goes on", model=self.name, error=reason)
            return False
        old, self.current = self.current, fresh
        seconds = round(time.monotonic() - began, 3)
        tell("info", "model swapped", model=self.name, sha256=fresh.sha256, before=old.sha256, seconds=seconds)
        old.retire()
        return True


class ModelStore:
    """All models of a server, by name.

    Raises:
        UnetError: a model cannot be opened; see `Predictor`.
    """

    def __init__(self, settings: ServerSettings, on_batch: Callable[[str, int], object]) -> None:
        self.models = {name: ServedModel(name, path, settings, on_batch) for name, path in settings.models}

    def named(self, name: str | None) -> ServedModel:
        """Return a model, the first one for None.

        Raises:
            RequestRefusedError: there is no model of this name.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise RequestRefusedError(404, f"model: found {one_line(name)!r}, expected {', '.join(self.models)}")
        return self.models[name]

    def close(self) -> None:
        """Finish what runs, and give all memory back."""
        for model in self.models.values():
            model.current.predictor.close()
