"""Batches in parts, and GPU memory that runs out: by a stand-in with room for so many pixels, and on a GPU."""

import numpy as np
import pytest
from devices import OUT_OF_MEMORY, TRT, images, on_cpu_memory

from runtime.devices import cuda as cuda_module
from runtime.devices import out_of_memory
from runtime.devices import session as session_module
from runtime.devices.profiles import Profile
from runtime.devices.registry import open_session
from runtime.devices.tensorrt import TensorRtSession
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
    assert sizes == [4, 4, 4]


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
    assert asked[6:] == [2, 2, 3]


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


def test_what_tensorrt_gives_no_reason_for_is_halved_and_quoted(small):
    session, asked = small(63, "TensorRT EP execution context enqueue failed.")
    with pytest.raises(DeviceError) as caught:
        session.run(images(2, 8, 8))
    assert asked == [2, 1]
    assert str(caught.value) == (
        "device cuda:0: has too little memory for one image of 8x8, it seems (TensorRT EP execution context enqueue "
        "failed.); predict it in tiles or smaller, or free memory on the GPU (see nvidia-smi)"
    )


# What follows a failed run


class Room:
    """Room for so many pixels in all runs of sessions on the CPU's memory, and the runs that were tried there."""

    def __init__(self, monkeypatch):
        self.pixels, self.ran, real = 10**9, [], session_module.run_copied

        def run_copied(inference, place, batch, options):
            shrinks = () if options is None else (options.get_run_config_entry(out_of_memory.SHRINK),)
            self.ran.append((*batch.shape[:3], *shrinks))
            if batch[..., 0].size > self.pixels:
                raise RuntimeError(OUT_OF_MEMORY)
            return real(inference, place, batch, options)

        for user in (cuda_module, out_of_memory):
            monkeypatch.setattr(user, "run_copied", run_copied)


@pytest.fixture
def room(monkeypatch):
    return Room(monkeypatch)


def test_a_run_that_fails_is_followed_by_a_small_one_of_another_shape_which_shrinks_the_arena(
    inference, card, answers, room
):
    session, room.pixels = on_cpu_memory(inference, card), 2 * 64
    batch = images(3, 8, 8)
    assert np.abs(session.run(batch).probability - answers["softmax"](batch)).max() < 1e-6
    assert room.ran == [(3, 8, 8), (1, 4, 4, "cpu:0"), (1, 8, 8), (1, 8, 8), (1, 8, 8)]
    room.ran.clear()
    with pytest.raises(DeviceError, match=r"^device cuda:0: has too little memory for one image of 40x4;"):
        session.run(images(1, 4, 40))
    assert room.ran == [(1, 4, 40), (2, 8, 4, "cpu:0")]


def test_a_session_is_not_used_until_a_small_run_has_succeeded(inference, card, room):
    session, room.pixels = on_cpu_memory(inference, card), 0
    with pytest.raises(DeviceError, match="too little memory for one image of 8x8"):
        session.run(images(1, 8, 8))
    for _ in range(2):
        with pytest.raises(DeviceError) as caught:
            session.run(images(1, 8, 8))
    assert room.ran == [(1, 8, 8), (2, 4, 4, "cpu:0"), (3, 12, 12, "cpu:0"), (4, 16, 16, "cpu:0")]
    assert str(caught.value) == (
        f"device cuda:0: a run failed, and so does one of 16x16 pixels after it ({OUT_OF_MEMORY}); free memory on the "
        "GPU (see nvidia-smi) and try again"
    )
    room.pixels = 10**9
    assert session.run(images(1, 8, 8)).probability.shape == (1, 3, 8, 8)
    assert room.ran[4:] == [(5, 20, 20, "cpu:0"), (1, 8, 8)]
    session.run(images(1, 8, 8))
    assert room.ran[6:] == [(1, 8, 8)]


def test_a_session_whose_small_runs_fail_over_and_over_is_given_up(inference, card, room):
    session, room.pixels = on_cpu_memory(inference, card), 0
    for _ in range(out_of_memory.MAX_ATTEMPTS + 2):
        with pytest.raises(DeviceError) as caught:
            session.run(images(1, 8, 8))
    assert len(room.ran) == 1 + out_of_memory.MAX_ATTEMPTS
    assert str(caught.value) == (
        "device cuda:0: a run failed, and 8 small ones after it, which leaves the model without kernels; open it again"
    )


def test_memory_is_asked_for_before_a_small_run_is_tried_again(inference, card, room, monkeypatch):
    session, room.pixels = on_cpu_memory(inference, card), 0
    with pytest.raises(DeviceError, match="too little memory for one image"):
        session.run(images(1, 8, 8))
    asked = []
    monkeypatch.setattr(out_of_memory.Recovery, "_reserve", lambda self: asked.append(1) or 1 / 0)
    for _ in range(20):
        with pytest.raises(
            DeviceError, match=r"and so does one of 12x12 pixels after it \(division by zero\); open it again$"
        ):
            session.run(images(1, 8, 8))
    assert len(asked) == 20 and len(room.ran) == 2


def test_any_error_of_a_run_is_followed_by_a_small_one(inference, card, room, monkeypatch):
    monkeypatch.setattr(session_module, "DLPACK_CUDA", session_module.DLPACK_CPU)

    def fail(*_):
        raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(cuda_module, "run_value", fail)
    session = on_cpu_memory(inference, card)
    with pytest.raises(DeviceError, match=r"cannot run a batch of \[1, 8, 8, 3\] \(CUDNN_STATUS_EXECUTION_FAILED\)"):
        session.run_dlpack(images(1, 8, 8))
    assert room.ran == [(2, 4, 4, "cpu:0")]


def test_a_file_of_one_shape_is_run_again_if_it_ran_before_and_given_up_otherwise(inference, make_card, room):
    card = make_card("softmax", size=(8, 8), fit="stretch", fixed_batch=2)
    full = "has too little memory for the 2 images that the file takes at once of 8x8"
    new, used = on_cpu_memory(inference, card), on_cpu_memory(inference, card)
    used.run(images(2, 8, 8))
    room.ran.clear()
    room.pixels = 0
    for session, tries in ((used, 2), (new, 1)):
        for _ in range(tries):
            with pytest.raises(DeviceError, match=full):
                session.run(images(2, 8, 8))
    assert room.ran == [*[(2, 8, 8), (2, 8, 8, "cpu:0")] * 2, (2, 8, 8)]
    room.pixels = 10**9
    assert used.run(images(1, 8, 8)).probability.shape == (1, 3, 8, 8)
    with pytest.raises(DeviceError) as caught:
        new.run(images(2, 8, 8))
    assert str(caught.value) == (
        "device cuda:0: its first run failed, which leaves the model without kernels; open it again"
    )


def test_tensorrt_has_no_plans_to_build_so_its_small_run_may_fail(inference, card, room):
    low = Profile(low=(1, 4, 8), best=(1, 8, 8), high=(8, 64, 64), channels=3)
    session = TensorRtSession(inference, TRT, card, ProviderOptions(), low, lambda profile: None, memory="cpu")
    room.pixels = 0
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"^device tensorrt:0: has too little memory for one image of 8x8"):
            session.run(images(1, 8, 8))
    assert room.ran == [(1, 8, 8), (1, 4, 8, "cpu:0")] * 2
    room.pixels = 64
    session.run(images(2, 8, 8))
    assert room.ran[4:] == [(2, 8, 8), (1, 4, 8, "cpu:0"), (1, 8, 8), (1, 8, 8)]


def test_a_padded_batch_that_does_not_fit_is_halved(inference, card, answers, room):
    session = on_cpu_memory(inference, card)
    session.run(images(4, 8, 8))
    room.pixels = 3 * 64
    batch = images(3, 8, 8)
    assert np.abs(session.run_steady(batch).probability - answers["softmax"](batch)).max() < 1e-6
    assert room.ran == [(4, 8, 8), (4, 8, 8), (1, 4, 4, "cpu:0"), (2, 8, 8), (2, 8, 8)]


# With a device


@pytest.mark.gpu
def test_gpu_memory_limit_is_felt(cuda, models, card):
    session = open_session(models["softmax"], cuda, card, ProviderOptions(gpu_mem_limit=64 * 2**20), note=print)
    batch = images(32, 512, 512)
    whole = session.run(batch).probability
    parts = np.concatenate([session.run(batch[place : place + 1]).probability for place in range(32)])
    assert np.abs(whole - parts).max() < 1e-3
    with pytest.raises(DeviceError, match="has too little memory for one image of 8000x8000"):
        session.run(np.zeros((1, 8000, 8000, 3), np.uint8))
    assert session.run(images(1, 8, 8)).probability.shape == (1, 3, 8, 8)
