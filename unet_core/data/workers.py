"""Processes that load images: their number, the signals that they take, and their errors in the process that trains."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from runtime.errors import UnetError
from runtime.support.cpu_count import available_threads
from runtime.support.files import reason_of
from unet_core.data.restarts import IMPORTED_AGAIN, require_one_start, restarted_script, starts_unguarded

MAX_WORKERS = 8
"""Maximum number of processes by default."""

PREFETCH = 2
"""Number of batches that PyTorch lets each process load ahead."""

SHARED_MEMORY = "/dev/shm"
"""The folder of the tensors that processes pass to one another on Linux."""

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
    require_one_start()
    quiet = loader.worker_init_fn is quiet_worker  # other processes could not be ended: nothing in them takes SIGTERM
    try:
        with sigterm_blocked() if quiet else nullcontext():
            batches = iter(loader)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and starts_unguarded():
            raise UnetError(restarted_script()) from None
        with unraisable_ignored():
            reason = reason_of(error.with_traceback(None))  # frees the iterator, which is half made and complains
        raise UnetError(f"processes that load images cannot be started ({reason}); {NO_SHARED_MEMORY}") from error
    try:
        for batch in batches:
            arrays = isinstance(batch, tuple) and all(isinstance(part, np.ndarray) for part in batch)
            yield tuple(map(torch.from_numpy, batch)) if arrays else batch
    except RuntimeError as error:
        if NO_ROOM in str(error):
            raise UnetError(f"images cannot be passed between processes; {NO_SHARED_MEMORY}") from None
        if KILLED not in str(error):
            raise
        if IMPORTED_AGAIN in [process.exitcode for process in getattr(batches, "_workers", ())]:
            raise UnetError(restarted_script()) from None
        raise UnetError(
            "a process that loads images was killed (out of memory, or /dev/shm too small?); fewer --workers may help"
        ) from error.with_traceback(None)
    except UnetError as error:
        marker = f"{type(error).__module__}.{type(error).__qualname__}: "
        # The traceback keeps the iterator in a cycle; freed from there, it waits 5 s for each of its processes.
        raise type(error)(str(error).rpartition(marker)[2].strip()) from error.with_traceback(None)
    finally:
        del batches  # ends the processes, unless they are kept for the next epoch


def too_large_for_shared_memory(batch_bytes: int, workers: int) -> str | None:
    """Return a note if /dev/shm, 64 MB in a container of Docker, is too small for the batches of so many processes.

    Their batches must then pass through pipes: a process that finds it full is killed.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # another system, or it is missing, which starting the processes will tell
        return None
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine share it
    # Each process has PREFETCH batches ready, one is trained on and one is copied; half is left to other programs.
    needed = 2 * (PREFETCH * workers + 2) * together * batch_bytes
    if not workers or needed <= free:
        return None
    return (
        f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, and --workers {workers} may take {needed / 1e6:.0f} MB: images "
        f"pass through pipes instead, which is slower (of a container: --shm-size {-(-needed // 10**9)}g)"
    )


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
