"""The model, and the contestants that need only our dependencies."""

import time

import numpy as np
import pytest
import torch
from benchmark_models import write_bare_benchmark_model, write_benchmark_model
from devices import CPU, GPU, TRT, images
from onnx_files import gate_of, write_onnx

from benchmarks.contestants import base, onnx_runtime, pytorch_calls
from benchmarks.contestants.answers import compare_answers
from benchmarks.contestants.base import BenchmarkModel, not_installed_reason, require
from benchmarks.contestants.onnx_runtime import FOR_CPUS, OURS, PLAIN, PlainContestant, PredictorContestant
from benchmarks.contestants.pytorch import (
    CHANNELS_LAST,
    COMPILED,
    EAGER,
    ChannelsLastContestant,
    CompiledContestant,
    EagerContestant,
)
from benchmarks.contestants.pytorch_calls import multiply_in, with_own_code
from benchmarks.contestants.registry import contestants_on, select_contestants
from benchmarks.measuring.threads import pinned
from export.proof import network_run
from runtime.devices.device import Device
from runtime.devices.profiles import profile_of
from runtime.errors import ClosedError, ConfigError, DeviceError, ModelError, ProofError
from runtime.model_file.digest import seal
from runtime.model_file.protobuf_reader import field


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_benchmark_model(tmp_path_factory.mktemp("model"), widths=(4, 8))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return write_bare_benchmark_model(tmp_path_factory.mktemp("bare"))


ON_CPU = (EAGER, CHANNELS_LAST, COMPILED, PLAIN, OURS, FOR_CPUS, "unet-deploy, OpenVINO", "OpenVINO", "ncnn")


@pytest.fixture(scope="module")
def for_cpus(tmp_path_factory):
    forms = {"downs.1.conv.3": "f4", "bottleneck.conv.0": "f2-few"}
    return write_benchmark_model(tmp_path_factory.mktemp("for_cpus"), widths=(4, 8), forms=forms)


def of(name, device=CPU, precision="fp32"):
    (found,) = (
        one for one in contestants_on(device) if (one.name, one.precision, one.device) == (name, precision, device)
    )
    return found


def test_a_model_with_files_of_other_precisions(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    write_onnx(tmp_path / "model.fp16.onnx", precision="fp16", gate=gate_of())
    found = BenchmarkModel.read(tmp_path / "model.onnx", others=[tmp_path / "model.fp16.onnx"])
    paths = {name: found.file(name) for name in ("fp32", "tf32", "fp16", "bf16", "int8")}
    exact, half = tmp_path / "model.onnx", tmp_path / "model.fp16.onnx"
    assert paths == {"fp32": exact, "tf32": exact, "fp16": half, "bf16": exact, "int8": None}


def test_a_file_that_does_not_fit_its_digest_is_refused_before_anything_is_measured(tmp_path):
    """Programs beside ours would take it, and be compared with nothing."""
    write_onnx(tmp_path / "model.onnx")
    seal(tmp_path / "model.onnx")
    assert BenchmarkModel.read(tmp_path / "model.onnx").path == tmp_path / "model.onnx"
    with open(tmp_path / "model.onnx", "ab") as file:
        file.write(field(6, b"a text that was not there"))
    with pytest.raises(ModelError, match=r"model\.onnx: was damaged or changed since it was exported"):
        BenchmarkModel.read(tmp_path / "model.onnx")


def test_a_model_with_a_file_for_cpus(for_cpus):
    assert for_cpus.for_cpus.name == "model.cpu.onnx" and for_cpus.files == {}
    with pytest.raises(ModelError, match=r"model\.cpu\.onnx: is a second file for CPUs, expected one"):
        BenchmarkModel.read(for_cpus.path, others=[for_cpus.for_cpus] * 2)
    with pytest.raises(ModelError, match=r"model\.cpu\.onnx: was exported with --target cpu, expected the file"):
        BenchmarkModel.read(for_cpus.for_cpus)


def test_the_file_for_cpus_is_a_contestant_of_its_own(model, for_cpus):
    contestant, batch = of(FOR_CPUS), images(2, 31, 45)
    assert contestant.unavailable_reason(model) == "no file for CPUs was given; make one with unet-export --target cpu"
    assert contestant.unavailable_reason(for_cpus) is None
    with pinned(1):
        loaded = contestant.load(for_cpus, 1, (2, 31, 45))
        found = compare_answers(loaded(batch), network_run(for_cpus.segmenter())(batch))
    assert loaded.facts["file"] == "model.cpu.onnx" and found.largest < 5e-6


ONE_EACH = "one each of fp16, int8 and --target cpu beside {}/model.onnx"


@pytest.mark.parametrize(
    ("file", "others", "words"),
    [
        ("half", (), "half.onnx: found fp16, expected the fp32 file; give this one by --also"),
        ("model", ("other",), "other.onnx: has other weights than {}/model.onnx; export both from one checkpoint"),
        ("model", ("half", "half"), f"half.onnx: is a second fp16 file, expected {ONE_EACH}"),
        ("model", ("model",), f"model.onnx: is a second fp32 file, expected {ONE_EACH}"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, file, others, words):
    write_onnx(tmp_path / "model.onnx")
    write_onnx(tmp_path / "half.onnx", precision="fp16")
    write_onnx(tmp_path / "other.onnx", classes=3)
    with pytest.raises(ModelError) as error:
        BenchmarkModel.read(tmp_path / f"{file}.onnx", others=[tmp_path / f"{one}.onnx" for one in others])
    assert str(error.value) == f"{tmp_path}/{words.format(tmp_path)}"


def test_a_checkpoint_of_another_model_is_refused(model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_benchmark_model(other, widths=(4, 8), seed=1)
    with pytest.raises(ProofError) as error:
        BenchmarkModel.read(model.path, other / "model.pth")
    assert str(error.value).startswith(f"{model.path} and {other / 'model.pth'}: answers differ by 0.")
    assert str(error.value).endswith("; are they the same model?")


def test_no_two_contestants_are_named_alike_and_each_device_has_its_own():
    names = [(one.name, one.precision, one.device) for device in (CPU, GPU) for one in contestants_on(device)]
    assert len(set(names)) == len(names)
    assert {(name, precision) for name, precision, device in names if device == CPU} == {
        *((name, "fp32") for name in ON_CPU),
        *((name, precision) for name in (PLAIN, OURS) for precision in ("fp16", "int8")),
        ("OpenVINO", "bf16"),
        ("OpenVINO", "int8"),
        ("unet-deploy, OpenVINO", "bf16"),
        ("unet-deploy, OpenVINO", "int8"),
    }
    assert {(name, precision) for name, precision, device in names if device == GPU} == {
        *((n, p) for n in (EAGER, CHANNELS_LAST, COMPILED) for p in ("fp32", "tf32", "fp16", "bf16")),
        *((PLAIN, precision) for precision in ("tf32", "fp16", "int8")),
        *((OURS, precision) for precision in ("fp32", "tf32", "fp16", "int8")),
    }
    assert {(n, p) for n, p, device in names if device == TRT} == {(OURS, p) for p in ("fp32", "tf32", "fp16", "int8")}
    second = Device(kind="cuda", index=1)
    assert {one.device for one in contestants_on(second)} == {second, Device(kind="tensorrt", index=1)}


def test_choosing_contestants():
    on_cpu = contestants_on(CPU)
    assert select_contestants(on_cpu) == on_cpu
    assert [one.name for one in select_contestants(on_cpu, names=[OURS, EAGER], precisions=["fp32"])] == [EAGER, OURS]
    with pytest.raises(ConfigError) as error:
        select_contestants(on_cpu, names=["caffe"])
    assert str(error.value).startswith(
        "contestant: found 'caffe', expected one of 'ONNX Runtime', 'OpenVINO', 'PyTorch eager', "
    )
    assert str(error.value).endswith("'torch.compile', 'unet-deploy', 'unet-deploy, OpenVINO', 'unet-deploy, for CPUs'")
    with pytest.raises(ConfigError) as error:
        select_contestants(on_cpu, precisions=["fp8"])
    assert str(error.value) == "precision: found 'fp8', expected one of 'bf16', 'fp16', 'fp32', 'int8', 'tf32'"
    with pytest.raises(ConfigError) as error:
        select_contestants(on_cpu, names=["ncnn"], precisions=["int8"])
    assert str(error.value) == "contestants: found none of ncnn in int8, expected one; choose others"
    with pytest.raises(ConfigError) as error:
        select_contestants(on_cpu, precisions=["tf32"])
    assert str(error.value) == "contestants: found none on this device in tf32, expected one; choose others"


@pytest.mark.parametrize("name", [EAGER, CHANNELS_LAST, PLAIN, OURS])
@pytest.mark.parametrize("shape", [(1, 32, 48), (3, 31, 45)])
def test_contestants_answer_as_the_network(model, name, shape):
    batch = images(*shape)
    contestant = of(name)
    assert contestant.unavailable_reason(model) is None
    with pinned(1):
        loaded = contestant.load(model, 1, shape)
        found = compare_answers(loaded(batch), network_run(model.segmenter())(batch))
    assert found.largest < 5e-6 and found.refusal("fp32") is None
    assert loaded.provider == ("PyTorch, cpu" if "PyTorch" in name else "CPUExecutionProvider")
    loaded.close()
    with pytest.raises((IndexError, ClosedError)):
        loaded(batch)


@pytest.mark.slow
def test_a_compiled_network_answers_for_its_shape_only_as_one_graph(model):
    batch = images(2, 20, 24)
    with pinned(1):
        loaded = CompiledContestant().load(model, 1, (2, 20, 24))
        assert compare_answers(loaded(batch), network_run(model.segmenter())(batch)).largest < 5e-6
    assert loaded.facts["compile_s"] > 0
    loaded.close()


def test_layouts_are_those_that_their_names_say(model, monkeypatch):
    """Left alone, PyTorch keeps [batch, h, w, channels] as channels_last, so both contestants would be the same one."""
    seen = []
    segmenters = BenchmarkModel.segmenter

    def watched(self):
        segmenter = segmenters(self)
        segmenter.network.downs[0].conv[3].register_forward_hook(lambda module, given, answer: seen.append(answer))
        return segmenter

    monkeypatch.setattr(BenchmarkModel, "segmenter", watched)
    for name, last in ((EAGER, False), (CHANNELS_LAST, True)):
        of(name).load(model, 1, (1, 32, 48))(images(1, 32, 48))
        answer = seen.pop()
        assert answer.is_contiguous() is not last
        assert answer.is_contiguous(memory_format=torch.channels_last) is last


def test_what_keeps_contestants_from_running(model, bare, monkeypatch):
    monkeypatch.setattr(
        base.availability, "unavailable_reason", lambda device: f"no {device}" if device != CPU else None
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    without = "runs the checkpoint that the model was exported from, and none was given; give --checkpoint"
    assert {of(name).unavailable_reason(bare) for name in (EAGER, CHANNELS_LAST, COMPILED)} == {without}
    gpu_missing = f"PyTorch {torch.__version__} finds no GPU that it can use; see nvidia-smi"
    assert {of(name, GPU, "bf16").unavailable_reason(model) for name in (EAGER, CHANNELS_LAST, COMPILED)} == {
        gpu_missing
    }
    missing = "no int8 file was given; make one with unet-export --precision int8"
    assert (
        of(OURS, CPU, "int8").unavailable_reason(model) == of(PLAIN, CPU, "int8").unavailable_reason(model) == missing
    )
    assert (
        of(OURS, GPU, "tf32").unavailable_reason(model)
        == of(PLAIN, GPU, "tf32").unavailable_reason(model)
        == "no cuda:0"
    )
    assert of(OURS, TRT, "fp16").unavailable_reason(model) == "no tensorrt:0"
    assert "no option that keeps TensorRT from multiplying in TF32" in of(OURS, TRT).unavailable_reason(model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    second = EagerContestant(device=Device(kind="cuda", index=1))
    assert second.unavailable_reason(model) == "GPU 1 does not exist, PyTorch sees 1"
    assert of(EAGER, GPU).unavailable_reason(model) is None


def test_arithmetic_of_pytorch_is_set_for_a_call_and_then_as_before():
    from torch.backends import cuda, cudnn

    def now():
        return cudnn.conv.fp32_precision, cuda.matmul.fp32_precision, cudnn.benchmark

    before = now()
    expected = {"fp32": ("ieee", "ieee", True), "tf32": ("tf32", "tf32", True)}
    for precision, wanted in expected.items():
        with multiply_in(precision):
            assert now() == wanted
        assert now() == before
    with pytest.raises(ZeroDivisionError), multiply_in("fp32"):
        raise ZeroDivisionError
    assert now() == before


@pytest.mark.parametrize("contestant", [EagerContestant, ChannelsLastContestant])
def test_half_precision_is_that_of_weights_and_activations(model, contestant):
    loaded = contestant(precision="bf16").load(model, 1, (1, 32, 48))
    answer, exact = loaded(images(1, 32, 48)), of(EAGER).load(model, 1, (1, 32, 48))(images(1, 32, 48))
    assert answer.dtype == np.float32
    assert 1e-5 < compare_answers(answer, exact).largest < 0.05


def test_networks_are_compiled_apart():
    identity = torch.nn.Identity()
    first, second = with_own_code(identity), with_own_code(identity)
    assert first.__code__ is not second.__code__
    assert torch.equal(second(torch.ones(2)), torch.ones(2))


def test_our_options_by_device_and_precision(model):
    options = {one: of(OURS, *one).options(model, (4, 32, 48)) for one in ((CPU, "fp32"), (GPU, "fp32"), (GPU, "tf32"))}
    assert [one.tf32 for one in options.values()] == [False, False, True]
    engine = of(OURS, TRT, "fp16")
    assert profile_of(model.card, engine.options(model, (4, 32, 48))).high == (8, 56, 88)
    wide = engine.options(model, (16, 100, 30))
    assert profile_of(model.card, wide).inside((16, 100, 30))
    assert wide.max_batch == 16


def test_a_session_that_runs_elsewhere_is_an_error(model, monkeypatch):
    monkeypatch.setattr(onnx_runtime, "Predictor", lambda *given: type("P", (), {"report": CPU_REPORT})())
    with pytest.raises(DeviceError) as error:
        PredictorContestant(device=GPU).load(model, 1, (1, 32, 48))
    assert str(error.value) == "unet-deploy: device: found cpu, expected cuda:0"


def test_the_bare_session_has_the_same_threads_and_our_checks(model, monkeypatch):
    asked = []
    monkeypatch.setattr(onnx_runtime, "open_inference", lambda *given: asked.append(given))
    PlainContestant(device=GPU, precision="tf32").load(model, 3, (1, 32, 48))
    (path, device, chain, options) = asked[0]
    assert (path, device, options.intra_op_num_threads) == (model.path, GPU, 3)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert chain == [("CUDAExecutionProvider", {"device_id": "0"}), ("CPUExecutionProvider", {})]


@pytest.mark.parametrize("name", [PLAIN, OURS])
def test_nobody_spins_while_others_are_timed(model, name):
    """Left alone, a bare session of two threads takes 20 ms of a core after each call."""
    loaded = of(name).load(model, 2, (1, 32, 48))
    taken = []
    for _ in range(5):
        loaded(images(1, 32, 48))
        before = time.process_time()
        time.sleep(0.03)
        taken.append(time.process_time() - before)
    assert min(taken) < 0.005
    loaded.close()


class CPU_REPORT:  # noqa: N801 - stands in for a report
    device = "cpu"


def test_an_answer_elsewhere_than_asked_is_an_error(model):
    loaded = pytorch_calls.load_module(lambda images: torch.zeros(1, 1, 32, 48, device="meta"), CPU, "fp32")
    with pytest.raises(DeviceError) as error:
        loaded(images(1, 32, 48))
    assert str(error.value) == "PyTorch's answer: found meta, expected cpu"


def test_packages_that_are_absent_are_named_and_how_to_get_them():
    assert not_installed_reason("json", "numpy") is None
    assert (
        not_installed_reason("json", "no_such", "nor_this")
        == "not installed: no_such, nor_this; pip install no_such nor_this"
    )


def test_require():
    require(3, 3, "threads")
    with pytest.raises(DeviceError) as error:
        require(2, 3, "threads")
    assert str(error.value) == "threads: found 2, expected 3"
