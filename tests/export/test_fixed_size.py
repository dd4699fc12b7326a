"""Files for one batch of one size: their graphs, their answers, and what is refused."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from families import randomised
from graphs import ARCHITECTURES, segmenter_of
from masks import names_in
from onnx_files import write_onnx
from sealing import save_sealed
from torch import nn

from benchmarks.contestants.base import BenchmarkModel
from export import CardChanges, export_onnx
from export.cli import main
from export.graph import build_graph, build_raw_graph, fold_sizes
from export.options import ExportOptions, options_to_export, with_fixed_size
from export.proof import graph_run, network_run, raw_run
from export.verify import check_file
from export.winograd.transform import rewritable, rewrite
from runtime.card import RAW_KEY, ModelCard
from runtime.errors import ConfigError, ModelError
from runtime.model_file.golden import GOLDEN_SIZE, synthetic_image
from runtime.model_file.metadata import read_metadata
from runtime.model_file.reader import read_model
from runtime.predictor import Predictor
from unet_core.checkpoint import save_checkpoint
from unet_core.model import Segmenter

NETWORK = {"Conv", "ConvTranspose", "Relu", "MaxPool", "Concat", "Resize"}
AROUND = {"Cast", "Transpose", "Div", "Sub", "Mul", "Pad", "Slice", "Sigmoid", "Softmax"}


def fixed_graph(shape, build=build_graph, **config):
    """A graph of one shape, and what its answers have to equal."""
    segmenter, card = segmenter_of(**config)
    card = with_fixed_size(card, shape)
    return build(Segmenter(segmenter.network, card).eval(), card), network_run(segmenter), card


def sizes_of(value):
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def is_constant(graph, node):
    """Return True if all inputs of a node but the first are stored in the file."""
    stored = {tensor.name for tensor in graph.initializer} | {""}
    return set(node.input[1:]) <= stored


# The graph


@pytest.mark.parametrize("config", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("shape", [(1, 33, 31), (3, 32, 64), (2, 1, 7)], ids=str)
def test_it_holds_no_arithmetic_on_sizes_and_answers_as_pytorch(config, shape):
    model, exact, card = fixed_graph(shape, **config)
    (image,), (probability,) = model.graph.input, model.graph.output
    assert sizes_of(image) == [*shape, card.architecture.in_channels]
    assert sizes_of(probability) == [shape[0], card.architecture.classes, *shape[1:]]
    assert {node.op_type for node in model.graph.node} <= NETWORK | AROUND
    assert all(
        is_constant(model.graph, node) for node in model.graph.node if node.op_type in ("Pad", "Slice", "Resize")
    )
    needs_padding = any(side % card.input.stride for side in shape[1:])
    assert ("Pad" in {node.op_type for node in model.graph.node}) == needs_padding
    batch = np.stack([synthetic_image(*shape[1:], card.architecture.in_channels, seed) for seed in range(4)])
    assert np.abs(graph_run(model)(batch) - exact(batch)).max() < 2e-6


def test_a_raw_graph_has_one_shape_too():
    model, exact, card = fixed_graph((2, 32, 48), build_raw_graph)
    assert sizes_of(model.graph.input[0]) == [2, 3, 32, 48] and sizes_of(model.graph.output[0]) == [2, 1, 32, 48]
    batch = np.stack([synthetic_image(32, 48, 3, seed) for seed in range(3)])
    assert np.abs(raw_run(model, card)(batch) - exact(batch)).max() < 2e-6


def test_a_graph_for_cpus_is_folded_too():
    model, exact, _ = fixed_graph((2, 45, 61))
    rewritten = rewrite(model, dict.fromkeys(rewritable(model), "f4"))
    folded = fold_sizes(rewritten)
    assert {"Shape", "Mod", "Range", "Where"} <= {node.op_type for node in rewritten.graph.node}
    assert not {"Shape", "Mod", "Range", "Where"} & {node.op_type for node in folded.graph.node}
    batch = np.stack([synthetic_image(45, 61, 3, seed) for seed in range(2)])
    assert np.array_equal(graph_run(folded)(batch), graph_run(rewritten)(batch))
    assert np.abs(graph_run(folded)(batch) - exact(batch)).max() < 1e-5
    assert "onnxscript" not in str(folded.graph.node) and not folded.metadata_props


# The file


OPTIONS = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "u8": {"precision": "int8", "values": "u8"},
    "cpu": {"target": "cpu"},
    "raw": {"raw": True},
}


@pytest.fixture(scope="module")
def file_of(trained, tmp_path_factory):
    """A function that exports each kind of file once: those of one shape in `OPTIONS`, or "free"."""
    folder = tmp_path_factory.mktemp("files")

    @cache
    def export(name):
        options = {} if name == "free" else {"fixed_size": (2, 64, 96)} | OPTIONS[name]
        data = trained.data if "precision" in options else None
        return export_onnx(trained.checkpoint, folder / f"{name}.onnx", data=data, **options).path

    return export


@pytest.mark.parametrize("name", ["fp32", "fp16", "u8", "cpu"])
def test_it_is_used_as_the_file_of_all_shapes_is(file_of, name):
    fixed, free = Predictor(file_of(name), "cpu"), Predictor(file_of("free"), "cpu")
    assert fixed.card.input == replace(free.card.input, fixed_batch=2)
    for size in [(64, 96), (130, 75), (9, 300)]:
        image = synthetic_image(*size, 3, seed=1)
        found, expected = fixed.predict(image), free.predict(image)
        worst = np.abs(found.probability - expected.probability).max()
        assert worst <= {"fp32": 1e-6, "cpu": 1e-4, "fp16": 0.02}.get(name, 0.3)
        assert (found.mask != expected.mask).mean() < 0.02


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_proved_again(file_of, trained, name):
    report = check_file(file_of(name), checkpoint=trained.checkpoint, data=trained.data)
    assert {row.shape for row in report.rows if row.images == "synthetic"} == {(1, 64, 96), (2, 64, 96), (4, 64, 96)}


def test_a_graph_of_another_shape_than_its_card_says_is_refused(file_of, trained, tmp_path):
    model, free = onnx.load(file_of("raw")), onnx.load(file_of("raw"))
    card = ModelCard.from_json(read_metadata(file_of("raw"))[RAW_KEY])
    other = replace(card, input=replace(card.input, fixed_batch=None))
    model.metadata_props[0].value = other.to_json()
    save_sealed(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"takes batches of \(2, 64, 96\) \(batch, height, width\), its card says any"):
        check_file(tmp_path / "other.onnx", checkpoint=trained.checkpoint)
    free.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    save_sealed(free, tmp_path / "half.onnx")
    with pytest.raises(ModelError, match=r"is not valid ONNX|found inputs and outputs"):
        check_file(tmp_path / "half.onnx", checkpoint=trained.checkpoint)


def test_the_golden_sample_stays_small(tmp_path, trained):
    report = export_onnx(trained.checkpoint, tmp_path / "large.onnx", fixed_size=(1, 320, 480))
    card, golden = read_model(report.path)
    assert golden.image.shape[:2] == GOLDEN_SIZE and golden.probability.shape[1:] == GOLDEN_SIZE
    assert Predictor(report.path, "cpu").report.golden_error < 1e-5
    assert card.input.size == (320, 480)
    assert report.notes[-1] == (
        "--fixed-size 1x320x480: images are resized to that size; the model was trained at 96x64 (width x height)"
    )


def test_a_model_for_images_at_their_own_size_is_shown_them_stretched(tmp_path, network, card):
    native = replace(card, input=replace(card.input, fit="native"))
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), native)
    report = export_onnx(tmp_path / "model.pth", fixed_size=(1, 32, 48))
    assert report.path.name == "model.1x32x48.onnx" and report.card.input.fit == "stretch"
    assert "--fixed-size 1x32x48: images are stretched to that size; the model was trained for images at their own" in (
        report.notes
    )


# Networks that cannot be traced with free sizes


class Positions(nn.Module):
    """A network with a learned map that is added to its values, as transformers have: it takes one size only."""

    def __init__(self, size):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.positions = nn.Parameter(torch.rand(1, 4, *size))
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return self.last(self.first(x).relu() + self.positions)


class Branches(nn.Module):
    """A network whose code asks for the size of the picture, so that PyTorch's exporter cannot trace it freely."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x):
        rows = [self.layer(x[:, :, top : top + 16]) for top in range(0, int(x.shape[2]), 16)]
        return torch.cat(rows, dim=2)


@pytest.mark.parametrize("network", [Positions((33, 47)), Branches()], ids=["one size", "branches"])
def test_a_network_that_is_traced_at_one_size_only(tmp_path, network):
    network = randomised(network)
    with pytest.raises((ConfigError, ModelError), match="--fixed-size"):
        export_onnx(network, tmp_path / "free.onnx", changes=CardChanges(size=(33, 47)))
    report = export_onnx(network, tmp_path / "net.onnx", fixed_size=(2, 33, 47))
    assert report.card.input.fixed_shape == (2, 33, 47) and report.card.proof.reference == "module"
    image = synthetic_image(33, 47, 3, seed=1)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255).sigmoid()[0].numpy()
    assert np.abs(Predictor(report.path, "cpu").run(image[None])[0] - expected).max() < 1e-6


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fixed_size": (1, 32, 48), "changes": CardChanges(size=(48, 32))},
            "--fixed-size 1x32x48 (batch x height x width): --size says 32x48 (width x height); leave --size out",
        ),
        (
            {"fixed_size": (1, 32, 48), "changes": CardChanges(fit="native")},
            "--fixed-size 1x32x48: has one size for all images, and --fit native none; leave one of them out",
        ),
        (
            {"fixed_size": (0, 32, 48)},
            "--fixed-size 0x32x48: expected a batch of 1 to 1024, height and width of 1 to 32768",
        ),
        (
            {"fixed_size": (32, 48)},
            "--fixed-size 32x48: expected a batch of 1 to 1024, height and width of 1 to 32768",
        ),
    ],
)
def test_options_that_contradict_it_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        ExportOptions(**options)
    assert str(caught.value) == message


def test_sizes_that_the_network_does_not_take_are_refused(card):
    least = replace(card, input=replace(card.input, min_size=(8, 9)))
    with pytest.raises(ConfigError) as caught:
        with_fixed_size(least, (1, 8, 8))
    assert str(caught.value) == (
        "--fixed-size 1x8x8 (batch x height x width): the network takes pictures of at least 9x8 (width x height)"
    )
    with pytest.raises(ConfigError) as caught:
        with_fixed_size(card, (1, 33, 48), raw=True)
    assert str(caught.value) == (
        "--fixed-size 1x33x48: expected multiples of 4 for height and width, since --raw pads nothing"
    )
    whole = replace(card, input=replace(card.input, padded=False))
    with pytest.raises(
        ConfigError, match="expected multiples of 4 for height and width, since the network looks at the whole"
    ):
        with_fixed_size(whole, (1, 32, 47))
    assert with_fixed_size(whole, (1, 64, 64)).input.fixed_shape == (1, 64, 64)


@pytest.mark.parametrize("text", ["32x48", "1x32x48x3", "1x32x", "0x32x48", "1xax48", "1 32 48", ""])
def test_the_command_line_takes_batch_height_and_width(tmp_path, text):
    result = CliRunner().invoke(main, [str(tmp_path / "model.pth"), "--fixed-size", text])
    assert result.exit_code == 2
    assert f"{text!r} is not BATCHxHEIGHTxWIDTH; expected for example 1x160x240" in result.output


def test_the_command_line_writes_such_a_file(tmp_path, network, card):
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), card)
    arguments = [str(tmp_path / "model.pth"), "--fixed-size", "2x32x48", "--card", "--triton", str(tmp_path / "models")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert {"model.2x32x48.onnx", "model.2x32x48.md", "models"} <= set(names_in(tmp_path))
    assert Predictor(tmp_path / "model.2x32x48.onnx", "cpu").card.input.fixed_shape == (2, 32, 48)


def test_a_check_has_no_use_for_it():
    assert options_to_export({"fixed_size": (1, 32, 48)}).fixed_size == (1, 32, 48)


# Elsewhere


def test_benchmarks_want_the_file_of_all_shapes(tmp_path):
    write_onnx(tmp_path / "fixed.onnx", fixed_batch=1)
    with pytest.raises(ModelError) as caught:
        BenchmarkModel.read(tmp_path / "fixed.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'fixed.onnx'}: takes batches of 1 of 48x32 only, and other sizes and batches are measured too; "
        "give the file that was exported without --fixed-size"
    )
