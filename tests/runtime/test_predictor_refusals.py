"""Files that a Predictor refuses, and what it says."""

import logging
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.card import CARD_KEY, RAW_KEY, Gate, Parity, Proof, ProofRow
from runtime.devices.registry import BACKENDS
from runtime.errors import DeviceError, ModelError
from runtime.inference import loaded_model
from runtime.model_file.golden import GOLDEN_KEY, GOLDEN_SIZE, Golden, golden_image
from runtime.predictor import Predictor, predict


def refused(path, **options):
    """The message with which a model is refused on the CPU, without the path at its head."""
    with pytest.raises(ModelError) as caught:
        Predictor(path, "cpu", **options)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_foreign_onnx_is_told_how_to_get_a_card(write_model):
    path = write_model(metadata={CARD_KEY: None})
    assert refused(path) == (
        "is an ONNX file without a card (metadata key unet.card), so its input and output are unknown; "
        "make it from its checkpoint with: unet-export model.pth"
    )


def test_damaged_card_is_told_with_the_file(write_model):
    assert refused(write_model(metadata={CARD_KEY: "{"})).startswith("card: is not JSON (")


def test_card_out_of_bounds_is_told_with_the_file_and_the_field(write_model, make_card):
    text = make_card().to_json().replace('"std": [1.0, 1.0, 1.0]', '"std": [1.0, 0, 1.0]')
    assert refused(write_model(metadata={CARD_KEY: text})).startswith(
        "card field input.std: found 0, expected a number"
    )


def test_newer_card_is_told_to_upgrade(write_model, make_card):
    text = make_card().to_json().replace('"schema": 2', '"schema": 9')
    assert refused(write_model(metadata={CARD_KEY: text})).endswith("reads up to 2; upgrade unet-deploy")


def test_missing_golden_is_refused(write_model):
    path = write_model(metadata={GOLDEN_KEY: None})
    assert refused(path) == "has no golden sample (metadata key unet.golden); export the model again"


def test_damaged_golden_is_refused(write_model):
    assert refused(write_model(metadata={GOLDEN_KEY: "[]"})).startswith("golden sample: is damaged (")


@pytest.mark.parametrize(("off", "accepted"), [(0.00005, True), (0.0002, False), (0.25, False)])
def test_golden_sample_is_replayed_within_the_tolerance(write_model, make_golden, off, accepted):
    golden = make_golden()
    probability = golden.probability.copy()
    probability[0, 11, 13] += np.float32(off)
    path = write_model(metadata={GOLDEN_KEY: Golden(image=golden.image, probability=probability).to_json()})
    if accepted:
        assert Predictor(path, "cpu").report.golden_error == pytest.approx(off, rel=1e-3)
    else:
        assert refused(path) == (
            f"answers the golden sample wrongly (off by {off:.2g}, expected at most 0.0001); "
            "export the model again, update the driver or choose another device"
        )


def proven(card, precision, golden_error):
    """The JSON of the card, with a proof that says how far off the golden sample was at export."""
    gate = Gate(
        images="data", count=1, flipped=0, image_dice=None, image_dice_fp32=None, kept=(), passed=precision == "int8"
    )
    parity = Parity(max_abs_error=0, flipped=0, iou=1, flip_distance=0)
    exact = precision == "fp32"
    proof = Proof(
        provider="CPUExecutionProvider",
        versions={},
        tolerance=1e-4 if exact else None,
        rows=(ProofRow(shape=(1, 1, 1), images="synthetic", parity=parity),),
        golden_error=golden_error,
        gate=None if exact else gate,
    )
    return replace(card, precision=precision, proof=proof).to_json()


@pytest.mark.parametrize(
    ("precision", "known", "off", "limit"),
    [
        ("fp16", 0.01, 0.0400, None),
        ("int8", 0.01, 0.0400, None),
        ("int8", 0.01, 0.0402, "0.0401"),
        ("fp16", 0.0, 0.00015, "0.0001"),
        ("fp32", 1e-5, 0.00009, None),
        ("fp32", 0.5, 0.00011, "0.0001"),
    ],
)
def test_below_fp32_the_golden_sample_may_be_off_by_four_times_what_it_was_at_export(
    write_model, make_card, make_golden, precision, known, off, limit
):
    golden = make_golden()
    probability = golden.probability.copy()
    probability[0, 11, 13] -= np.float32(off)
    metadata = {
        CARD_KEY: proven(make_card(), precision, known),
        GOLDEN_KEY: Golden(image=golden.image, probability=probability).to_json(),
    }
    path = write_model(metadata=metadata)
    if limit is None:
        assert Predictor(path, "cpu").report.golden_error == pytest.approx(off, rel=1e-3)
    else:
        assert f"(off by {off:.2g}, expected at most {limit});" in refused(path)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_answers_that_are_not_numbers_are_refused_whatever_was_at_export(write_model, make_card, make_graph, precision):
    graph = make_graph()
    (full,) = (tensor for tensor in graph.graph.initializer if tensor.name == "full")
    full.CopyFrom(numpy_helper.from_array(np.float32("nan"), "full"))
    path = write_model(graph=graph, metadata={CARD_KEY: proven(make_card(), precision, 1.0)})
    assert "answers the golden sample wrongly (off by inf, expected at most " in refused(path)


@pytest.mark.parametrize(("channels", "classes"), [(3, 3), (1, 1)])
def test_golden_that_is_not_of_the_card_is_refused(write_model, channels, classes):
    golden = Golden(image=golden_image(channels), probability=np.zeros((classes, *GOLDEN_SIZE), np.float32))
    assert refused(write_model(metadata={GOLDEN_KEY: golden.to_json()})) == (
        f"golden sample: has {channels} channels and {classes} classes, the card says 3 and 1; export the model again"
    )


def test_graph_with_another_number_of_classes_than_the_card_is_refused(write_model, make_graph):
    assert "answers the golden sample wrongly (off by inf" in refused(write_model(graph=make_graph("softmax")))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"image": "picture"}, "('picture', 'tensor(uint8)', 4)"),
        ({"probability": "mask"}, "('mask', 'tensor(float)', 4)"),
        ({"kind_of_input": TensorProto.FLOAT}, "('image', 'tensor(float)', 4)"),
    ],
)
def test_graph_with_other_inputs_or_outputs_is_refused(write_model, make_graph, changes, found):
    message = refused(write_model(graph=make_graph(**changes)))
    assert message.startswith("found the inputs and outputs [")
    assert found in message
    assert message.endswith(
        "expected [('image', 'tensor(uint8)', 4), ('probability', 'tensor(float)', 4)]; export it again"
    )


def test_raw_export_is_refused_by_its_key_before_it_is_opened(write_model, make_card):
    path = write_model(metadata={CARD_KEY: None, GOLDEN_KEY: None, RAW_KEY: make_card().to_json()})
    assert refused(path) == ("is a raw export (normalised planes in, logits out); export it again without --raw")


def test_raw_export_is_refused_by_its_signature(write_model):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["logits"])],
        "raw",
        [value("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [value("logits", TensorProto.FLOAT, ["n", 3, "h", "w"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert "('x', 'tensor(float)', 4), ('logits', 'tensor(float)', 4)" in refused(write_model(graph=model))


def test_damaged_graph_is_refused_and_onnxruntime_prints_nothing(write_model, capfd):
    path = write_model()
    content = path.read_bytes()
    assert content.count(b"ReduceMean") >= 1
    path.write_bytes(content.replace(b"ReduceMean", b"Reduce\x1bean"))
    message = refused(path, verify=False)
    assert message.startswith("ONNX Runtime cannot run the model (")
    assert "Reduce\\x1bean" in message and message.isprintable()  # the end of a long message is cut off
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def reshaped(write_model, make_graph):
    """A file that ONNX Runtime opens, and whose graph then fails for images of any size but 7x7."""
    model = make_graph("conv")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3, 7, 7]), "sides"))
    (divide,) = (node for node in model.graph.node if node.op_type == "Div")
    model.graph.node.insert(2, helper.make_node("Reshape", ["planes", "sides"], ["again"]))
    divide.input[0] = "again"
    return write_model("conv", graph=model)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_graph_that_fails_on_the_golden_sample_is_the_files_fault(cpu_build, reshaped, capfd, device):
    with pytest.raises(ModelError) as caught:
        Predictor(reshaped, device)
    message = str(caught.value)
    assert message.startswith(f"{reshaped}: cannot run the golden sample ([ONNXRuntimeError] : ")
    assert "Reshape" in message and message.endswith("); copy or export it again")
    assert capfd.readouterr().err == ""


def test_a_gpu_that_cannot_run_the_golden_sample_leaves_it_open_whose_fault_it_is(reshaped, monkeypatch):
    monkeypatch.setattr(loaded_model, "BACKENDS", {"cpu": replace(BACKENDS["cpu"], on_cpu=False, reference=False)})
    with pytest.raises(
        DeviceError, match=r"^device cpu: cannot run the golden sample \(.*\); if it fails on the CPU too"
    ):
        Predictor(reshaped, "cpu")


def test_onnxruntime_prints_its_errors_if_asked(reshaped, capfd, caplog):
    caplog.set_level(logging.DEBUG, "runtime")
    with pytest.raises(ModelError):
        Predictor(reshaped, "cpu")
    assert "Non-zero status code returned while running Reshape node" in capfd.readouterr().err


def test_file_cut_off_is_refused(write_model):
    path = write_model()
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not an ONNX file, or is truncated (the file ends early)" in refused(path)


def test_weights_in_another_file_that_is_missing_are_a_model_error(write_model):
    path = write_model("conv")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()
    assert refused(path).startswith("stores the tensor 'full' in another file, which was not opened; expected one file")


@pytest.mark.parametrize("name", ["gone.onnx", "x" * 300 + ".onnx"])
def test_missing_model_is_a_model_error_for_class_and_function(tmp_path, name):
    for load in (Predictor, lambda model: predict(np.zeros((2, 2, 3), np.uint8), model)):
        with pytest.raises(ModelError, match=r"no such file; make it with: unet-export|cannot be read \(File name too"):
            load(tmp_path / name)
