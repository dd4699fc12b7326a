"""Processes that load images: their number, the signals that they take, and their errors in the process that trains."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import cv2
from torch.utils.data import DataLoader

from runtime.errors import UnetError
from runtime.support.cpu_count import available_threads
from runtime.support.files import reason_of

MAX_WORKERS = 8
"""Maximum number of processes by default."""

NO_ROOM = "shared memory"
"""Part of PyTorch's errors about /dev/shm."""

NO_SHARED_MEMORY = "let /dev/shm be writable and larger (of a container: --shm-size or --ipc=host), or give --workers 0"

KILLED = "DataLoader worker (pid"
"""Beginning of PyTorch's error about a loading process that was killed."""


def default_workers() -> int:
    """Number of processes that load images beside the one that computes: one per core, at most `MAX_WORKERS`."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine share its cores
    return min(max(1, available_threads() // together), MAX_WORKERS)


def batches_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader; an error in one of its processes is raised here with its own type and message.

    PyTorch would raise it with the traceback of the process as its message.

    Raises:
        UnetError: an image cannot be read, a loading process was killed, or there is no shared memory for them.
    """
    quiet = loader.worker_init_fn is quiet_worker  # other processes could not be ended: nothing in them takes SIGTERM
    try:
        with sigterm_blocked() if quiet else nullcontext():
            batches = iter(loader)
    except OSError as error:
        with unraisable_ignored():
            reason = reason_of(error.with_traceback(None))  # frees the iterator, which is half made and complains
        raise UnetError(f"processes that load images cannot be started ({reason}); {NO_SHARED_MEMORY}") from error
    try:
        yield from batches
    except RuntimeError as error:
        if NO_ROOM in str(error):
            raise UnetError(f"images cannot be passed between processes; {NO_SHARED_MEMORY}") from None
        if KILLED not in str(error):
            raise
        raise UnetError(
            "a process that loads images was killed (out of memory, or /dev/shm too small?); fewer --workers may help"
        ) from error.with_traceback(None)
    except UnetError as error:
        marker = f"{type(error).__module__}.{type(error).__qualname__}: "
        # The traceback keeps the iterator in a cycle; freed from there, it waits 5 s for each of its processes.
        raise type(error)(str(error).rpartition(marker)[2].strip()) from error.with_traceback(None)
    finally:
        del batches  # ends the processes, unless they are kept for the next epoch


@contextmanager
def unraisable_ignored() -> Iterator[None]:
    """Print no errors of objects that are freed in the block."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def sigterm_blocked() -> Iterator[None]:
    """Start processes in the block with SIGTERM blocked in all their threads; see `quiet_worker`."""
    if sys.platform == "linux":
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        yield


def quiet_worker(_: int) -> None:
    """Set up a loading process: it uses one core and leaves signals to the process that trains.

    Otherwise OpenCV would start threads for all cores in every process.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=exit_on_sigterm_of, args=(os.getppid(),), daemon=True).start()


def exit_on_sigterm_of(parent: int) -> None:
    """Exit on SIGTERM of the parent only; if it were ignored, the parent would wait for this process after an error."""
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)
