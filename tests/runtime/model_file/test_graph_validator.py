"""Files that are refused before a session is made, whatever the bytes; all others are let through."""

import random
import time
import tracemalloc

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import ModelError
from runtime.inference import loaded_model
from runtime.model_file import graph_validator
from runtime.model_file.graph_validator import check_model
from runtime.model_file.protobuf_reader import MAX_FIELDS, field
from runtime.predictor import Predictor

ADVICE = "; export the model again with unet-export"


@pytest.fixture
def check(tmp_path):
    """Write a model, or bytes, to a file and check it; a refusal is given back without the file's name."""
    path = tmp_path / "model.onnx"

    def write_and_check(model):
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        try:
            check_model(path)
        except ModelError as error:
            return str(error).removeprefix(f"{path}: ")
        return None

    return write_and_check


def tensor(**changes):
    """float32 [2, 3] with its six numbers raw, and what is changed of it."""
    value = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "six")
    for name, content in changes.items():
        value.ClearField(name)
        if isinstance(content, list):
            getattr(value, name).extend(content)
        elif content is not None:
            setattr(value, name, content)
    return value


def external():
    value = tensor(raw_data=None, data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="../secret")
    return value


def nested(graph, depth):
    """A graph that holds `graph` in `depth` branches of a node within each other."""
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["d"], then_branch=graph, else_branch=helper.make_graph([], "e", [], []))
        graph = helper.make_graph([node], "outer", [], [])
    return graph


def in_weights(graph, value):
    graph.initializer.append(value)


def in_an_attribute(graph, value):
    graph.node.append(helper.make_node("Constant", [], ["c"], value=value))


def in_a_list_of_an_attribute(graph, value):
    graph.node.add(op_type="Constant").attribute.add(name="values").tensors.append(value)


def in_a_branch(graph, value):
    graph.node.extend(nested(helper.make_graph([], "inner", [], [], [value]), 3).node)


def in_a_list_of_graphs(graph, value):
    inner = helper.make_graph([], "inner", [], [], [value])
    graph.node.add(op_type="Scan").attribute.add(name="bodies").graphs.append(inner)


PLACES = [in_weights, in_an_attribute, in_a_list_of_an_attribute, in_a_branch, in_a_list_of_graphs]


@pytest.mark.parametrize("place", PLACES)
def test_tensor_in_another_file_is_refused_wherever_it_is(check, make_graph, place):
    model = make_graph()
    place(model.graph, tensor())
    assert check(model) is None
    place(model.graph, external())
    refusal = (
        "stores the tensor 'six' in another file, which was not opened; expected one file, as unet-export writes it"
    )
    assert check(model) == refusal


@pytest.mark.parametrize(
    "changes", [{"data_location": 1}, {"external_data": [onnx.StringStringEntryProto(key="location")]}]
)
def test_half_of_what_makes_a_tensor_external_is_enough(check, make_graph, changes):
    model = make_graph()
    in_weights(model.graph, tensor(**changes))
    assert check(model).startswith("stores the tensor 'six' in another file")


def test_location_that_is_external_only_when_cut_to_32_bits_is_refused(check):
    content = tensor().SerializeToString() + field(14, 2**32 + 1)
    assert check(field(7, field(5, content))).startswith("stores the tensor 'six' in another file")


def graph_with_sparse(graph):
    graph.sparse_initializer.add(dims=[10**6, 10**6])


def node_with_sparse(graph):
    graph.node.add(op_type="Constant").attribute.add(name="v").sparse_tensor.dims.append(10**9)


def graph_with_sequence(graph):
    graph.input.add(name="s").type.sequence_type.elem_type.tensor_type.elem_type = 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda model: graph_with_sparse(model.graph), "a sparse tensor"),
        (lambda model: node_with_sparse(model.graph), "a sparse tensor"),
        (lambda model: graph_with_sequence(model.graph), "a value that is not a tensor"),
        (lambda model: model.functions.add(name="f", domain="d"), "its own function"),
        (lambda model: model.training_info.add(), "a training graph"),
    ],
)
def test_what_no_unet_needs_is_refused(check, make_graph, change, found):
    model = make_graph()
    change(model)
    assert check(model) == f"has {found}, expected none{ADVICE}"


@pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"])
def test_domains_that_onnx_runtime_has_built_in_are_let_through(check, make_graph, domain):
    model = make_graph()
    model.graph.node[0].domain = domain
    assert check(model) is None


@pytest.mark.parametrize(
    ("domain", "shown"),
    [
        ("org.pytorch.aten", "'org.pytorch.aten'"),
        ("COM.MICROSOFT", "'COM.MICROSOFT'"),
        ("root:x:0\n", "(9 characters)"),
        ("ä" * 300, "(300 characters)"),
    ],
)
def test_any_other_domain_is_refused_in_an_inner_graph_too(check, make_graph, domain, shown):
    refusal = f"has an operator of the domain {shown}, expected only ONNX Runtime's own{ADVICE}"
    model = make_graph()
    model.opset_import.append(helper.make_opsetid(domain, 1))
    assert check(model) is None  # naming a domain without using it does nothing
    inner = helper.make_graph([helper.make_node("Evil", [], ["x"], domain=domain)], "inner", [], [])
    model.graph.node.extend(nested(inner, 2).node)
    assert check(model) == refusal


def test_operator_that_runs_code_from_elsewhere_is_refused(check, make_graph):
    model = make_graph()
    model.graph.node.append(helper.make_node("EPContext", [], [], domain="com.microsoft", ep_cache_context="/tmp/x.so"))
    assert check(model) == f"has the operator EPContext, which runs code from elsewhere, expected none{ADVICE}"


SIX = "the tensor 'six' of the sizes"


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"dims": [2, 4]}, f"has {SIX} [2, 4] with 24 bytes of data, expected 32"),
        ({"dims": [2]}, f"has {SIX} [2] with 24 bytes of data, expected 8"),
        ({"dims": [10**6, 10**6]}, f"has {SIX} [1000000, 1000000] with 24 bytes of data, expected {4 * 10**12}"),
        ({"dims": [-2, 3]}, "has a tensor of the sizes [-2], expected each from 0 to 2147483647"),
        ({"dims": [2**31]}, "has a tensor of the sizes [2147483648], expected each from 0 to 2147483647"),
        ({"dims": [1] * 17}, "has a tensor of more than 16 dimensions, expected 4 or so"),
        ({"data_type": 99}, "has the tensor 'six' of the unknown type 99, expected a type of ONNX"),
        ({"data_type": 0}, "has the tensor 'six' of the unknown type 0, expected a type of ONNX"),
        ({"data_type": TensorProto.DOUBLE}, f"has {SIX} [2, 3] with 24 bytes of data, expected 48"),
        ({"data_type": TensorProto.STRING}, f"has {SIX} [2, 3] with data of several types, expected one"),
        ({"raw_data": None}, f"has {SIX} [2, 3] with 0 entries of data, expected 6"),
        ({"float_data": [0.5] * 6}, f"has {SIX} [2, 3] with data of several types, expected one"),
        ({"raw_data": None, "float_data": [0.5] * 5}, f"has {SIX} [2, 3] with 5 entries of data, expected 6"),
        ({"raw_data": None, "int32_data": [1] * 6}, f"has {SIX} [2, 3] with data of several types, expected one"),
        ({"raw_data": None, "dims": [0, 3]}, None),
        ({"raw_data": None, "float_data": [0.5] * 6}, None),
        ({"raw_data": b"1234", "dims": []}, None),
    ],
)
def test_tensor_that_contradicts_its_data_is_refused(check, make_graph, changes, refusal):
    model = make_graph()
    in_weights(model.graph, tensor(**changes))
    assert check(model) == (refusal and refusal + ADVICE)


@pytest.mark.parametrize("kind", sorted(graph_validator.STORED))
@pytest.mark.parametrize("raw", [False, True])
def test_tensors_of_every_type_as_onnx_writes_them_are_let_through(check, make_graph, kind, raw):
    if raw and kind == TensorProto.STRING:
        pytest.skip("strings are never raw")
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    values = np.array([b"a"] * 5, object) if kind == TensorProto.STRING else np.ones(5, dtype)
    if raw:
        bits = graph_validator.STORED[kind][1]
        made = helper.make_tensor("t", kind, [5], b"\0" * -(-5 * bits // 8), raw=True)
    else:
        made = helper.make_tensor("t", kind, [5], values)
    model = make_graph()
    in_weights(model.graph, made)
    assert check(model) is None
    model.graph.initializer[-1].dims[0] = 500
    assert "the tensor 't' of the sizes [500] with " in check(model)


def test_packed_dimensions_and_numbers_are_read_too(check):
    def file(dimensions):
        return field(7, field(5, field(1, dimensions) + field(2, 7) + field(7, bytes([1] * 6)) + field(8, b"six")))

    assert check(file(b"\x02\x03")) is None
    assert check(file(b"\x02\x03\x10")) == f"has {SIX} [2, 3, 16] with 1 to 6 entries of data, expected 96{ADVICE}"
    assert check(file(b"\x01" * 10**6)) == f"has a tensor of more than 16 dimensions, expected 4 or so{ADVICE}"


@pytest.mark.parametrize(
    ("sides", "refusal"),
    [
        (
            [1, 2**30, 2**30, 3],
            "has a value of the sizes [1, 1073741824, 1073741824, 3], expected at most 1099511627776 ",
        ),
        (["n", 2**40], "has a tensor of the sizes [1, 1099511627776], expected each from 0 to 2147483647"),
        ([1] * 17, "has a tensor of more than 16 dimensions"),
    ],
)
def test_absurd_sizes_of_an_input_are_refused(check, make_graph, sides, refusal):
    model = make_graph()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, sides))
    assert check(model).startswith(refusal)


def test_negative_side_of_a_value_is_an_unknown_one_as_onnx_runtime_has_it(write_model, make_graph):
    model = make_graph("softmax")
    for value in (model.graph.input[0], model.graph.output[0]):
        for place, side in enumerate(value.type.tensor_type.shape.dim):
            if side.dim_param:
                value.type.tensor_type.shape.dim[place].dim_value = -1
    path = write_model("softmax", graph=model)
    assert Predictor(path, "cpu", threads=1).run(np.zeros((2, 8, 12, 3), np.uint8)).shape == (2, 3, 8, 12)


def test_nodes_are_counted_through_all_graphs(check, monkeypatch):
    monkeypatch.setattr(graph_validator, "MAX_NODES", 5)
    inner = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])] * 2, "inner", [], [])
    assert check(onnx.ModelProto(graph=nested(inner, 3))) is None
    assert check(onnx.ModelProto(graph=nested(inner, 4))) == f"has more than 5 nodes, expected fewer{ADVICE}"


@pytest.mark.parametrize("depth", [7, 8, 5_000])
def test_depth_of_graphs_is_bounded(check, depth):
    content = b""
    for _ in range(depth):
        content = field(1, field(5, field(6, content)))
    refusal = check(field(7, content))
    assert refusal == (None if depth == 7 else f"has graphs nested more than 8 deep, expected fewer{ADVICE}")


def test_long_names_and_texts_are_refused(check, make_graph):
    for name, size in (("name", 1_025), ("doc_string", 2**20 + 1)):
        model = make_graph()
        setattr(model.graph.node[0], name, "x" * (size - 1))
        assert check(model) is None
        setattr(model.graph.node[0], name, "x" * size)
        assert check(model) == f"has a name or text of {size} bytes, expected at most {size - 1}{ADVICE}"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (field(7, b"") * 2, "a field is repeated"),
        (field(7, 5), "a field has another kind than in ONNX"),
        (field(7, field(5, field(9, 1))), "a field has another kind than in ONNX"),
        (field(7, field(5, field(4, b"123"))), "a list of numbers ends within one"),
        (field(1, 8), "no graph in it"),
        (field(7, field(1, field(7, b"\xff"))), "a text is not UTF-8"),
        (field(7, field(99, 1) * (MAX_FIELDS + 1)), f"it has more than {MAX_FIELDS} fields"),
    ],
)
def test_malformed_file_names_its_fault(check, content, fault):
    assert check(content) == f"is not an ONNX file, or is truncated ({fault}); copy or export it again"


@pytest.mark.parametrize(("ir_version", "opset"), [(10, 20), (13, 26)])
def test_versions_that_onnx_runtime_reads_are_let_through(check, make_graph, ir_version, opset):
    model = make_graph()
    model.ir_version, model.opset_import[0].version = ir_version, opset
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert check(model) is None


@pytest.mark.parametrize(("ir_version", "opset"), [(10, 999), (99, 20), (10, -1 % 2**63)])
def test_newer_onnx_than_onnx_runtime_reads_is_told_with_what_to_do(check, make_graph, ir_version, opset):
    model = make_graph()
    model.ir_version, model.opset_import[0].version = ir_version, opset
    assert check(model) == (
        f"has ONNX IR version {ir_version} with opset {opset} of ai.onnx, which ONNX Runtime "
        f"{onnxruntime.__version__} does not read; update onnxruntime, or export the model with a lower --opset"
    )


def test_model_that_onnx_runtime_optimised_and_saved_is_let_through(models, tmp_path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(models["conv"], options, providers=["CPUExecutionProvider"])
    saved = onnx.load(tmp_path / "optimised.onnx")
    assert {node.domain for node in saved.graph.node} & {"com.microsoft", "com.microsoft.nchwc"}
    check_model(tmp_path / "optimised.onnx")


def test_predictor_checks_before_it_makes_a_session(write_model, make_graph, monkeypatch):
    graph = make_graph()
    in_weights(graph.graph, external())
    path = write_model(graph=graph)
    monkeypatch.setattr(loaded_model, "open_session", lambda *_, **__: pytest.fail("a session was made"))
    with pytest.raises(ModelError, match=r"stores the tensor 'six' in another file"):
        Predictor(path, "cpu")


def damaged(content, source):
    """A copy with bits flipped, a part cut off, doubled or replaced, or a length blown up."""
    content = bytearray(content)
    for _ in range(source.randint(1, 4)):
        place, size = source.randrange(len(content)), source.randint(1, 30)
        match source.randrange(6):
            case 0:
                content[place] ^= 1 << source.randrange(8)
            case 1:
                content[place:] = b"\0"
            case 2:
                content[place:place] = content[place : place + size]
            case 3:
                content[place : place + size] = source.randbytes(size)
            case 4:
                content[place:place] = b"\xff" * source.randint(1, 9) + b"\x01"
            case 5:
                del content[place : place + size]
                content += b"\0" * (not content)
    return bytes(content)


def test_damaged_files_are_refused_or_let_through_in_bounded_time_and_memory(check, make_graph):
    model = make_graph("conv")
    in_a_branch(model.graph, tensor())
    helper.set_model_props(model, {"unet.card": "{}"})
    whole, source = model.SerializeToString(), random.Random(5)
    refused = 0
    tracemalloc.start()
    for _ in range(800):
        found = check(damaged(whole, source))
        refused += found is not None
        assert found is None or ("\n" not in found and len(found) < 600 and found.isprintable())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 300 < refused < 800
    assert peak < 2_000_000


def test_bytes_at_random_are_a_model_error(check):
    source = random.Random(6)
    for _ in range(400):
        assert check(source.randbytes(source.randint(1, 90))) is not None


@pytest.mark.parametrize("piece", [field(99, 1), field(1, b""), field(5, field(2, 1)), field(1, field(5, b""))])
def test_file_of_nothing_but_small_fields_takes_bounded_time_and_memory(check, piece):
    content = field(7, piece * 1_000_000)
    start = time.process_time()
    assert check(content) is not None
    assert time.process_time() - start < 20  # a second or so on one core; a walk to the end would take many
