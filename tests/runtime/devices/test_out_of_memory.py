"""Batches in parts, and GPU memory that runs out: by a stand-in with room for so many pixels, and on a GPU."""

import numpy as np
import pytest
from devices import OUT_OF_MEMORY, images, on_cpu_memory

from runtime.devices import cuda as cuda_module
from runtime.devices.registry import open_session
from runtime.errors import DeviceError
from runtime.options import ProviderOptions


def test_large_batches_run_in_parts(inference, card, answers, monkeypatch):
    sizes = []
    real = cuda_module.CudaRunner.run
    monkeypatch.setattr(
        cuda_module.CudaRunner, "run", lambda self, batch: sizes.append(len(batch)) or real(self, batch)
    )
    session = on_cpu_memory(inference, card, max_batch=4)
    batch = images(10, 8, 8)
    assert np.abs(session.run(batch).probability - answers["softmax"](batch)).max() < 1e-6
    assert sizes == [3, 3, 4]


@pytest.fixture
def small(inference, card, monkeypatch):
    """A GPU with room for so many pixels; (session, sizes of the batches that it was asked for)."""

    def make(room, message=OUT_OF_MEMORY, **options):
        asked = []
        real = cuda_module.CudaRunner.run

        def run(self, batch):
            asked.append(len(batch))
            if batch.shape[0] * batch.shape[1] * batch.shape[2] > room:
                raise RuntimeError(message)
            return real(self, batch)

        monkeypatch.setattr(cuda_module.CudaRunner, "run", run)
        return on_cpu_memory(inference, card, **options), asked

    return make


@pytest.mark.parametrize(
    "message",
    [
        OUT_OF_MEMORY,
        "CUDA failure 2: out of memory ; GPU=0",
        "Available memory of 12 is smaller than requested bytes of 99",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_full_gpu_gets_half_the_batch_and_remembers(small, answers, message):
    session, asked = small(3 * 64, message)
    batch = images(8, 8, 8)
    assert np.abs(session.run(batch).probability - answers["softmax"](batch)).max() < 1e-6
    assert asked == [8, 4, 2, 2, 2, 2]
    session.run(images(3, 8, 8))
    session.run(images(3, 4, 8))
    assert asked[6:] == [1, 2, 3]


def test_one_image_that_does_not_fit_is_a_device_error(small):
    session, asked = small(63)
    with pytest.raises(DeviceError) as caught:
        session.run(images(2, 8, 8))
    assert asked == [2, 1]
    assert str(caught.value) == (
        "device cuda:0: has too little memory for one image of 8x8; predict it in tiles or smaller, or free memory on "
        "the GPU (see nvidia-smi)"
    )
    assert session.run(images(2, 4, 4)).probability.shape == (2, 3, 4, 4)


def test_another_failure_is_not_tried_again(small):
    session, asked = small(0, "CUDA failure 700: an illegal memory access was encountered")
    with pytest.raises(DeviceError, match=r"cannot run a batch of \[4, 8, 8, 3\] \(CUDA failure 700"):
        session.run(images(4, 8, 8))
    assert asked == [4]


# With a device


@pytest.mark.gpu
def test_gpu_memory_limit_is_felt(cuda, models, card):
    session = open_session(models["conv"], cuda, card, ProviderOptions(gpu_mem_limit=64 * 2**20), note=print)
    with pytest.raises(DeviceError, match="has too little memory for one image of 8000x8000"):
        session.run(np.zeros((1, 8000, 8000, 3), np.uint8))
    assert session.run(images(1, 8, 8)).probability.shape == (1, 1, 8, 8)
