"""OpenVINO and ncnn for real where they are installed, and what is said where they are not."""

import importlib.util
import subprocess

import numpy as np
import onnx
import pytest
from devices import images
from graphs import DEEP, graph_of
from onnx.reference import ReferenceEvaluator
from subjects import write_subject

from benchmarks.contestants import base as contestant_module
from benchmarks.contestants import ncnn
from benchmarks.contestants.base import difference
from benchmarks.contestants.ncnn import NcnnContestant, bare_network, converted
from benchmarks.contestants.openvino import OpenVinoContestant
from export.proof import network_run
from runtime.errors import DeviceError

CONFIGS = [{}, DEEP, {"widths": (3, 5, 9), "up": "bilinear", "classes": 2}]


@pytest.fixture(scope="module", params=CONFIGS, ids=["thin", "deep", "bilinear"])
def subject(request, tmp_path_factory):
    return write_subject(tmp_path_factory.mktemp("subject"), **request.param)


def require_installed(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs packages that are no dependency: {', '.join(missing)}")


def batch_for(subject, *shape):
    return np.ascontiguousarray(images(*shape)[..., : subject.card.architecture.in_channels])


@pytest.mark.parametrize("shape", [(1, 32, 64), (3, 31, 45)])
def test_openvino_answers_as_the_network(subject, shape):
    require_installed("openvino")
    peer, batch = OpenVinoContestant(), batch_for(subject, *shape)
    assert peer.unavailable_reason(subject) is None
    opened = peer.open(subject, 1, shape)
    assert difference(opened(batch), network_run(subject.segmenter())(batch)).refusal("fp32") is None
    assert (opened.provider, opened.facts) == ("OpenVINO CPU", {"file": "model.onnx"})
    opened.close()


@pytest.mark.parametrize("shape", [(1, 32, 64), (3, 31, 45)])
def test_ncnn_answers_as_the_network(subject, shape):
    require_installed("ncnn", "pnnx")
    peer, batch = NcnnContestant(), batch_for(subject, *shape)
    assert peer.unavailable_reason(subject) is None
    opened = peer.open(subject, 1, shape)
    assert difference(opened(batch), network_run(subject.segmenter())(batch)).refusal("fp32") is None
    assert (opened.provider, opened.facts) == ("ncnn CPU", {"file": "model.onnx"})
    opened.close()


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (OpenVinoContestant(), "not installed: openvino; pip install openvino"),
        (NcnnContestant(), "not installed: ncnn, pnnx; pip install ncnn pnnx"),
    ],
)
def test_what_is_not_installed_is_said(subject, monkeypatch, peer, reason):
    monkeypatch.setattr(contestant_module, "find_spec", lambda name: None)
    assert peer.unavailable_reason(subject) == reason


def test_installed_without_a_file_of_the_precision(subject, monkeypatch):
    monkeypatch.setattr(contestant_module, "find_spec", lambda name: object())
    reason = "no int8 file was given; make one with unet-export --precision int8"
    assert OpenVinoContestant(precision="int8").unavailable_reason(subject) == reason
    assert NcnnContestant().unavailable_reason(subject) is None


@pytest.mark.parametrize("config", CONFIGS)
def test_the_bare_network_is_what_is_between_normalisation_and_probabilities(config):
    """Its answer to the padded planes is the file's to the image that they are of."""
    whole = graph_of(**config)
    network = bare_network(whole)
    assert {node.op_type for node in network.graph.node}.isdisjoint({"Cast", "Shape", "Pad", "Slice"})
    image = np.ascontiguousarray(images(2, 32, 64)[..., : 1 if config is DEEP else 3])
    first = network.graph.input[0].name
    names = [item.name for item in whole.graph.output]
    inner = onnx.ModelProto()
    inner.CopyFrom(whole)
    inner.graph.output.append(onnx.helper.make_empty_tensor_value_info(first))
    probability, planes = ReferenceEvaluator(inner).run([*names, first], {"image": image})
    answer = ReferenceEvaluator(network).run(None, {first: planes})[0]
    assert np.abs(answer - probability).max() < 1e-6


class Pnnx:
    """Stands in for the package of the converter."""

    EXEC_PATH = "pnnx"


@pytest.mark.parametrize("written", [False, True])
def test_a_conversion_is_asked_for_at_one_size_and_failures_are_told(subject, tmp_path, monkeypatch, written):
    asked = []

    def run(command, cwd, **_):
        asked.append(command)
        if written:
            (cwd / "network.ncnn.param").write_text("")
            (cwd / "network.ncnn.bin").write_text("")
        return subprocess.CompletedProcess(command, 0, "", "line one\nline two")

    monkeypatch.setattr(ncnn.importlib, "import_module", lambda name: Pnnx)
    monkeypatch.setattr(ncnn.subprocess, "run", run)
    channels = subject.card.architecture.in_channels
    if written:
        assert converted(subject, (32, 64), tmp_path) == (
            tmp_path / "network.ncnn.param",
            tmp_path / "network.ncnn.bin",
        )
    else:
        with pytest.raises(DeviceError) as error:
            converted(subject, (32, 64), tmp_path)
        assert str(error.value) == "pnnx: cannot convert model.onnx (line one line two)"
    assert asked == [["pnnx", "network.onnx", f"inputshape=[1,{channels},32,64]f32", "fp16=0"]]
