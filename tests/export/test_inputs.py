"""Networks of other inputs than colour pictures of any size: many channels, no padding, any stride; from end to end."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from families import randomised
from masks import names_in
from torch import nn

from export import CardChanges, NetworkOptions, export_onnx
from export.cli import main
from export.graph import example_size
from export.hub import write_model_card
from export.proof import proof_shapes
from export.triton import write_repository
from runtime.card import InputSpec, ModelCard, ModuleConfig, OutputSpec
from runtime.errors import ConfigError, ImageError, ModelError
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor


class Halving(nn.Module):
    """Halves a picture by `factor` and back, between two norms; sides have to be multiples of the factor."""

    def __init__(self, channels=3, factor=4, norm=nn.BatchNorm2d):
        super().__init__()
        self.down, self.first = nn.Conv2d(channels, 8, factor, stride=factor), norm(8)
        self.up, self.second = nn.ConvTranspose2d(8, 6, factor, stride=factor), norm(6)
        self.last = nn.Conv2d(6 + channels, 1, 3, padding=1)

    def forward(self, x):
        y = self.second(self.up(self.first(self.down(x)).relu())).relu()
        return self.last(torch.cat([x, y], dim=1))


def instance_norm(channels):
    return nn.InstanceNorm2d(channels, affine=True)


def bands():
    """A network of five channels."""
    return randomised(Halving(channels=5))


def normed():
    """A network that normalises over the picture."""
    return randomised(Halving(norm=instance_norm))


def answer_of(network, image, mean=0.0, std=1.0):
    """PyTorch's probabilities for uint8 [height, width, channels]."""
    with torch.inference_mode():
        planes = (torch.from_numpy(image).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
        return network(planes.permute(2, 0, 1)[None]).sigmoid()[0].numpy()


MEAN, STD = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.6, 0.7, 0.8, 0.9)


@pytest.fixture(scope="module")
def of_bands(tmp_path_factory):
    path = tmp_path_factory.mktemp("bands") / "bands.onnx"
    return export_onnx(bands(), path, changes=CardChanges(size=(32, 48), mean=MEAN, std=STD))


@pytest.fixture(scope="module")
def of_normed(tmp_path_factory):
    return export_onnx(normed(), tmp_path_factory.mktemp("normed") / "net.onnx", changes=CardChanges(size=(32, 48)))


@pytest.fixture
def weights(tmp_path):
    """The checkpoint of `bands`, and the options that name its code."""
    torch.save(bands().state_dict(), tmp_path / "bands.pth")
    return [str(tmp_path / "bands.pth"), "--network", f"{__file__}:bands"]


def test_a_network_of_many_channels_takes_arrays_of_as_many(of_bands):
    card = of_bands.card
    assert (card.input.channels, card.architecture.in_channels) == ("raw", 5)
    assert (card.input.mean, card.input.std) == (MEAN, STD)
    assert of_bands.notes[0] == (
        "the file takes images of 5 channels: arrays [height, width, 5], and TIFF, .npy and .npz files of them"
    )
    predictor, image = Predictor(of_bands.path, "cpu"), synthetic_image(32, 48, 5, seed=1)
    expected = answer_of(bands(), image, MEAN, STD)
    assert np.abs(predictor.predict(image).probability - expected).max() < 1e-5
    assert predictor.predict(synthetic_image(33, 50, 5, seed=1)).mask.shape == (33, 50)


def test_the_same_from_the_command_line_and_checked_again(weights, of_bands, tmp_path):
    listed = [",".join(map(str, values)) for values in (MEAN, STD)]
    given = ["--size", "48x32", "--channels", "raw", "--mean", listed[0], "--std", listed[1]]
    done = CliRunner().invoke(main, [*weights, *given, "--card", "--triton", str(tmp_path / "repository")])
    assert done.exit_code == 0, done.stderr
    card = Predictor(tmp_path / "bands.onnx", "cpu").card
    assert (card.input, card.output, card.weights_sha256) == (
        of_bands.card.input,
        of_bands.card.output,
        of_bands.card.weights_sha256,
    )
    text = (tmp_path / "bands.md").read_text()
    assert 'image = np.load("image.npy")  # uint8 [height, width, 5]' in text and "5 channels, 0 to 255" in text
    assert "image.jpg" not in text
    assert "dims: [ -1, -1, 5 ]" in (tmp_path / "repository" / "bands" / "config.pbtxt").read_text()
    checked = CliRunner().invoke(
        main, ["--check", str(tmp_path / "bands.onnx"), "--checkpoint", weights[0], *weights[1:]]
    )
    assert checked.exit_code == 0, checked.stderr
    assert "equals PyTorch with" in checked.stdout


def test_the_script_in_the_model_card_answers_as_the_runtime_does(of_bands, tmp_path, monkeypatch):
    text = write_model_card(of_bands.path).read_text()
    script = text.split("```python\n")[2].split("```")[0]
    monkeypatch.chdir(tmp_path)
    image = synthetic_image(90, 70, 5, seed=1)
    np.save("image.npy", image)
    exec(script.replace("'bands.onnx'", repr(str(of_bands.path))), {})
    from PIL import Image

    expected = Predictor(of_bands.path, "cpu").predict(image).mask * 255
    assert np.array_equal(np.asarray(Image.open("mask.png")), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channels", "RGB"], "--network: takes no pictures of 3 channels: to [1, 3, 128, 128] it raises RuntimeErr"),
        (["--mean", "0.5"], "--mean: found (0.5,), expected 5 values"),
        (["--std", "1,1,1"], "--std: found (1.0, 1.0, 1.0), expected 5 values"),
    ],
)
def test_what_does_not_go_with_many_channels_is_refused_by_name(weights, tmp_path, options, message):
    done = CliRunner().invoke(main, [*weights, *options])
    assert (done.exit_code, done.stdout, names_in(tmp_path)) == (2, "", ["bands.pth"])
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")


def test_channels_that_contradict_a_checkpoint_are_refused():
    network = randomised(Halving(channels=1))
    with pytest.raises(ConfigError, match=r"--channels bgr: expected RGB, L or raw"):
        CardChanges(channels="bgr")
    with pytest.raises(ConfigError, match=r"takes no pictures of 3 channels"):
        export_onnx(network, "net.onnx", changes=CardChanges(channels="RGB"))


def test_a_network_that_normalises_over_the_picture_is_never_padded(of_normed):
    card = of_normed.card
    assert (card.input.padded, card.input.stride, card.input.min_size) == (False, 4, (8, 8))
    assert {side % 4 for row in card.proof.rows for side in row.shape[1:]} == {0} and len(card.proof.rows) >= 6
    assert card.proof.tolerance == 1e-4  # no picture of it is one that PyTorch has no stable answer to
    assert "looks at the whole picture at once (padding changes its answers everywhere, by " in of_normed.notes[0]
    assert "they are resized to 48x32, and other sizes have to be multiples of 4" in of_normed.notes[0]
    predictor, network = Predictor(of_normed.path, "cpu"), normed()
    for height, width in ((32, 48), (8, 12), (100, 36)):
        image = synthetic_image(height, width, 3, seed=1)
        assert np.abs(predictor.run(image[None])[0] - answer_of(network, image)).max() < 1e-5
        found = predictor.predict(image, size=(height, width)).probability
        assert np.abs(found - answer_of(network, image)).max() < 1e-5
    with pytest.raises(ImageError, match=r"image: is 50x32 pixels, the network takes multiples of 4 alone"):
        predictor.run(np.zeros((1, 32, 50, 3), np.uint8))


def test_tiles_of_such_a_network_are_normalised_each_by_itself(of_normed):
    predictor, image = Predictor(of_normed.path, "cpu"), synthetic_image(32, 48, 3, seed=1)
    tiles = [predictor.run(image[None, :, start : start + 24])[0] for start in (0, 24)]
    found = predictor.predict(image, tile=(32, 24), overlap=0).probability
    assert np.abs(found - np.concatenate(tiles, axis=2)).max() < 1e-6
    assert np.abs(found - predictor.predict(image).probability).max() > 0.01


def test_the_graph_of_such_a_network_pads_nothing_and_fails_at_other_sizes(of_normed):
    assert "Pad" not in {node.op_type for node in onnx.load(of_normed.path).graph.node}
    predictor = Predictor(of_normed.path, "cpu")
    with pytest.raises(Exception, match=r"(?i)mismatched|must match|invalid|incompatible"):
        predictor._model.session._inference.run(None, {"image": np.zeros((1, 33, 48, 3), np.uint8)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"size": (30, 48)},
            r"--size 48x30: expected multiples of 4, since the network looks at .*; give one such as 48x32",
        ),
        (
            {"fit": "native"},
            r"--fit: found 'native', expected stretch or letterbox, since the network looks at the whole",
        ),
    ],
)
def test_sizes_that_such_a_network_does_not_take_are_refused_at_export(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        export_onnx(normed(), tmp_path / "net.onnx", changes=CardChanges(**{"size": (32, 48)} | changes))
    assert names_in(tmp_path) == []


def test_a_given_card_gets_what_running_the_network_shows(of_normed, tmp_path):
    given = replace(of_normed.card, proof=None, name="given", input=InputSpec(size=(32, 48), stride=4, fit="letterbox"))
    card = export_onnx(normed(), tmp_path / "net.onnx", card=given).card
    assert card.input == replace(of_normed.card.input, fit="letterbox") and card.name == "given"
    native = replace(given, input=replace(given.input, fit="native"))
    with pytest.raises(ModelError, match=r"input\.fit: found 'native', expected stretch or letterbox"):
        export_onnx(normed(), tmp_path / "net.onnx", card=native)


def test_files_of_lower_precision_and_others_of_such_networks(of_normed, of_bands, tmp_path):
    changes = CardChanges(size=(32, 48))
    for name, network in (("bands", bands()), ("normed", normed())):
        half = export_onnx(network, tmp_path / f"{name}.fp16.onnx", precision="fp16", changes=changes, force=True)
        assert half.card.proof.gate.layers == 3 and half.card.proof.gate.count == 8
        for_cpus = export_onnx(network, tmp_path / f"{name}.cpu.onnx", target="cpu", changes=changes)
        bare = export_onnx(network, tmp_path / f"{name}.raw.onnx", raw=True, changes=changes)
        image = synthetic_image(32, 48, half.card.architecture.in_channels, seed=1)
        for report in (half, for_cpus):
            assert np.abs(Predictor(report.path, "cpu").run(image[None])[0] - answer_of(network, image)).max() < 5e-3
        assert bare.card.input == half.card.input == for_cpus.card.input
    text = write_model_card(of_normed.path).read_text()
    assert "The batch is free. Height and width have to be multiples of 4, since the network looks at" in text
    assert (
        "Height and width are multiples of 4;"
        in (write_repository(of_normed.path, tmp_path / "triton") / "config.pbtxt").read_text()
    )


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, instance_norm], ids=["padded", "exact"])
@pytest.mark.parametrize("factor", [6, 12])
def test_strides_that_are_no_powers_of_two(tmp_path, factor, norm):
    network, path = randomised(Halving(factor=factor, norm=norm)), tmp_path / "net.onnx"
    ends = NetworkOptions(stride=factor)
    card = export_onnx(network, path, network=ends, changes=CardChanges(size=(4 * factor, 5 * factor))).card
    assert (card.input.stride, card.input.padded) == (factor, norm is nn.BatchNorm2d)
    predictor, image = Predictor(path, "cpu"), synthetic_image(2 * factor, 7 * factor, 3, seed=1)
    assert np.abs(predictor.run(image[None])[0] - answer_of(network, image)).max() < 1e-5
    assert predictor.predict(synthetic_image(31, 17, 3, seed=1)).mask.shape == (31, 17)
    bare = export_onnx(
        network, tmp_path / "raw.onnx", network=ends, raw=True, changes=CardChanges(size=card.input.size)
    )
    assert bare.card.input.stride == factor


def card_with(stride, size, least=(1, 1), *, padded=True):
    return ModelCard(
        name="net",
        producer={},
        architecture=ModuleConfig(name="net.Net"),
        input=InputSpec(size=size, stride=stride, min_size=least, padded=padded),
        output=OutputSpec(),
        weights_sha256="0" * 64,
    )


STRIDES = [1, 2, 3, 6, 8, 12, 32, 48, 100]
SIZES = [(2, 3), (3, 2), (4, 4), (40, 8)]
"""Trained sizes in strides."""


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", SIZES)
def test_examples_to_trace_are_large_unequal_and_off_the_stride_unless_nothing_is_padded(stride, size, padded):
    card = card_with(stride, (size[0] * stride, size[1] * stride), padded=padded)
    for exact in (True, False):
        height, width = example_size(card, exact=exact)
        rows, columns = -(-height // stride), -(-width // stride)
        assert rows % columns and columns % rows and min(height, width) >= 128 - stride // 2
        assert height >= card.input.size[0] - stride // 2
        assert {height % stride == 0, width % stride == 0} == {exact or stride == 1}


def test_examples_to_trace_are_as_large_as_the_network_needs():
    assert min(example_size(card_with(32, (320, 320), (289, 1)), exact=False)) >= 289


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("stride", STRIDES)
def test_shapes_of_the_proof_are_those_that_the_network_takes(stride, padded):
    least = (stride, 2 * stride)
    shapes = proof_shapes(card_with(stride, (20 * stride, 3 * stride), least, padded=padded))
    assert (1, 20 * stride, 3 * stride) in shapes and len(shapes) >= 5
    assert all(height >= least[0] and width >= least[1] for _, height, width in shapes)
    off = [shape for shape in shapes if shape[1] % stride or shape[2] % stride]
    assert (off == []) == (not padded or stride == 1)


class Odd(nn.Module):
    """Convolutions of all kinds: grouped, over rows, over volumes, with computed weights, with output_padding."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.rows = nn.Conv1d(8, 8, 1)
        self.volume = nn.Conv3d(1, 1, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.kernel = nn.Parameter(torch.linspace(-1, 1, 8 * 8 * 9).reshape(8, 8, 3, 3))
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        x = self.grouped(self.first(x).relu()).relu()
        x = self.rows(x.flatten(2)).reshape(x.shape).relu()
        x = self.volume(x[:, None])[:, 0].relu()
        x = nn.functional.conv2d(x, self.kernel - x.mean() * 0, padding=1).relu()
        return self.last(self.up(self.middle(x).relu()).relu())


def odd():
    network = randomised(Odd())
    with torch.no_grad():
        network.kernel /= 8
    return network


ODD_LAYERS = ["first", "grouped", "rows", "volume", "convolution", "middle", "up", "last"]


def test_convolutions_of_all_kinds_are_named_and_in_every_kind_of_file(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.fromarray(synthetic_image(32, 48, 3, seed=index)).save(tmp_path / "images" / f"{index}.png")
    network, image, data = odd(), synthetic_image(32, 48, 3, seed=100), tmp_path / "images"
    for name, options in {
        "fp32": {},
        "fp16": {"precision": "fp16", "data": data},
        "s8": {"precision": "int8", "values": "s8", "data": data},
        "u8": {"precision": "int8", "values": "u8", "data": data},
        "cpu": {"target": "cpu"},
        "raw": {"raw": True},
    }.items():
        force = {"force": True} if "precision" in options else {}
        path = tmp_path / f"{name}.onnx"
        report = export_onnx(network, path, changes=CardChanges(size=(32, 48)), **options, **force)
        nodes = {node.name: node for node in onnx.load(path).graph.node if "Conv" in node.op_type}
        if name != "cpu":
            assert list(nodes) == ODD_LAYERS
        if name != "raw":
            assert np.abs(Predictor(path, "cpu").run(image[None])[0] - answer_of(network, image)).max() < 0.1
        gate = report.card.proof.gate
        assert gate is None or gate.layers == len(ODD_LAYERS)
        if name == "fp16":
            assert "convolution" in gate.kept and "first" not in gate.kept


class Pooled(nn.Module):
    """A network without a convolution."""

    def forward(self, x):
        return x.mean(dim=1, keepdim=True) * 4 - 2


def test_a_network_without_a_convolution_is_exported_in_fp32_alone(tmp_path):
    changes = CardChanges(size=(32, 48))
    export_onnx(Pooled(), tmp_path / "net.onnx", changes=changes)
    export_onnx(Pooled(), tmp_path / "cpu.onnx", changes=changes, target="cpu")
    image = synthetic_image(32, 48, 3, seed=1)
    assert np.abs(Predictor(tmp_path / "net.onnx", "cpu").run(image[None])[0] - answer_of(Pooled(), image)).max() < 1e-6
    with pytest.raises(ConfigError, match="--precision: the network has no layer that could be converted; give --prec"):
        export_onnx(Pooled(), tmp_path / "half.onnx", changes=changes, precision="fp16")
