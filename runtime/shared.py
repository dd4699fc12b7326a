"""predict(): one line for one image, with models that stay open for the next call."""

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Unpack

from runtime.errors import ModelError
from runtime.image import ImageSource
from runtime.model import identity_of, path_of
from runtime.predictor import Predictor
from runtime.result import Segmentation
from runtime.tiling import Asking

CACHED_PREDICTORS = 4
ATTEMPTS = 5
"""Of opening a file that is replaced meanwhile, again and again."""

_Key = tuple[Path, str, tuple[int, ...]]

_open: OrderedDict[_Key, Predictor] = OrderedDict()
_locks: dict[_Key, threading.Lock] = {}
_lock = threading.Lock()


def predict(
    image: ImageSource, model: str | os.PathLike[str], device: str = "auto", **asking: Unpack[Asking]
) -> Segmentation:
    """Segment one image with the model in a file; see `Predictor.predict`, whose options it takes.

    The last few models stay open for the next call, in any thread; a file that was replaced is opened anew.
    """
    return _predictor(path_of(model), device).predict(image, **asking)


def _predictor(path: Path, device: str) -> Predictor:
    for _ in range(ATTEMPTS - 1):
        identity = identity_of(path)
        try:
            return _opened(path, device, identity)
        except ModelError:
            if identity_of(path) == identity:
                raise
    return _opened(path, device, identity_of(path))


def _opened(path: Path, device: str, identity: tuple[int, ...]) -> Predictor:
    key = (path.absolute(), str(device), identity)
    with _lock:
        if key in _open:
            _open.move_to_end(key)
            return _open[key]
        opening = _locks.setdefault(key, threading.Lock())
    with opening:  # one thread opens it, others that want the same wait
        with _lock:
            if key in _open:
                return _open[key]
        try:
            predictor = Predictor(path, device)
        except BaseException:
            with _lock:
                _locks.pop(key, None)
            raise
        with _lock:
            _locks.pop(key, None)
            for other in [other for other in _open if other[:2] == key[:2]]:
                del _open[other]  # of a file that is not there any more
            _open[key] = predictor
            while len(_open) > CACHED_PREDICTORS:
                _open.popitem(last=False)
        return predictor


def _after_fork() -> None:
    """Other threads may have held the locks, and are not there to let go of them."""
    global _lock
    _lock = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
