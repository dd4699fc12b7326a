from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
from networks import make_card, make_network
from onnx import helper, numpy_helper

from export.graph import build_graph
from export.layers import layers_of
from export.precision import for_cpus as module
from export.precision.for_cpus import for_cpus, range_of_pictures
from export.proof import graph_run
from unet_core.model import Segmenter


@cache
def built(widths, **spec):
    network = make_network(widths=widths).eval()
    card = make_card(network)
    card = replace(card, input=replace(card.input, **spec))
    return build_graph(Segmenter(network, card).eval(), card)


def graph_of(widths=(8, 16), **spec):
    """A copy of the graph of a network whose card has another input."""
    return onnx.ModelProto.FromString(built(widths, **spec).SerializeToString())


def kinds_of(model):
    return {node.name: node.op_type for node in model.graph.node}


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize("spec", [{}, IMAGENET], ids=["0 and 1", "ImageNet"])
def test_bytes_are_turned_and_padded_and_all_answers_are_the_same_bit_for_bit(spec):
    model = graph_of(**spec)
    changed = for_cpus(model)
    onnx.checker.check_model(changed, full_check=True)
    order = [node.op_type for node in changed.graph.node if node.name.startswith("before.")]
    scaling = ["Div", "Sub", "Div"] if spec else ["Div"]
    assert [kind for kind in order if kind in ("Transpose", "Pad", "Cast", "Div", "Sub")] == [
        "Transpose",
        "Pad",
        "Cast",
        *scaling,
    ]
    for shape in ((1, 16, 24, 3), (2, 5, 7, 3)):
        assert np.array_equal(graph_run(changed)(pictures(*shape)), graph_run(model)(pictures(*shape)))


def test_the_range_of_pictures_is_that_of_all_bytes():
    ((name, bounds),) = range_of_pictures(graph_of()).items()
    assert (name, bounds) == ("before.pad", (0, 1))
    (bounds,) = range_of_pictures(graph_of(**IMAGENET)).values()
    assert bounds == pytest.approx((-0.485 / 0.229, (1 - 0.406) / 0.225), rel=1e-6)


def test_a_network_that_scales_by_itself_counts():
    """Its own subtraction follows the file's."""
    model = graph_of()
    first = next(node for node in model.graph.node if node.name == "downs.0.conv.0")
    model.graph.initializer.append(numpy_helper.from_array(np.full((1, 3, 1, 1), 0.5, np.float32), "half"))
    place = list(model.graph.node).index(first)
    model.graph.node.insert(place, helper.make_node("Sub", [first.input[0], "half"], ["centred"], name="centre"))
    first.input[0] = "centred"
    assert range_of_pictures(model) == {"centred": (-0.5, 0.5)}
    assert np.array_equal(graph_run(for_cpus(model))(pictures(1, 5, 7, 3)), graph_run(model)(pictures(1, 5, 7, 3)))


@pytest.mark.parametrize("asked", ["before.div_2", "before.transpose", None])
def test_a_network_s_own_transpose_and_what_asks_for_shapes_on_the_way_stay_where_they_are(asked):
    """Constants are made for planes, and a network may ask for the shape of what it scales later."""
    model = graph_of(**IMAGENET)
    nodes = {node.name: node for node in model.graph.node}
    first = nodes["downs.0.conv.0"]
    start = first.input[0]
    if asked is None:
        turned = [
            helper.make_node("Transpose", [start], ["last"], name="to.last", perm=[0, 2, 3, 1]),
            helper.make_node("Relu", ["last"], ["positive"], name="positive"),
            helper.make_node("Transpose", ["positive"], ["planes"], name="to.planes", perm=[0, 3, 1, 2]),
        ]
        place = list(model.graph.node).index(first)
        for node in reversed(turned):
            model.graph.node.insert(place, node)
        first.input[0] = "planes"
    else:
        model.graph.node.append(helper.make_node("Shape", [nodes[asked].output[0]], ["shape"], name="asking"))
        model.graph.output.append(helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [4]))
    changed = for_cpus(model)
    onnx.checker.check_model(changed, full_check=True)
    assert np.array_equal(graph_run(changed)(pictures(1, 5, 7, 3)), graph_run(model)(pictures(1, 5, 7, 3)))


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("zeros around the picture", "before.div_2"),
        ("two readers", "before.transpose"),
        ("a computed scale", "before.transpose"),
        ("a second conversion", None),
    ],
)
def test_what_is_moved_ends_where_the_graph_does_something_else(what, value):
    model = graph_of()
    nodes = {node.name: node for node in model.graph.node}
    if what == "zeros around the picture":
        next(one for one in nodes["before.pad"].attribute if one.name == "mode").s = b"constant"
    elif what == "two readers":
        model.graph.node.append(helper.make_node("Relu", ["before.transpose"], ["unused"], name="reader"))
    elif what == "a computed scale":
        model.graph.node.insert(0, helper.make_node("Identity", ["before.div.constant"], ["computed"], name="compute"))
        nodes["before.div"].input[1] = "computed"
    else:
        cast = helper.make_node("Cast", ["image"], ["unused"], name="again", to=onnx.TensorProto.FLOAT)
        model.graph.node.append(cast)
    assert [*range_of_pictures(model)] == ([] if value is None else [value])
    assert np.array_equal(graph_run(for_cpus(model))(pictures(1, 5, 7, 3)), graph_run(model)(pictures(1, 5, 7, 3)))


def test_wide_transposed_convolutions_become_products(monkeypatch):
    model = graph_of()
    assert kinds_of(for_cpus(model))["ups.0"] == "ConvTranspose"
    monkeypatch.setattr(module, "PRODUCT_CHANNELS", 16)
    changed = for_cpus(model)
    onnx.checker.check_model(changed, full_check=True)
    kinds = kinds_of(changed)
    assert (kinds["ups.0"], kinds["ups.0.moved"], kinds["ups.2"]) == ("Conv", "DepthToSpace", "ConvTranspose")
    assert layers_of(changed) == layers_of(model)
    picture = pictures(2, 10, 14, 3)
    assert np.abs(graph_run(changed)(picture) - graph_run(model)(picture)).max() < 1e-6


@pytest.mark.parametrize(
    "change", [{"pads": [0, 0, 1, 1]}, {"output_padding": [1, 1]}, {"dilations": [2, 2]}, "shared"]
)
def test_those_that_overlap_or_share_weights_do_not(monkeypatch, change):
    monkeypatch.setattr(module, "PRODUCT_CHANNELS", 1)
    model = graph_of()
    node = next(node for node in model.graph.node if node.op_type == "ConvTranspose")
    if change == "shared":
        again = onnx.NodeProto()
        again.CopyFrom(node)
        again.name, again.output[0] = "again", "again"
        model.graph.node.insert(list(model.graph.node).index(node), again)
    else:
        ((name, value),) = change.items()
        kept = [one for one in node.attribute if one.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
    assert kinds_of(for_cpus(model))[node.name] == "ConvTranspose"
