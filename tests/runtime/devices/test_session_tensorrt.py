"""TensorRT's sessions on CPU memory: shapes, rebuilding, and engines built, kept and refused."""

import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from devices import GPU, OUT_OF_MEMORY, TRT, images, on_cpu_memory

from runtime.devices import backend
from runtime.devices import session as module
from runtime.devices.auto_session import AutoSession
from runtime.devices.profiles import Profile
from runtime.devices.registry import must_build, open_session
from runtime.devices.tensorrt import TensorRtSession
from runtime.errors import ClosedError, DeviceError
from runtime.options import ProviderOptions

PROFILE = Profile(low=(1, 4, 4), best=(1, 8, 12), high=(4, 64, 96), channels=3)


@pytest.fixture
def engine(inference, card):
    """A TensorRT session on the CPU's memory, and the profiles that it had engines built for."""

    def make(**options):
        built = []

        def open_for(profile):
            built.append(profile)
            return TensorRtSession(inference, TRT, card, ProviderOptions(**options), profile, open_for, memory="cpu")

        return open_for(PROFILE), built

    return make


def test_engine_runs_its_profile_and_larger_batches_in_parts(engine, answers):
    session, built = engine(max_batch=4)
    for batch in (images(1, 64, 96), images(9, 5, 7), images(1, 1, 3)):
        assert session.takes(batch.shape[:3])
        assert np.abs(session.run(batch).probability - answers["softmax"](batch)).max() < 1e-6
    assert built == [PROFILE]


def test_biases_of_an_int8_file_stay_fp32(tensorrt_stand_in, models, card, monkeypatch, tmp_path):
    entries, real = [], backend.open_inference

    def infer(path, device, chain, options):
        entries.append(options.get_session_config_entry("optimization.disable_specified_optimizers"))
        return real(path, device, chain, options)

    monkeypatch.setattr(backend, "open_inference", infer)
    open_session(models["softmax"], TRT, card, ProviderOptions(engine_folder=tmp_path / "engines"), note=print)
    assert entries == ["WeightBiasQuantization"] * 2  # to look which parts it takes, and to build


def test_engine_refuses_other_shapes(engine):
    session, built = engine(max_batch=4)
    assert not session.takes((1, 65, 96))
    with pytest.raises(DeviceError, match=r"height of the batch: found 65, the TensorRT engine takes 4 to 64; give"):
        session.run(images(1, 65, 96))
    assert built == [PROFILE]


def test_engine_is_rebuilt_where_that_is_allowed_and_once_for_all_threads(engine, answers):
    session, built = engine(max_batch=4, allow_rebuild=True)
    batch = images(2, 70, 90)
    assert session.takes((1, 5000, 5000))
    with ThreadPoolExecutor(4) as pool:
        for answer in (output.probability for output in pool.map(session.run, [batch] * 8)):
            assert np.abs(answer - answers["softmax"](batch)).max() < 1e-6
    assert [profile.high for profile in built] == [(4, 64, 96), (4, 70, 96)]
    session.run(images(1, 64, 96))
    assert len(built) == 2


def test_engine_that_was_closed_while_it_was_rebuilt_stays_closed(inference, card):
    session, began, go, built = None, threading.Event(), threading.Event(), []

    def reopen(profile):
        built.append(profile)
        began.set()
        assert go.wait(10)
        return TensorRtSession(inference, TRT, card, options, profile, reopen, memory="cpu")

    options = ProviderOptions(allow_rebuild=True)
    session = TensorRtSession(inference, TRT, card, options, PROFILE, reopen, memory="cpu")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(session.run, images(1, 70, 90)) for _ in range(2)]
        assert began.wait(10)
        session.close()
        go.set()
        for run in waiting:
            with pytest.raises(ClosedError, match="is closed"):
                run.result()
    with pytest.raises(ClosedError, match="is closed"):
        session.run(images(1, 8, 8))
    assert len(built) == 1


def test_auto_hands_tensors_that_the_engine_does_not_take_whole_to_the_other_one(inference, card, answers, monkeypatch):
    monkeypatch.setattr(module, "DLPACK_CUDA", module.DLPACK_CPU)
    options = ProviderOptions(max_batch=4)
    engine = TensorRtSession(inference, TRT, card, options, PROFILE, lambda profile: None, memory="cpu")
    used, other = [], on_cpu_memory(inference, card)
    auto = AutoSession(best=engine, open_other=lambda: used.append(1) or other)
    for shape, others in [((4, 8, 8), 0), ((5, 8, 8), 1), ((1, 3, 8), 1)]:  # one too many, one that needs padding
        batch = images(*shape)
        assert auto.run(batch).probability.shape == (shape[0], 3, *shape[1:]) and engine.takes(shape)
        assert auto.run_steady(batch).probability.shape == (shape[0], 3, *shape[1:])
        assert np.abs(np.from_dlpack(auto.run_dlpack(batch)) - answers["softmax"](batch)).max() < 1e-6
        assert len(used) == others
    with pytest.raises(
        DeviceError, match=r"^images of the batch: found 5, the TensorRT engine takes 1 to 4; give Prov"
    ):
        engine.run_dlpack(images(5, 8, 8))


def test_engine_is_built_with_notes_then_loaded_in_silence(models, card, tensorrt_stand_in, tmp_path):
    notes, options = [], ProviderOptions(engine_folder=tmp_path / "engines")
    for _ in range(2):
        assert must_build(models["softmax"], TRT, card, options) is (not notes)
        session = open_session(models["softmax"], TRT, card, options, note=notes.append)
        assert session.run(images(1, 8, 12)).probability.shape == (1, 3, 8, 12)
    assert notes == [
        "device tensorrt:0: building the TensorRT engine of softmax.onnx: begins, and takes seconds to minutes",
        "device tensorrt:0: building the TensorRT engine of softmax.onnx: done in 0 s",
    ]
    assert ["trt_timing_cache_enable" in told for told in tensorrt_stand_in] == [True, False]
    assert not must_build(models["softmax"], GPU, card, options)


def test_a_model_that_was_verified_is_not_hashed_again_for_its_engine(
    models, card, tensorrt_stand_in, tmp_path, monkeypatch
):
    hashed, real = [], backend.graph_digest
    monkeypatch.setattr(backend, "graph_digest", lambda path: hashed.append(path) or real(path))
    options, known = ProviderOptions(engine_folder=tmp_path / "engines"), real(models["softmax"])
    open_session(models["softmax"], TRT, card, options, note=print, graph_digest=known)
    assert not must_build(models["softmax"], TRT, card, options, known) and hashed == []
    assert not must_build(models["softmax"], TRT, card, options) and hashed == [models["softmax"]]


def test_cached_engine_that_answers_wrongly_is_built_anew_once(models, card, tensorrt_stand_in, tmp_path):
    options, wrong = ProviderOptions(engine_folder=tmp_path / "engines"), []
    open_session(models["softmax"], TRT, card, options, note=print)

    def check(session):
        if not wrong:
            wrong.append(1)
            raise DeviceError("answers the golden sample wrongly")

    notes = []
    open_session(models["softmax"], TRT, card, options, note=notes.append, check=check)
    assert "answers the golden sample wrongly; it is built anew" in notes[0]
    assert len(tensorrt_stand_in) == 3


@pytest.mark.parametrize(
    ("message", "builds"),
    [
        ("TensorRT EP could not deserialize engine from cache: /x", 2),
        ("TensorRT EP failed to create context.", 1),
        ("TensorRT EP could not build execution context for fused node: TRTKernel_graph_unet_0", 1),
        ("TensorRT EP execution context enqueue failed.", 1),
        ("/home/user/.cache/unet-deploy/engines/x: Permission denied", 1),
        (OUT_OF_MEMORY, 1),
        ("could not deserialize engine: CUDA failure 2: out of memory", 1),
        ("device tensorrt:0: 2 nodes would run elsewhere: {'Conv on CPUExecutionProvider': 2}", 1),
    ],
)
def test_only_an_error_about_the_engine_costs_a_build(models, card, tensorrt_stand_in, tmp_path, message, builds):
    options, errors, notes = ProviderOptions(engine_folder=tmp_path / "engines"), [RuntimeError(message)], []
    open_session(models["softmax"], TRT, card, options, note=notes.append)

    def check(session):
        if errors:
            raise errors.pop()

    full = "Permission" not in message and "nodes" not in message
    with pytest.raises(DeviceError if full else RuntimeError) if builds == 1 else contextlib.nullcontext() as caught:
        open_session(models["softmax"], TRT, card, options, note=notes.append, check=check)
    if builds == 1 and full:
        assert str(caught.value) == (
            f"device tensorrt:0: has too little memory for its TensorRT engine, it seems ({message}); free memory on "
            "the GPU (see nvidia-smi), or give a smaller ProviderOptions(max_batch=..., max_size=...)"
        )
    assert len([note for note in notes if note.endswith("minutes")]) == builds


def test_what_keeps_an_engine_from_being_looked_for_is_left_to_opening(models, card, tensorrt_stand_in, tmp_path):
    assert not must_build(tmp_path / "gone.onnx", TRT, card, ProviderOptions())


# With a device


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_tensorrt_engine_is_kept_and_loaded(tensorrt, models, make_card, answers, tmp_path):
    card = dataclasses.replace(make_card("conv"), name="conv")
    options, notes = ProviderOptions(engine_folder=tmp_path / "engines"), []
    for _ in range(2):
        session = open_session(models["conv"], tensorrt, card, options, note=notes.append)
        batch = images(2, 8, 12)
        assert np.abs(session.run(batch).probability - answers["conv"](batch)).max() < 2e-2
    assert notes[-1].endswith(" s") and len([note for note in notes if "begins" in note]) == 1
