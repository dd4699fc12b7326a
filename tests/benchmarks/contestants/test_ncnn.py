"""ncnn for real where it is installed, and the message where it is not."""

import subprocess

import numpy as np
import onnx
import pytest
from benchmark_models import require_installed, write_benchmark_model
from devices import images
from graphs import DEEP, graph_of
from onnx.reference import ReferenceEvaluator

from benchmarks.contestants import base, ncnn
from benchmarks.contestants.answers import compare_answers
from benchmarks.contestants.ncnn import NcnnContestant, bare_network, convert
from export.proof import network_run
from runtime.errors import DeviceError

CONFIGS = [{}, DEEP, {"widths": (3, 5, 9), "up": "bilinear", "classes": 2}]


@pytest.fixture(scope="module", params=CONFIGS, ids=["thin", "deep", "bilinear"])
def model(request, tmp_path_factory):
    return write_benchmark_model(tmp_path_factory.mktemp("model"), **request.param)


@pytest.mark.parametrize("shape", [(1, 32, 64), (3, 31, 45)])
def test_ncnn_answers_as_the_network(model, shape):
    require_installed("ncnn", "pnnx")
    contestant = NcnnContestant()
    batch = np.ascontiguousarray(images(*shape)[..., : model.card.architecture.in_channels])
    assert contestant.unavailable_reason(model) is None
    loaded = contestant.load(model, 1, shape)
    assert compare_answers(loaded(batch), network_run(model.segmenter())(batch)).refusal("fp32") is None
    assert (loaded.provider, loaded.facts) == ("ncnn CPU", {"file": "model.onnx"})
    loaded.close()


def test_the_reason_names_the_packages_that_are_missing(model, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    reason = "not installed: ncnn, pnnx; pip install ncnn pnnx"
    assert NcnnContestant().unavailable_reason(model) == reason
    monkeypatch.setattr(base, "find_spec", lambda name: object())
    assert NcnnContestant().unavailable_reason(model) is None


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


@pytest.mark.parametrize("written", [False, True])
def test_a_conversion_is_asked_for_at_one_size_and_failures_are_told(model, tmp_path, monkeypatch, written):
    asked = []

    def run(command, cwd, **_):
        asked.append(command)
        if written:
            (cwd / "network.ncnn.param").write_text("")
            (cwd / "network.ncnn.bin").write_text("")
        return subprocess.CompletedProcess(command, 0, "", "line one\nline two")

    monkeypatch.setattr(ncnn, "converter", lambda: "pnnx")
    monkeypatch.setattr(ncnn.subprocess, "run", run)
    channels = model.card.architecture.in_channels
    if written:
        assert convert(model, (32, 64), tmp_path) == (
            tmp_path / "network.ncnn.param",
            tmp_path / "network.ncnn.bin",
        )
    else:
        with pytest.raises(DeviceError) as error:
            convert(model, (32, 64), tmp_path)
        assert str(error.value) == "pnnx: cannot convert model.onnx (line one line two)"
    assert asked == [["pnnx", "network.onnx", f"inputshape=[1,{channels},32,64]f32", "fp16=0"]]
