"""The number of threads that every contestant has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Give PyTorch (within an operator; if it is installed), OpenCV and processes that are started so many threads."""
    import cv2

    torch: Any = None
    with suppress(Exception):  # it is not installed, or damaged; the parts that need it say so
        torch = import_module("torch")
    before = cv2.getNumThreads(), {name: os.environ.get(name) for name in THREAD_VARIABLES}
    of_torch = torch.get_num_threads() if torch is not None else 0
    cv2.setNumThreads(threads)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if torch is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(of_torch)
        cv2.setNumThreads(before[0])
        for name, value in before[1].items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
