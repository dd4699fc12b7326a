import json
from dataclasses import replace

import numpy as np
import pytest
from masks import names_in
from onnx import numpy_helper

from export import export_onnx, exporter, refusal
from export.graph import build_graph
from export.precision import fp16, int8
from export.proof import graph_run
from runtime.errors import ProofError
from unet_core.checkpoint import load_checkpoint, save_checkpoint, weights_sha256


def test_a_graph_that_is_not_the_network_is_not_written(at_hand, trained, scaled, monkeypatch, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"older file")
    monkeypatch.setattr(exporter, "build_graph", lambda *_: scaled(trained.graph, {"ups.0.weight": 1.01}))
    with pytest.raises(
        ProofError, match=r"not written, the graph differs from the network: at \(batch, height, width\)"
    ) as caught:
        export_onnx(at_hand)
    assert "expected at most 0.0001" in str(caught.value)
    assert (tmp_path / "model.onnx").read_bytes() == b"older file"
    assert names_in(tmp_path) == ["model.onnx", "model.pth", "model.refused.json"]
    report = json.loads((tmp_path / "model.refused.json").read_text())
    assert report["reason"] in str(caught.value)
    rows = report["card"]["proof"]["rows"]
    assert max(row["parity"]["max_abs_error"] for row in rows) == caught.value.card.proof.max_abs_error > 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_wrong_graph_is_refused_before_it_is_converted(at_hand, trained, scaled, monkeypatch, precision):
    """Its copies are compared with it: they would pass."""
    monkeypatch.setattr(exporter, "build_graph", lambda *_: scaled(trained.graph, {"ups.0.weight": 1.01}))
    with pytest.raises(ProofError, match="the graph differs from the network"):
        export_onnx(at_hand, precision=precision, data=trained.data)


def test_neighbours_in_a_batch_are_looked_for(at_hand, monkeypatch):
    monkeypatch.setattr(refusal, "depends_on_batch", lambda *_: True)
    with pytest.raises(ProofError, match="an image's answer depends on the other images in its batch"):
        export_onnx(at_hand)


def test_weights_that_probabilities_do_not_show_are_still_compared(at_hand, trained, tmp_path, monkeypatch):
    """All answers are near 0, so zeros in the middle of the network change no probability by 1e-6."""
    state = dict(load_checkpoint(trained.checkpoint).state_dict)
    state["final_conv.bias"] = state["final_conv.bias"] - 40
    save_checkpoint(tmp_path / "model.pth", state, replace(trained.card, weights_sha256=weights_sha256(state)))

    def build(segmenter, card, opset, damage=()):
        model = build_graph(segmenter, card, opset)
        for tensor in model.graph.initializer:
            if tensor.name in damage:
                tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
        return model

    monkeypatch.setattr(exporter, "build_graph", lambda *given: build(*given, damage=("downs.1.conv.3.weight",)))
    with pytest.raises(
        ProofError, match=r"the graph differs from the network: its logits are off by \S+ of their range"
    ) as no:
        export_onnx(tmp_path / "model.pth")
    assert no.value.card.proof.max_abs_error < 1e-6
    monkeypatch.setattr(exporter, "build_graph", build)
    report = export_onnx(tmp_path / "model.pth")
    assert report.notes[-1].startswith("the network answers one class everywhere on the pictures of the proof")


def test_what_is_written_is_what_was_judged(at_hand, trained, tmp_path, monkeypatch):
    """fp16 is judged on a graph that rounds; the one that is written must be its twin."""
    real = fp16.to_half

    def other(model, keep=()):
        half = real(model, keep)
        (bias,) = (tensor for tensor in half.graph.initializer if tensor.name == "final_conv.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float16(0.007), bias.name))
        return half

    monkeypatch.setattr(fp16, "to_half", other)
    with pytest.raises(ProofError, match=r"the graph is off by 0\.00\d+ from the one that was judged"):
        export_onnx(at_hand, precision="fp16", data=trained.data, force=True)


def test_a_converted_graph_whose_images_meet_is_refused(at_hand, trained, monkeypatch):
    real = exporter.convert_to_fp16

    def mixing(*arguments):
        converted = real(*arguments)
        return replace(converted, run=lambda batch: converted.run(batch) + np.float32(1e-6 * batch.mean()))

    monkeypatch.setattr(exporter, "convert_to_fp16", mixing)
    with pytest.raises(ProofError, match="an image's answer depends on the other images in its batch"):
        export_onnx(at_hand, precision="fp16", data=trained.data, force=True)


def test_a_file_that_answers_nan_is_not_even_forced(at_hand, trained, tmp_path, monkeypatch):
    real = exporter.convert_to_fp16

    def broken(*arguments):
        converted = real(*arguments)
        return replace(converted, run=lambda images: converted.run(images) * np.float32("nan"))

    monkeypatch.setattr(exporter, "convert_to_fp16", broken)
    monkeypatch.setattr(refusal, "depends_on_batch", lambda *_: False)
    with pytest.raises(ProofError, match="it answers the golden sample with NaN"):
        export_onnx(at_hand, precision="fp16", data=trained.data, force=True)
    assert names_in(tmp_path) == ["model.fp16.refused.json", "model.pth"]


def test_a_file_that_answers_nan_to_one_image_of_its_gate_is_not_even_forced(at_hand, trained, monkeypatch):
    """The image is not among the pictures of the proof."""
    picture, _ = trained.samples.measured[1]

    def broken(model):
        run = graph_run(model)
        return lambda images: run(images) * np.float32(np.nan if np.array_equal(images, picture[None]) else 1)

    monkeypatch.setattr(exporter, "PROOF_PICTURES", 1)
    monkeypatch.setattr(int8, "graph_run", broken)
    with pytest.raises(ProofError, match="not written, it answers an image that it was judged on with NaN"):
        export_onnx(at_hand, precision="int8", data=trained.data, force=True)


def test_fp16_of_which_nothing_is_left_is_refused(at_hand, monkeypatch):
    monkeypatch.setattr("export.precision.fp16.LARGEST", 0.0)
    with pytest.raises(
        ProofError, match="fp16 loses too much: all layers had to stay in fp32; --force writes it all the same"
    ):
        export_onnx(at_hand, precision="fp16")
