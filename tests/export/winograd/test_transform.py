"""Graphs rewritten with Winograd's filtering answer as the graphs that they were made from."""

import re
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from families import Mateuszbuda, Milesial, Usuyama, randomised
from networks import make_card, make_network
from onnx import numpy_helper

from benchmarks.cases.layers import TRANSPOSED
from export.graph import build_graph
from export.proof import logits_run, open_graph
from export.winograd.transform import TILE, Form, matrices, rewritable, rewrite
from unet_core.checkpoint import load_checkpoint, save_checkpoint
from unet_core.model import Segmenter

FORMS = get_args(Form)
SHAPES = [(1, 32, 48), (3, 33, 49), (1, 1, 1), (2, 7, 90)]


@cache
def _graph_of(config):
    network = make_network(**dict(config))
    return build_graph(Segmenter(network, make_card(network)), make_card(network))


def graph_of(**config):
    model = onnx.ModelProto()
    model.CopyFrom(_graph_of(tuple(sorted(config.items()))))
    return model


def pictures(batch, height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, channels), np.uint8)


def error(model, other, channels=3):
    """Largest difference of logits over all shapes, as a share of their range as `logits_error` takes it."""
    run, again = logits_run(model), logits_run(other)
    expected = [run(pictures(*shape, channels)) for shape in SHAPES]
    found = [again(pictures(*shape, channels)) for shape in SHAPES]
    worst = max(np.abs(one - other).max() for one, other in zip(found, expected, strict=True))
    values = np.concatenate([one.reshape(-1) for one in expected])
    return float(worst / max(np.ptp(values), 0.1 * np.abs(values).max()))


@pytest.mark.parametrize("tile", [2, 4])
def test_the_matrices_are_those_of_a_correlation(tile):
    to_tiles, to_filters, to_outputs = matrices(tile)
    random = np.random.default_rng(0)
    inputs, weight = random.normal(size=(tile + 2, tile + 2)), random.normal(size=(3, 3))
    products = (to_filters @ weight @ to_filters.T) * (to_tiles @ inputs @ to_tiles.T)
    direct = np.lib.stride_tricks.sliding_window_view(inputs, (3, 3)).reshape(tile, tile, 9) @ weight.reshape(9)
    assert to_outputs @ products @ to_outputs.T == pytest.approx(direct)


def test_without_forms_the_graph_is_the_same():
    model = graph_of()
    assert rewrite(model, {}).graph.SerializeToString(deterministic=True) == model.graph.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("form", [form for form in FORMS if form != "direct"])
def test_every_form_answers_as_the_network_at_every_size(form):
    model = graph_of(widths=(4, 8, 6))
    rewritten = rewrite(model, dict.fromkeys(rewritable(model), form))
    onnx.checker.check_model(rewritten, full_check=True)
    assert not [node for node in rewritten.graph.node if node.op_type == "ConvTranspose"]
    assert [node.name for node in rewritten.graph.node if node.op_type == "Conv"] == ["final_conv"]
    assert 0 < error(model, rewritten) < 1e-5


@pytest.mark.parametrize("form", [form for form in FORMS if form != "direct"])
@pytest.mark.parametrize("block", [1, 1500, 10**9])
def test_blocks_of_any_size_answer_as_the_network(form, block):
    model = graph_of(widths=(4, 8, 6))
    rewritten = rewrite(model, dict.fromkeys(rewritable(model), form), block)
    assert 0 < error(model, rewritten) < 1e-5
    first = next(node for node in rewritten.graph.node if node.op_type == "Scan")
    rewritten.graph.output.append(onnx.helper.make_empty_tensor_value_info(first.output[0]))
    found = open_graph(rewritten).run([first.output[0]], {"image": pictures(1, 64, 96)})[0]
    lines = -(-64 // TILE[form])
    assert len(found) == {1: lines, 10**9: 1}.get(block, len(found))  # in lines of tiles, or whole
    assert block != 1500 or 1 < len(found) < lines


@pytest.mark.parametrize("form", [form for form in FORMS if form != "direct"])
@pytest.mark.parametrize("every", [1, 2])
def test_no_pictures_have_no_answers(form, every):
    model = graph_of(widths=(4, 8, 6))
    rewritten = rewrite(model, dict.fromkeys(rewritable(model)[::every], form))
    none = pictures(0, 33, 49)
    assert logits_run(rewritten)(none).shape == logits_run(model)(none).shape == (0, 1, 33, 49)


@pytest.mark.parametrize(
    "config",
    [
        {"classes": 5},
        {"in_channels": 1},
        {"up": "bilinear"},
        {"up": "bilinear-wide"},
        {"widths": (3, 5, 7, 9)},
    ],
)
def test_mixed_forms_answer_as_networks_of_all_kinds(config):
    model = graph_of(**config)
    for seed in range(3):
        chosen = np.random.default_rng(seed).choice(FORMS, len(rewritable(model)))
        rewritten = rewrite(model, dict(zip(rewritable(model), chosen, strict=True)))
        onnx.checker.check_model(rewritten, full_check=True)
        assert error(model, rewritten, config.get("in_channels", 3)) < 1e-5


@pytest.mark.parametrize("up", ["transpose", "bilinear-wide"])
def test_a_skip_connection_is_joined_as_pictures_only_where_its_parts_are_not_equally_wide(up):
    model = graph_of(up=up)
    rewritten = rewrite(model, dict.fromkeys(rewritable(model), "f4"))
    concats = [node for node in rewritten.graph.node if node.op_type == "Concat"]
    along_channels = [node for node in concats if any(one.name == "axis" and one.i == 1 for one in node.attribute)]
    assert bool(along_channels) == (up == "bilinear-wide")
    assert error(model, rewritten) < 1e-5


def test_a_layer_s_name_and_form_are_those_of_its_scan():
    model = graph_of()
    forms = {"downs.1.conv.0": "f4", "downs.1.conv.3": "f2-few", "bottleneck.conv.0": "direct"}
    rewritten = rewrite(model, forms)
    names = [node.name for node in rewritten.graph.node if node.op_type == "Scan"]
    assert names == ["downs.1.conv.0.f4", "downs.1.conv.3.f2-few"]


def test_only_convolutions_of_3x3_are_rewritten():
    with pytest.raises(AssertionError, match="not of 3x3"):
        rewrite(graph_of(), {"final_conv": "f4"})


def with_large_biases(model):
    """All biases are 10, so that a border of anything but zeros shows."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".bias"):
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), 10), tensor.name))
    return model


@pytest.mark.parametrize("form", [form for form in FORMS if form != "direct"])
def test_what_lies_outside_is_zero_whatever_the_biases_are(form):
    model = with_large_biases(graph_of())
    assert error(model, rewrite(model, dict.fromkeys(rewritable(model), form))) < 1e-5


def test_a_convolution_without_relu_or_bias_keeps_what_is_below_zero():
    model = graph_of()
    relu = next(node for node in model.graph.node if node.op_type == "Relu" and node.input[0] == "downs.1.conv.0")
    for node in model.graph.node:
        node.input[:] = ["downs.1.conv.0" if value == relu.output[0] else value for value in node.input]
    model.graph.node.remove(relu)
    bare = next(node for node in model.graph.node if node.name == "downs.1.conv.0")
    del bare.input[2]
    assert error(model, rewrite(model, {"downs.1.conv.0": "f4", "downs.1.conv.3": "f2-few"})) < 1e-5


def test_the_same_graph_gives_the_same_bytes():
    model = graph_of()
    forms = dict.fromkeys(rewritable(model), "f4-few")
    assert rewrite(model, forms).SerializeToString(deterministic=True) == rewrite(model, forms).SerializeToString(
        deterministic=True
    )


def test_only_convolutions_of_3x3_that_keep_the_size_can_be_rewritten():
    model = graph_of()
    assert "final_conv" not in rewritable(model)
    assert len(rewritable(model)) == sum(node.op_type == "Conv" for node in model.graph.node) - 1
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    next(one for one in first.attribute if one.name == "strides").ints[:] = [2, 2]
    assert first.name not in rewritable(model)


@pytest.mark.parametrize("family", [Milesial, Mateuszbuda, Usuyama])
def test_checkpoints_of_other_projects_are_rewritten_as_ours(tmp_path, family):
    torch.save(randomised(family(widths=(4, 6))).state_dict(), tmp_path / "model.pth")
    loaded = load_checkpoint(tmp_path / "model.pth")
    model = build_graph(Segmenter(loaded.network(), loaded.card), loaded.card)
    names = rewritable(model)
    rewritten = rewrite(model, dict(zip(names, ("f4", "f4-few", "f2-few") * len(names), strict=False)))
    assert error(model, rewritten) < 1e-5


def test_the_documented_way_to_change_a_layer(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[3] / "docs" / "winograd.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    Path("runs/car").mkdir(parents=True)
    network = make_network(widths=(4, 8, 16))
    save_checkpoint("runs/car/model.pth", network.state_dict(), make_card(network))
    exec(compile(example, "docs/winograd.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out) < 1e-5


def test_every_form_is_told():
    text = (Path(__file__).parents[3] / "docs" / "winograd.md").read_text()
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.M)) == {*FORMS, TRANSPOSED}


def test_large_values_lose_no_more():
    network = make_network()
    with torch.no_grad():
        next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d)).weight *= 1e4
    card = make_card(network)
    model = build_graph(Segmenter(network, card), card)
    assert error(model, rewrite(model, dict.fromkeys(rewritable(model), "f4"))) < 1e-5
