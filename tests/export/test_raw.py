import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import ARCHITECTURES, copy_of, raw_graph_of, segmenter_of
from networks import make_card, make_network
from onnx import numpy_helper

from export import export_onnx
from export.graph import build_raw_graph
from export.proof import cases, expected_answers, network_run, proof_rows, proof_shapes, raw_run
from runtime.card import ModelCard
from runtime.errors import ModelError
from runtime.model_file.digest import check_digest
from runtime.predictor import Predictor
from unet_core.checkpoint import save_checkpoint
from unet_core.model import Segmenter


def logits(model, planes):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": planes})[0]


def test_signature():
    (image,), (answer,) = raw_graph_of().graph.input, raw_graph_of().graph.output
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, answer)]
    assert (image.name, answer.name) == ("image", "logits")
    assert {v.type.tensor_type.elem_type for v in (image, answer)} == {onnx.TensorProto.FLOAT}
    assert sizes == [["batch", 3, "height", "width"], ["batch", 1, "height", "width"]]


@pytest.mark.parametrize(("config", "up"), [({}, "ConvTranspose"), (ARCHITECTURES[1], "Resize")], ids=str)
def test_there_is_the_network_and_nothing_else(config, up):
    assert {node.op_type for node in raw_graph_of(**config).graph.node} == {"Conv", "Relu", "MaxPool", "Concat", up}


@pytest.mark.parametrize("config", [{}, ARCHITECTURES[1]], ids=str)
def test_logits_equal_pytorchs_at_multiples_of_the_stride(config):
    network, stride = segmenter_of(**config)[0].network, 2 ** len(config.get("widths", "12"))
    for batch, rows, columns in [(1, 1, 1), (2, 1, 7), (3, 5, 2), (1, 8, 8)]:
        planes = torch.randn(batch, 3, rows * stride, columns * stride)
        with torch.inference_mode():
            expected = network(planes).numpy()
        assert expected.shape == (batch, config.get("classes", 1), rows * stride, columns * stride)
        assert np.abs(logits(raw_graph_of(**config), planes.numpy()) - expected).max() < 1e-5


@pytest.mark.parametrize("config", [{}, ARCHITECTURES[1]], ids=str)
@pytest.mark.parametrize("size", [(17, 16), (16, 15), (20, 18), (2, 16), (1, 1)])
def test_other_sizes_are_onnxruntimes_error_and_no_wrong_answer(config, size):
    with pytest.raises(Exception, match=r"(?i)onnxruntime|Non-zero status|INVALID"):
        logits(raw_graph_of(**config), np.zeros((1, 3, *size), np.float32))


@pytest.mark.parametrize("config", [{}, ARCHITECTURES[1]], ids=str)
def test_with_what_a_program_does_around_it_it_equals_pytorch_at_all_shapes_of_the_proof(config):
    segmenter, card = segmenter_of(**config)
    rows = proof_rows(
        raw_run(raw_graph_of(**config), card), expected_answers(network_run(segmenter), cases(card)), card.output
    )
    assert {row.shape for row in rows} >= set(proof_shapes(card))
    assert 0 < max(row.parity.max_abs_error for row in rows) < 2e-6


@pytest.mark.parametrize("config", [{}, ARCHITECTURES[1]], ids=str)
@pytest.mark.parametrize(("bias", "answer"), [(-500, 0), (500, 1), (np.nan, np.nan)])
def test_logits_far_from_zero_are_sure_answers_and_nan_stays_nan(config, bias, answer):
    """exp(500) is more than a float32 holds; a warning of it would fail this test."""
    model = copy_of(raw_graph_of(**config))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "final_conv.bias")
    biases = np.zeros(tensor.dims, np.float32)
    biases[0] = bias
    tensor.CopyFrom(numpy_helper.from_array(biases, tensor.name))
    answers = raw_run(model, segmenter_of(**config)[1])(np.zeros((1, 9, 9, 3), np.uint8))
    assert np.array_equal(answers[:, 0], np.full((1, 9, 9), answer, np.float32), equal_nan=True)


def test_other_opsets_and_grey():
    network = make_network(widths=(3,), in_channels=1)
    card = make_card(network)
    segmenter = Segmenter(network, card).eval()
    model = build_raw_graph(segmenter, card, opset=23)
    assert model.opset_import[0].version == 23
    image = np.random.default_rng(0).integers(0, 256, (2, 7, 5, 1)).astype(np.uint8)
    assert np.abs(raw_run(model, card)(image) - network_run(segmenter)(image)).max() < 2e-6


def test_the_file_has_its_card_and_the_runtime_refuses_it_by_name(tmp_path):
    network = make_network(widths=(3,))
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), make_card(network))
    report = export_onnx(tmp_path / "model.pth", raw=True)
    assert report.path == tmp_path / "model.raw.onnx"
    entry, digest = onnx.load(report.path).metadata_props
    assert (entry.key, digest.key, check_digest(report.path).told) == ("unet.raw", "unet.digest", "verified")
    assert ModelCard.from_json(entry.value) == report.card
    assert report.card.proof.max_abs_error < 2e-6
    with pytest.raises(ModelError) as caught:
        Predictor(report.path, "cpu")
    assert str(caught.value) == (
        f"{report.path}: is a raw export (normalised planes in, logits out); export it again without --raw"
    )
