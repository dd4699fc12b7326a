"""Networks of other packages: exported by the commands of the documentation, and compared with PyTorch."""

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

from benchmarks.cases.networks import IMAGENET, NETWORKS, SIZE, train
from export.cli import main
from runtime.errors import ConfigError
from runtime.image import fit, load_image, restore
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor
from unet_core.data.pairs import find_pairs
from unet_core.model_options import CardChanges, NetworkOptions, parse_arguments
from unet_core.networks.checkpoint import checkpoint_of
from unet_core.networks.factory import make_network

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit.interface` is deprecated:FutureWarning"),  # timm
]

ROOT = Path(__file__).parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"

FACTS = {
    "Unet, resnet34": (1, True),
    "Unet, mobilenet_v2": (1, True),
    "Unet, efficientnet-b0": (1, False),
    "UnetPlusPlus, resnet18": (8, True),
    "DeepLabV3Plus, resnet18": (8, False),
    "Segformer, mit_b0": (8, False),
    "UNet": (4, True),
    "BasicUNet": (16, False),
    "AttentionUnet": (4, False),
    "DynUNet": (4, False),
    "fcn_resnet50": (1, True),
    "deeplabv3_mobilenet_v3_large": (1, False),
    "lraspp_mobilenet_v3_large": (1, False),
    "PlainConvUNet": (4, False),
}
"""Stride of each network, and False if it looks at the whole picture at once, so that none is padded."""

SMALLER = {
    "Unet": ("encoder_depth=3", "decoder_channels=[32, 16, 8]"),
    "UnetPlusPlus": ("encoder_depth=3", "decoder_channels=[32, 16, 8]"),
    "DeepLabV3Plus": ("encoder_depth=3", "decoder_channels=32"),
    "Segformer": ("encoder_depth=3", "decoder_segmentation_channels=32"),
}
"""More arguments for the networks of one package, of which PyTorch traces the full ones for half a minute each."""

GATED = ("UNet", "AttentionUnet", "PlainConvUNet")
"""Networks that are trained for some steps and judged in lower precision, where there are real images."""

STEPS = 30


def described(name):
    """The network of this name in `NETWORKS`, or a smaller one."""
    network = NETWORKS[name]
    return replace(network, arguments=(*network.arguments, *SMALLER.get(name.partition(",")[0], ())))


def unet_export(weights, file, network, *options):
    size = "x".join(map(str, reversed(SIZE)))
    return CliRunner().invoke(main, [str(weights), "-o", str(file), *network.options, "--size", size, *options])


@dataclass
class Exported:
    """A network, the folder with its weights.pth and net.onnx, and what `unet-export` printed."""

    name: str
    network: nn.Module
    folder: Path
    said: str
    predictor: Predictor


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Some slices of a brain, as a data set; None where they are missing."""
    folder = tmp_path_factory.mktemp("slices")
    if not (REAL_DATA / "brain").is_dir():
        return None
    for split, count in (("train", 24), ("val", 12)):
        pairs = find_pairs(REAL_DATA / "brain", split)
        for pair in pairs[:: len(pairs) // count][:count]:
            for file in pair.files:
                link = folder / file.relative_to(REAL_DATA / "brain")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def export_once(slices, tmp_path_factory, shared_exports):
    """A function that exports a network of `NETWORKS`, by name, when it is first asked for it."""

    @functools.cache
    def make(name):
        network, folder = described(name), tmp_path_factory.mktemp("networks")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            segmenter, card = network.make()
            if slices and name in GATED:
                train(segmenter, card, slices, STEPS)
            author = segmenter.network.network
            torch.save(author.state_dict(), folder / "weights.pth")
            done = unet_export(folder / "weights.pth", folder / "net.onnx", network)
        assert done.exit_code == 0, done.output
        return Exported(name, author, folder, done.stdout, Predictor(folder / "net.onnx", "cpu"))

    return make


@pytest.fixture(params=NETWORKS)
def exported(request, export_once):
    return export_once(request.param)


def answers(network, images, card):
    """PyTorch's probabilities [n, classes, height, width] of uint8 images [n, height, width, channels]."""
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (card.input.mean, card.input.std))
    planes = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    height, width = planes.shape[2:]
    stride = card.input.stride
    planes = functional.pad(planes, (0, -width % stride, 0, -height % stride), mode="replicate")
    with torch.inference_mode():
        logits = network(planes)
    logits = (logits["out"] if isinstance(logits, dict) else logits)[:, :, :height, :width]
    return (logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)).numpy()


def test_its_code_tells_what_it_takes_and_the_proof_says_equal(exported):
    card = exported.predictor.card
    assert "equals PyTorch within" in exported.said
    assert (card.input.stride, card.input.padded) == FACTS[exported.name]
    assert (card.architecture.kind, card.proof.reference) == ("module", "module")
    assert card.input.mean == (IMAGENET["mean"] if NETWORKS[exported.name].normalised else (0.0,))


def test_batches_of_many_sizes_are_answered_as_by_pytorch(exported):
    card = exported.predictor.card
    sizes = [(1, 45, 77), (3, 101, 64), (2, 33, 130)]
    if not card.input.padded:
        step = max(card.input.stride, 16)
        sizes = [(batch, -(-height // step) * step, -(-width // step) * step) for batch, height, width in sizes]
    for batch, height, width in sizes:
        pictures = [synthetic_image(height, width, card.architecture.in_channels, 10 + seed) for seed in range(batch)]
        images = np.stack(pictures)
        expected = answers(exported.network, images, card)
        assert expected.std() > 0.1  # it varies over the picture, so that a wrong answer is seen
        assert np.abs(exported.predictor.run(images) - expected).max() < card.proof.tolerance


def test_images_of_odd_sizes_are_answered_as_by_pytorch(exported):
    card = exported.predictor.card
    images = [synthetic_image(*size, 3, seed=20) for size in ((75, 101), (131, 90), (97, 97))]
    for image, found in zip(images, exported.predictor.predict(images), strict=True):
        fitted = fit(load_image(image, card.input.channels), card.input)
        expected = restore(answers(exported.network, fitted.image[None], card)[0], fitted)
        assert found.mask.shape == image.shape[:2]
        assert np.abs(found.probability - expected).max() < card.proof.tolerance


@pytest.mark.parametrize("exported", GATED, indirect=True)
@pytest.mark.parametrize("options", [("fp16",), ("int8", "--values", "u8")], ids=lambda options: options[0])
def test_lower_precision_passes_its_gate_on_real_images(exported, slices, options):
    if slices is None:
        pytest.skip("brain: the real data set is not at ../shared/data/brain beside this checkout")
    file = exported.folder / f"{options[0]}.onnx"
    given = ("--data", str(slices), "--precision", *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        done = unet_export(exported.folder / "weights.pth", file, described(exported.name), *given)
    assert done.exit_code == 0, done.output
    gate = Predictor(file, "cpu").card.proof.gate
    assert gate.passed and gate.count == 12
    assert gate.image_dice_fp32 > 0.8 and gate.image_dice > gate.image_dice_fp32 - 0.002
    assert gate.flipped < (1e-4 if options[0] == "fp16" else 2e-2)
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert ("QuantizeLinear" in kinds) == (options[0] == "int8")


def test_the_documentation_tells_of_every_network_and_holds_the_code_for_nnunet():
    text = (ROOT / "docs" / "networks.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \|", text[text.index("## What works") : text.index("## What is printed")], re.M)
    assert sorted(rows) == sorted(NETWORKS)
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert (ROOT / "docs" / "nnunet" / "network.py").read_text().endswith(f"\n\n{code}")


def facts(source, *arguments, **options):
    """Try a network as an export does before it traces it; returns its card."""
    network = make_network(source, parse_arguments(arguments))
    return checkpoint_of(network, "net", NetworkOptions(**options), CardChanges()).card


MONAI = ("spatial_dims=2", "in_channels=1", "out_channels=2", "channels=[4, 8]", "strides=[2]")
TORCHVISION = ("weights=None", "weights_backbone=None", "num_classes=3", "aux_loss=true")


def test_deep_supervision_is_several_outputs(monkeypatch):
    monkeypatch.chdir(ROOT)
    network = make_network("docs/nnunet/network.py:network", {"plans": "docs/nnunet/plans.json"})
    network.decoder.deep_supervision = True
    with pytest.raises(ConfigError) as caught:
        checkpoint_of(network, "net", NetworkOptions(), CardChanges())
    assert str(caught.value) == ("--network: has several outputs; found 0, 1; give one of them by --output-key")
    assert checkpoint_of(network, "net", NetworkOptions(output_key="0"), CardChanges()).card.architecture.classes == 2
    with pytest.raises(ConfigError, match=r"answers \[1, 2, 64, 64\] to pictures of \[1, 1, 128, 128\]"):
        checkpoint_of(network, "net", NetworkOptions(output_key="1"), CardChanges())


def test_an_auxiliary_output_is_one_of_two():
    lraspp = "torchvision.models.segmentation:deeplabv3_mobilenet_v3_large"
    with pytest.raises(ConfigError, match="has several outputs; found out, aux; give one of them by --output-key"):
        facts(lraspp, *TORCHVISION)
    assert facts(lraspp, *TORCHVISION, output_key="out").architecture.classes == 3


def test_dropout_is_off():
    assert facts("monai.networks.nets:UNet", *MONAI, "dropout=0.5").architecture.classes == 2


def test_a_network_of_volumes_is_refused():
    with pytest.raises(ConfigError) as caught:
        facts("monai.networks.nets:UNet", *(one.replace("dims=2", "dims=3") for one in MONAI))
    assert str(caught.value) == (
        "--network: begins with a 3D convolution, so it segments volumes; expected a network of pictures, which takes "
        "[n, channels, height, width]"
    )
