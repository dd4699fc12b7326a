"""Operators that ONNX Runtime's CUDA provider computes, asked on the stand-in: at all opsets, in every kind of file."""

import json

import numpy as np
import onnx
import pytest
from graphs import segmenter_of
from onnx import TensorProto, defs, helper, numpy_helper

from export.cuda_kernels import LAST_OPSET, NEVER, note_on_cuda
from export.graph import build_graph
from export.options import OPSETS, with_fixed_size
from export.precision.fp16 import to_half
from export.precision.int8 import quantisable, to_int8, values_to_calibrate
from runtime.devices.cuda import WITHOUT_INTEGERS
from runtime.devices.placement import SIZE_OPERATORS
from runtime.devices.tensorrt import FP32_BIASES
from unet_core.model import Segmenter

pytestmark = pytest.mark.stub

ALL_OPSETS = range(OPSETS[0], OPSETS[1] + 1)
SHAPE = (1, 8, 16, 16)


def ones(*shape):
    """A constant of ones."""
    return np.ones(shape, np.float32)


PLAIN = (
    "Abs Atan Ceil Celu Cos Dropout Elu Erf Exp Flatten Floor Gelu GlobalAveragePool GlobalMaxPool Hardmax HardSigmoid "
    "HardSwish Identity IsNaN LeakyRelu Log LogSoftmax MeanVarianceNormalization Mish Neg NonZero Reciprocal Relu "
    "Round Selu Shape Shrink Sigmoid Sign Sin Size Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Transpose "
    "Trilu Unique"
)
OF_TWO = "Add Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Pow PRelu Sub Sum"
REDUCTIONS = "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"
OPERATORS = {
    **dict.fromkeys(PLAIN.split(), ((), {})),
    **dict.fromkeys(OF_TWO.split(), ((ones(8, 1, 1),), {})),
    **dict.fromkeys(REDUCTIONS.split(), ((np.array([2, 3]),), {})),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), ((), {"kernel_shape": [2, 2]})),
    **dict.fromkeys(("ArgMax", "ArgMin"), ((), {"axis": 1})),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), ((), {"blocksize": 2})),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), ((np.array([0]),), {})),
    "BatchNormalization": ((ones(8),) * 4, {}),
    "Cast": ((), {"to": TensorProto.FLOAT16}),
    "Clip": ((ones(), ones()), {}),
    "Concat": ((ones(*SHAPE),), {"axis": 1}),
    "Conv": ((ones(8, 8, 3, 3), ones(8)), {}),
    "ConvTranspose": ((ones(8, 8, 2, 2), ones(8)), {}),
    "CumSum": ((np.array(1),), {}),
    "Expand": ((np.array([2, 8, 16, 16]),), {}),
    "Gather": ((np.array([1]),), {"axis": 1}),
    "GatherElements": ((np.zeros(SHAPE, np.int64),), {}),
    "GatherND": ((np.zeros((1, 1), np.int64),), {}),
    "GridSample": ((ones(1, 4, 4, 2),), {}),
    "InstanceNormalization": ((ones(8), ones(8)), {}),
    "LayerNormalization": ((ones(16), ones(16)), {}),
    "LRN": ((), {"size": 3}),
    "MatMul": ((ones(16, 16),), {}),
    "Mod": ((ones(),), {"fmod": 1}),
    "Pad": ((np.array([0, 0, 1, 1] * 2),), {"mode": "reflect"}),
    "QuantizeLinear": ((ones(), np.array(0, np.int8)), {}),
    "Reshape": ((np.array([1, -1]),), {}),
    "Resize": ((None, np.array([1, 1, 2, 2], np.float32)), {"mode": "linear"}),
    "ScatterElements": ((np.zeros((1, 1, 1, 1), np.int64), ones(1, 1, 1, 1)), {}),
    "ScatterND": ((np.zeros((1, 1), np.int64), ones(1, *SHAPE[1:])), {}),
    "Slice": ((np.array([1]), np.array([9])), {}),
    "Split": ((), {"axis": 1, "num_outputs": 2}),
    "Tile": ((np.array([1, 1, 2, 2]),), {}),
    "TopK": ((np.array([2]),), {}),
}
"""Operators of pictures, {name: (further inputs, attributes)}: parts of networks, and what moves and compares."""

PLACES = """
import json, sys
import onnxruntime
from pathlib import Path
from runtime.devices.placement import misplaced_nodes, node_placement
from runtime.devices.session import session_options

onnxruntime.set_default_logger_severity(4)
places = {}
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    options = session_options(1)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, sys.argv[2])
    for name, value in json.loads(sys.argv[3]).items():
        options.add_session_config_entry(name, value)
    chain = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    nodes = node_placement(onnxruntime.InferenceSession(str(path), options, providers=chain, enable_fallback=0))
    on_cpu = sorted({node.operator for node in nodes if node.provider == "CPUExecutionProvider"})
    places[path.stem] = on_cpu, len(nodes), sorted(misplaced_nodes(nodes, "CUDAExecutionProvider"))
print(json.dumps(places))
"""


def all_operators(opset):
    """A graph of one node for each operator that the opset knows, all of the same picture."""
    nodes, constants, known = [], [], []
    for name, (inputs, attributes) in OPERATORS.items():
        if not defs.has(name, opset):
            continue
        names = ["" if value is None else f"{name}.{index}" for index, value in enumerate(inputs)]
        constants += [numpy_helper.from_array(value, key) for key, value in zip(names, inputs, strict=True) if key]
        outputs = [f"{name}.out", f"{name}.rest"][: 2 if name in ("Split", "TopK") else 1]
        nodes.append(helper.make_node(name, ["picture", *names], outputs, name=name, **attributes))
        known.append(name)
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, SHAPE)
    outputs = [helper.make_empty_tensor_value_info(value) for node in nodes for value in node.output]
    graph = helper.make_graph(nodes, "operators", [picture], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model), known


def places_of(stand_in, folder, models, level="ORT_ENABLE_ALL", **entries):
    """Return for each model its operators on the CPU, the number of its nodes, and the nodes that are refused."""
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    return stand_in.run(PLACES, folder, level, json.dumps(entries)).answer


def test_cuda_computes_all_operators_but_those_that_are_noted(stand_in, tmp_path):
    made = {str(opset): all_operators(opset) for opset in ALL_OPSETS}
    found = places_of(stand_in, tmp_path, {name: model for name, (model, _) in made.items()}, "ORT_DISABLE_ALL")
    for opset, (model, known) in made.items():
        lacking = sorted(name for name in known if name in NEVER or int(opset) > LAST_OPSET.get(name, int(opset)))
        on_cpu, count, refused = found[opset]
        assert on_cpu == lacking
        assert count >= len(known) > 95
        assert refused == [f"{name} on CPUExecutionProvider" for name in lacking]
        assert set(lacking).isdisjoint(SIZE_OPERATORS)
        assert f" has no kernel for {', '.join(sorted({*lacking} - NEVER) + sorted(NEVER))}, so" in note_on_cuda(model)
    assert {*LAST_OPSET, *NEVER} <= OPERATORS.keys()


def test_files_of_every_opset_and_precision_run_on_cuda_unless_it_is_noted(stand_in, tmp_path):
    models = {}
    for opset in ALL_OPSETS:  # the networks of test_graph.py, whose exports are kept
        up, classes = ("transpose", 1) if opset % 2 else ("bilinear", 2)
        exact = build_graph(*segmenter_of(widths=(3,), up=up, classes=classes), opset)
        models |= {f"{opset} fp32": exact, f"{opset} fp16": to_half(exact)}
        for values in ("s8", "u8"):
            layers = quantisable(exact, values)
            ranges = dict.fromkeys(values_to_calibrate(exact, layers, values), (-1.0, 1.0))
            models[f"{opset} {values}"] = to_int8(exact, layers, ranges, values)
    found = places_of(stand_in, tmp_path, models, **WITHOUT_INTEGERS)
    for name, (on_cpu, _, refused) in found.items():
        late = int(name[:2]) > 21
        assert refused == (["MaxPool on CPUExecutionProvider"] if late else [])
        assert set(on_cpu) - {"MaxPool"} == {"Squeeze", "Mul", "Mod", "Reshape", "Concat"}
        assert note_on_cuda(models[name]) == (f"--opset {name[:2]}: {LATE}" if late else None)
    assert len(found) == 24


@pytest.mark.parametrize(
    ("values", "entries", "fetched"),
    [("s8", {}, True), ("s8", FP32_BIASES, False), ("s8", WITHOUT_INTEGERS, False), ("u8", WITHOUT_INTEGERS, False)],
)
def test_biases_of_int8_files_are_not_fetched_from_the_cpu(stand_in, tmp_path, values, entries, fetched):
    """ONNX Runtime makes int32 of the biases unless it is told not to, and CUDA has no kernel that reads int32."""
    exact = build_graph(*segmenter_of(widths=(3,), up="bilinear", classes=2), 20)
    layers = quantisable(exact, values)
    ranges = dict.fromkeys(values_to_calibrate(exact, layers, values), (-1.0, 1.0))
    found = places_of(stand_in, tmp_path, {"model": to_int8(exact, layers, ranges, values)}, **entries)
    assert ("DequantizeLinear" in found["model"][0]) == fetched
    assert found["model"][2] == (["DequantizeLinear on CPUExecutionProvider"] if fetched else [])


LATE = (
    "ONNX Runtime's CUDA provider has no kernel for MaxPool, so a part of the network would run on the CPU, and device "
    "cuda refuses the file; leave --opset out for GPUs"
)


NHWC = """
import json, sys
import numpy as np
import onnxruntime
from on_stand_in import mark
from runtime.devices.session import session_options

cuda = {"prefer_nhwc": "1", "enable_cuda_graph": sys.argv[2]}
chain = [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
session = onnxruntime.InferenceSession(sys.argv[1], session_options(1), providers=chain, enable_fallback=0)
place = "cuda", 0
image = onnxruntime.OrtValue.ortvalue_from_shape_and_type((3, 32, 64, 3), np.uint8, *place)
answer = onnxruntime.OrtValue.ortvalue_from_shape_and_type((3, 1, 32, 64), np.float32, *place)
binding = session.io_binding()
binding.bind_ortvalue_input("image", image)
binding.bind_ortvalue_output("probability", answer)
mark("first")
session.run_with_iobinding(binding)
mark("second")
session.run_with_iobinding(binding)
mark("end")
"""


def test_channels_last_copies_nothing_in_a_file_of_one_size(stand_in, tmp_path):
    """docs/gpu.md gives it as the example of an option that `extra` passes on."""
    segmenter, card = segmenter_of()
    card = with_fixed_size(card, (3, 32, 64))  # a graph that test_fixed_size.py exports, too
    path = tmp_path / "fixed.onnx"
    onnx.save(build_graph(Segmenter(segmenter.network, card).eval(), card), path)
    for graphs, executed in (("0", 13), ("1", 0)):
        second = stand_in.run(NHWC, path, graphs).part("second")
        assert not [call for call in second if call.startswith("cudaMemcpy") and "host" in call]
        assert (second.count("cudnn execute"), second.count("cudaGraphLaunch")) == (executed, int(graphs))
