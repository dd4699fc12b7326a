"""A network in memory is exported as one in a file is; its card is assumed or given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from authors import write_author
from click.testing import CliRunner
from families import Milesial, randomised
from torch import nn

from export import CardChanges, NetworkOptions, export_onnx
from export.cli import main
from runtime.errors import ConfigError, DataError, ModelError, ProofError
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor
from unet_core.networks.checkpoint import checkpoint_of


@pytest.fixture(scope="module")
def network():
    return randomised(Milesial(widths=(4, 6), classes=3))


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "net.onnx"
    return export_onnx(network, path, changes=CardChanges(size=(32, 48)))


def test_a_network_in_memory_is_exported(network, exported):
    card = Predictor(exported.path, "cpu").card
    assert card.architecture.name == "families.Milesial" and card.proof.reference == "module"
    assert (card.input.size, card.input.stride, card.input.min_size) == ((32, 48), 4, (1, 1))
    assert (card.output.classes, card.output.activation) == (("class 0", "class 1", "class 2"), "softmax")
    image = synthetic_image(36, 52, 3, seed=1)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255).softmax(1)[0].numpy()
    assert np.abs(Predictor(exported.path, "cpu").run(image[None])[0] - expected).max() < 1e-5


def test_layers_have_the_names_of_the_modules_that_run_them(exported):
    import onnx

    names = [node.name for node in onnx.load(exported.path).graph.node if node.op_type.startswith("Conv")]
    assert names[0] == "inc.double_conv.0" and names[-1] == "outc.conv" and len(set(names)) == len(names)


def test_a_given_card_is_kept_and_its_architecture_and_hash_are_the_networks(network, exported, tmp_path):
    output = replace(exported.card.output, classes=("sky", "road", "car"))
    given = replace(exported.card, name="scenes", output=output, proof=None, weights_sha256="0" * 64)
    card = export_onnx(network, tmp_path / "net.onnx", card=given).card
    assert replace(card, proof=None) == replace(given, weights_sha256=exported.card.weights_sha256)


class Sigmoid(nn.Module):
    """A convolution that ends in a sigmoid of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x):
        return self.layer(x).sigmoid()


def test_a_network_with_its_own_sigmoid_gets_no_second_one(tmp_path):
    network = randomised(Sigmoid())
    path, ends = tmp_path / "net.onnx", NetworkOptions(activation="sigmoid")
    export_onnx(network, path, network=ends, changes=CardChanges(size=(32, 48)))
    image = synthetic_image(32, 48, 3, seed=1)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0].numpy()
    assert np.abs(Predictor(path, "cpu").run(image[None])[0] - expected).max() < 1e-6


def test_a_sigmoid_that_nobody_told_of_is_asked_about_at_the_export_and_at_the_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(write_author(tmp_path, ends=True).state_dict(), "weights.pth")
    network = ("--network", "net.py:Net", "--network-arg", "ends=true")
    refused = run("weights.pth", *network, "--size", "48x32")
    assert refused.exit_code == 2 and not (tmp_path / "weights.onnx").exists()
    asked = "give --activation sigmoid if it does, or --activation logits if it does not\n"
    assert refused.stderr.endswith(asked)
    assert run("weights.pth", *network, "--size", "48x32", "--activation", "sigmoid").exit_code == 0
    check = ("--check", "weights.onnx", "--checkpoint", "weights.pth", *network)
    assert run(*check, "--activation", "sigmoid").exit_code == 0
    assert run(*check).stderr.endswith(asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"network": NetworkOptions(activation="softmax")},
            "--activation softmax: the network has 1 output channel, exp",
        ),
        (
            {"network": NetworkOptions(activation="sigmoid"), "raw": True},
            "--raw: writes logits, and the network ends in",
        ),
    ],
)
def test_ends_that_contradict_the_network_or_another_option(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        export_onnx(Sigmoid(), tmp_path / "net.onnx", **options)
    assert not (tmp_path / "net.onnx").exists()


class Coarse(Sigmoid):
    """A network whose answers in fp32 are those of rounding alone."""

    def forward(self, x):
        return (1e7 * self.layer(x)).sin() * 3


def test_a_network_whose_own_rounding_is_coarse_is_refused(tmp_path):
    with pytest.raises(ProofError, match=r"own rounding, PyTorch in fp32 against fp64, is .*; no file can be proved"):
        export_onnx(randomised(Coarse()), tmp_path / "net.onnx", changes=CardChanges(size=(32, 48)))
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_a_network_that_pytorch_cannot_copy_is_one_line(tmp_path):
    network = Sigmoid()
    torch.nn.utils.weight_norm(network.layer)
    network(torch.rand(1, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"network: PyTorch cannot copy it \(Only Tensors .*remove that"):
        export_onnx(network, tmp_path / "net.onnx")


class Centred(Sigmoid):
    """A network of stride 1 that looks at the whole picture."""

    def forward(self, x):
        x = self.layer(x)
        return 3 * (x - x.mean((2, 3), keepdim=True))


def test_a_stride_of_one_asks_for_no_multiples():
    loaded = checkpoint_of(Centred().eval(), "net", NetworkOptions(), CardChanges(size=(32, 48)))
    (note,) = loaded.notes
    assert note.endswith("so pictures are never padded: they are resized to 48x32")


def test_an_image_smaller_than_the_network_takes_is_named(tmp_path):
    from PIL import Image

    Image.new("RGB", (30, 20)).save(tmp_path / "small.png")
    changes = CardChanges(size=(64, 64), fit="native")
    with pytest.raises(DataError, match=r"is 30x20 for the network, which takes at least 40x40, use .*small\.png"):
        export_onnx(randomised(AtLeast()), tmp_path / "net.onnx", changes=changes, data=tmp_path)


def test_what_goes_with_a_network_only(tmp_path):
    with pytest.raises(ConfigError, match=r"path: a network is no file to write beside; give the \.onnx file to write"):
        export_onnx(Sigmoid())
    with pytest.raises(ConfigError, match=r"card: goes with a network; a checkpoint has its own"):
        export_onnx(tmp_path / "model.pth", card=object())


class Loop(Sigmoid):
    """A network whose steps depend on the picture."""

    def forward(self, x):
        y = self.layer(x)
        return -y if y.mean() > 0 else y


def test_a_network_that_cannot_be_traced_is_one_line(tmp_path):
    with pytest.raises(ModelError) as caught:
        export_onnx(Loop(), tmp_path / "net.onnx", changes=CardChanges(size=(32, 48)))
    assert str(caught.value).startswith("PyTorch's exporter cannot trace the network (")
    assert "\n" not in str(caught.value) and not (tmp_path / "net.onnx").exists()


class Named(nn.Module):
    """Convolutions that run in another order than they are made, one of them twice; one without a module if `bare`."""

    def __init__(self, bare=False):
        super().__init__()
        self.last = nn.Conv2d(4, 1, 1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.inner = nn.ModuleDict({"last": nn.Conv2d(3, 4, 3, padding=1)})
        self.bare, self.kernel = bare, nn.Parameter(torch.rand(4, 4, 1, 1))

    def forward(self, x):
        x = self.shared(self.shared(self.inner["last"](x).relu()).relu())
        return self.last(nn.functional.conv2d(x, self.kernel) if self.bare else x)


@pytest.mark.parametrize(
    ("bare", "names"),
    [
        (False, ["inner.last", "shared", "shared_2", "last"]),
        (True, ["inner.last", "shared", "shared_2", "convolution", "last"]),
    ],
)
def test_layers_are_named_by_the_module_that_runs_them_in_whatever_order_they_were_made(tmp_path, bare, names):
    import onnx

    export_onnx(randomised(Named(bare)), tmp_path / "net.onnx", changes=CardChanges(size=(32, 48)))
    assert [node.name for node in onnx.load(tmp_path / "net.onnx").graph.node if node.op_type == "Conv"] == names


class AtLeast(Sigmoid):
    """A network that takes pictures of 40 pixels a side or more."""

    def forward(self, x):
        if min(x.shape[2:]) < 40:
            raise RuntimeError("too small")
        return self.layer(x)


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--size 48x32: the network takes pictures of at least 40x40; give that"):
        export_onnx(AtLeast(), tmp_path / "net.onnx", changes=CardChanges(size=(32, 48)))


class Evened(Sigmoid):
    """A network that pads maps of odd sizes on the way up, and those alone, as MONAI's BasicUNet does."""

    def forward(self, x):
        y = nn.functional.interpolate(nn.functional.max_pool2d(x, 2), scale_factor=2.0)
        if y.shape[2:] != x.shape[2:]:
            y = nn.functional.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
        return self.layer(torch.cat([x[:, :2], y[:, :1]], dim=1))


def test_a_network_whose_steps_depend_on_the_size_is_exported_with_a_stride(tmp_path):
    file, changes = tmp_path / "net.onnx", CardChanges(size=(32, 48))
    with pytest.raises((ModelError, ProofError), match=r"give --stride with a number that its sides were always"):
        export_onnx(randomised(Evened()), file, changes=changes)
    assert not file.exists()
    assert (
        export_onnx(randomised(Evened()), file, network=NetworkOptions(stride=2), changes=changes).card.input.stride
        == 2
    )


def test_the_network_in_memory_stays_as_it_is(tmp_path):
    network = randomised(Sigmoid()).train()
    ends = NetworkOptions(activation="sigmoid")
    export_onnx(network, tmp_path / "net.onnx", network=ends, changes=CardChanges(size=(32, 48)))
    assert network.training and network.layer.training


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_of_two_kinds_of_weights_the_command_says_which_it_took_and_the_check_asks_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    average, raw = write_author(tmp_path, seed=1), write_author(tmp_path, seed=4)
    torch.save({"model": raw.state_dict(), "ema": average.state_dict()}, "weights.pth")
    network = ("--network", "net.py:Net")
    done = run("weights.pth", *network, "--size", "48x32", "--weights", "ema")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith(
        "note: weights.pth holds weights of the network Net and has no card; assumed: mean 0,0,0 of values in 0..1, "
    )
    taken = (
        "the moving average of the weights, under 'ema', is taken; --weights raw takes the weights as trained, under "
        "'model'"
    )
    assert f"note: {taken}\n" in done.stderr
    check = ("--check", "weights.onnx", "--checkpoint", "weights.pth", *network)
    assert run(*check, "--weights", "ema").exit_code == 0
    refused = run(*check)
    assert refused.exit_code == 1
    assert refused.stderr == (
        "FAILED: weights.onnx: was not exported from weights.pth, which has other weights; the weights as trained, "
        "under 'model', are taken; --weights ema takes the moving average of the weights, under 'ema'\n"
    )


def test_a_network_in_memory_is_no_file(tmp_path):
    loaded = checkpoint_of(randomised(Sigmoid()), "net", NetworkOptions(activation="sigmoid"), CardChanges())
    assert loaded.described(tmp_path / "net.onnx") == "the network Sigmoid"
