"""PredictorCache: models that stay open for the next call, in any thread."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from runtime.errors import ModelError
from runtime.model_file.reader import identity_of

CACHED_PREDICTORS = 4
ATTEMPTS = 5
"""Attempts to open a file that is replaced meanwhile, again and again."""

P = TypeVar("P")

_Key = tuple[Path, str, bool, tuple[int, ...]]

_caches: "weakref.WeakSet[PredictorCache[object]]" = weakref.WeakSet()


class PredictorCache(Generic[P]):
    """The last few predictors that were asked for, by file, device and `verify`; a replaced file is opened anew.

    Args:
        open_predictor: opens the file at a path on a device; the last argument says if its digest is verified.
    """

    def __init__(self, open_predictor: Callable[[Path, str, bool], P]) -> None:
        self._open_predictor = open_predictor
        self._kept: OrderedDict[_Key, P] = OrderedDict()
        self._opening: dict[_Key, threading.Lock] = {}
        self._lock = threading.Lock()
        _caches.add(self)  # type: ignore[arg-type]

    def get(self, path: Path, device: str, verify: bool = True) -> P:
        """Return the predictor of a file on a device; open it if it is not kept.

        Raises:
            ModelError: the file is not taken, or was replaced `ATTEMPTS` times while it was being opened.
        """
        for _ in range(ATTEMPTS - 1):
            identity = identity_of(path)
            try:
                return self._get(path, device, verify, identity)
            except ModelError:
                if identity_of(path) == identity:
                    raise
        return self._get(path, device, verify, identity_of(path))

    def _get(self, path: Path, device: str, verify: bool, identity: tuple[int, ...]) -> P:
        key = (path.absolute(), str(device), bool(verify), identity)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:  # one thread opens it, others that want the same wait
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            try:
                predictor = self._open_predictor(path, device, verify)
            except BaseException:
                with self._lock:
                    self._opening.pop(key, None)
                raise
            with self._lock:
                self._opening.pop(key, None)
                for other in [other for other in self._kept if other[:3] == key[:3]]:
                    del self._kept[other]  # of a file that is not there any more
                self._kept[key] = predictor
                while len(self._kept) > CACHED_PREDICTORS:
                    self._kept.popitem(last=False)
            return predictor

    def clear(self) -> None:
        """Forget all predictors; those that nobody else holds give their memory back."""
        with self._lock:
            self._kept.clear()

    def reset_locks(self) -> None:
        """Make new locks: after a fork, other threads may have held the old ones, and are not there to release them."""
        self._lock = threading.Lock()
        self._opening.clear()


def _after_fork() -> None:
    for cache in list(_caches):
        cache.reset_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
