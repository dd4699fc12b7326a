"""Loading processes: their number, their errors, and the signals that they obey."""

import errno
import gc
import multiprocessing
import multiprocessing.synchronize
import signal
import subprocess
import time

import pytest
from torch.utils.data import DataLoader

from runtime.card import InputSpec
from runtime.errors import ImageError, UnetError
from unet_core.data import workers as loading
from unet_core.data.dataset import EpochBatches, TrainingSet
from unet_core.data.labels import LabelSpec
from unet_core.data.pairs import find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.data.workers import batches_of, default_workers, quiet_worker


@pytest.fixture
def records(data):
    decoder = SampleDecoder(input=InputSpec(size=(32, 48)), labels=LabelSpec(classes=("car",)))
    return Records(find_pairs(data, "train"), decoder)


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (8, 8), (64, 8)])
def test_workers_by_cores(monkeypatch, cores, workers):
    monkeypatch.setattr(loading, "available_threads", lambda: cores)
    assert default_workers() == workers


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_loading_process_keeps_its_one_line(records, workers):
    pair = records.pairs[4]
    pair.image.unlink()
    loader = DataLoader(TrainingSet(records, seed=0), batch_sampler=EpochBatches(6, 2, seed=0), num_workers=workers)
    with pytest.raises(ImageError) as caught:
        list(batches_of(loader))
    assert str(caught.value) == f"{pair.image}: no such file"


@pytest.mark.parametrize("init", [None, quiet_worker])
def test_an_error_ends_the_loading_processes_without_waiting_for_them(records, init):
    records.pairs[0].image.unlink()
    batches = EpochBatches(6, 2, seed=0)
    loader = DataLoader(TrainingSet(records, seed=0), batch_sampler=batches, num_workers=2, worker_init_fn=init)
    before, started = multiprocessing.active_children(), time.monotonic()
    with pytest.raises(ImageError):
        list(batches_of(loader))
    assert multiprocessing.active_children() == before
    assert time.monotonic() - started < 4  # PyTorch gives each process 5 s to end by itself


def started(loader):
    """An iterator that has given one batch, and its process."""
    before = multiprocessing.active_children()
    batches = batches_of(loader)
    next(batches)
    (worker,) = (process for process in multiprocessing.active_children() if process not in before)
    return batches, worker


def test_loading_processes_outlive_signals_to_the_group_and_obey_their_parent(records):
    loader = DataLoader(
        TrainingSet(records, seed=0), batch_sampler=EpochBatches(6, 1, 0), num_workers=1, worker_init_fn=quiet_worker
    )
    batches, worker = started(loader)
    for number in (signal.SIGINT, signal.SIGTERM):
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)  # which is another process than the parent
    assert len(list(batches)) == 5
    batches, worker = started(loader)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_processes_without_shared_memory_are_one_line(records, monkeypatch, capfd):
    """As where /dev/shm is full, cannot be written or is missing."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", full)
    loader = DataLoader(TrainingSet(records, seed=0), batch_sampler=EpochBatches(6, 2, seed=0), num_workers=1)
    with pytest.raises(UnetError) as caught:
        next(batches_of(loader))
    assert str(caught.value) == (
        "processes that load images cannot be started (no space left on device); let /dev/shm be writable and "
        "larger (of a container: --shm-size or --ipc=host), or give --workers 0"
    )
    gc.collect()
    assert capfd.readouterr().err == ""


class Full(TrainingSet):
    """Stands for PyTorch's error in a loading process that has no shared memory for a batch."""

    def __getitem__(self, key):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_without_shared_memory_are_one_line(records, workers):
    loader = DataLoader(Full(records, seed=0), batch_sampler=EpochBatches(6, 2, seed=0), num_workers=workers)
    with pytest.raises(UnetError) as caught:
        list(batches_of(loader))
    assert str(caught.value) == (
        "images cannot be passed between processes; let /dev/shm be writable and larger (of a container: "
        "--shm-size or --ipc=host), or give --workers 0"
    )
