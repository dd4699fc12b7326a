"""Loading processes: their number, their errors, and the signals that they obey."""

import errno
import gc
import multiprocessing
import multiprocessing.synchronize
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from runtime.card import InputSpec
from runtime.errors import ImageError, UnetError
from unet_core.data import workers as loading
from unet_core.data.dataset import EpochBatches, EvaluationSet, TrainingSet, collate_arrays, collate_evaluation
from unet_core.data.labels import LabelSpec
from unet_core.data.pairs import find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.data.workers import batches_of, default_workers, quiet_worker, too_large_for_shared_memory


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


def test_batches_too_large_for_shared_memory_are_told_with_the_way_out(monkeypatch):
    """Two batches a process and two more, of 2 MB, twice: 72 MB of eight processes, and Docker gives 64."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 10**6))
    assert too_large_for_shared_memory(2 * 10**6, 8) == (
        "/dev/shm has 64 MB free, and --workers 8 may take 72 MB: images pass through pipes instead, which is slower "
        "(of a container: --shm-size 1g)"
    )
    assert too_large_for_shared_memory(2 * 10**6, 7) is None
    assert too_large_for_shared_memory(10**9, 0) is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # both processes of torchrun have loading processes
    assert "may take 128 MB" in too_large_for_shared_memory(2 * 10**6, 7)

    def missing(_):
        raise FileNotFoundError

    monkeypatch.setattr(shutil, "disk_usage", missing)
    assert too_large_for_shared_memory(10**9, 8) is None


def test_arrays_pass_between_processes_without_shared_memory(records, monkeypatch):
    """The training pictures are those of tensors, and validation never needs any."""
    batches = EpochBatches(6, 4, seed=0)
    trained = TrainingSet(records, seed=0)
    expected = list(batches_of(DataLoader(trained, batch_sampler=batches)))

    def full(*_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", full)  # also in the processes, which are forked
    with pytest.raises(UnetError, match="images cannot be passed between processes"):
        list(batches_of(DataLoader(trained, batch_sampler=batches, num_workers=1)))
    found = list(batches_of(DataLoader(trained, batch_sampler=batches, num_workers=1, collate_fn=collate_arrays)))
    assert [len(images) for images, _ in found] == [4, 2]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(*parts) for parts in zip(one, other, strict=True))
    evaluated = DataLoader(EvaluationSet(records, [3, 0]), 2, num_workers=1, collate_fn=collate_evaluation)
    ((fitted, truths),) = batches_of(evaluated)
    assert np.array_equal(fitted[0].image, records[3][0]) and np.array_equal(truths[1], records[0][1])
