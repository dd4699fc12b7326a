"""Networks of other packages, exported in every way by `unet-export` after a few steps of training on real images."""

import shlex
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from export.cli import main as unet_export
from export.graph import build_graph
from runtime.card import ModelCard
from runtime.model_file.golden import synthetic_image
from runtime.model_file.reader import read_model
from unet_core.data.labels import LabelSpec
from unet_core.data.pairs import find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.losses import make_loss
from unet_core.model import Segmenter
from unet_core.model_options import CardChanges, NetworkOptions, parse_arguments
from unet_core.networks.checkpoint import checkpoint_of
from unet_core.networks.factory import make_network
from unet_core.reporting.progress import Display

SIZE = (96, 96)
"""(height, width) of the pictures that the networks are trained and measured on: multiples of all their strides."""

BATCH = 8
"""Number of pictures in a step of training."""

LOGITS = 2.0
"""Standard deviation that the logits of a network with random weights are given."""

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Mean and deviation of the pictures that most encoders were trained on first."""


@dataclass(frozen=True, kw_only=True)
class PackageNetwork:
    """A network of another package, and how `unet-export` makes it.

    Attributes:
        package: distribution that it is from.
        source: class or function, as for --network; a file is given from the folder of the repository.
        arguments: NAME=VALUE of its arguments, as for --network-arg.
        normalised: True if its pictures are normalised by `IMAGENET`.
        stride: number of which sides have to be multiples, where trying does not show it to PyTorch's exporter.
    """

    package: str
    source: str
    arguments: tuple[str, ...]
    normalised: bool = False
    stride: int | None = None

    @property
    def options(self) -> list[str]:
        """The options of `unet-export` that make the network."""
        words = ["--network", self.source]
        for argument in self.arguments:
            words += ["--network-arg", argument]
        for name, values in IMAGENET.items() if self.normalised else ():
            words += [f"--{name}", ",".join(map(str, values))]
        if self.stride is not None:
            words += ["--stride", str(self.stride)]
        return words

    def make(self) -> tuple[Segmenter, ModelCard]:
        """Make the network with random weights, in pre- and post-processing for `SIZE`; and its card."""
        torch.manual_seed(0)
        network = make_network(self.source, parse_arguments(self.arguments)).eval()
        mean, std = IMAGENET.values() if self.normalised else (None, None)
        changes = CardChanges(size=SIZE, mean=mean, std=std)
        loaded = checkpoint_of(network, "network", NetworkOptions(stride=self.stride), changes)
        card = changes.applied(loaded.card, assumed=True)
        segmenter = Segmenter(loaded.network(), card).eval()
        enliven(segmenter, card)
        return segmenter, card


def smp(name: str, *arguments: str) -> PackageNetwork:
    """Describe a network of segmentation_models_pytorch, whose pictures are normalised as its encoders' were."""
    return PackageNetwork(
        package="segmentation-models-pytorch",
        source=f"segmentation_models_pytorch:{name}",
        arguments=(*arguments, "encoder_weights=None"),
        normalised=True,
    )


def monai(name: str, *arguments: str) -> PackageNetwork:
    """Describe a network of MONAI for grey pictures."""
    common = ("spatial_dims=2", "in_channels=1")
    return PackageNetwork(package="monai", source=f"monai.networks.nets:{name}", arguments=(*common, *arguments))


def torchvision(name: str) -> PackageNetwork:
    """Describe a network of torchvision, which downloads weights unless told not to."""
    return PackageNetwork(
        package="torchvision",
        source=f"torchvision.models.segmentation:{name}",
        arguments=("weights=None", "weights_backbone=None", "num_classes=2"),
        normalised=True,
    )


NETWORKS: Mapping[str, PackageNetwork] = {
    "Unet, resnet34": smp("Unet", "encoder_name=resnet34"),
    "Unet, mobilenet_v2": smp("Unet", "encoder_name=mobilenet_v2"),
    "Unet, efficientnet-b0": smp("Unet", "encoder_name=efficientnet-b0"),
    "UnetPlusPlus, resnet18": smp("UnetPlusPlus", "encoder_name=resnet18", "classes=2"),
    "DeepLabV3Plus, resnet18": smp("DeepLabV3Plus", "encoder_name=resnet18", "classes=2"),
    "Segformer, mit_b0": smp("Segformer", "encoder_name=mit_b0"),
    "UNet": monai("UNet", "out_channels=2", "channels=[8, 16, 32]", "strides=[2, 2]", "norm=batch"),
    "BasicUNet": replace(monai("BasicUNet", "out_channels=1", "features=[8, 8, 16, 32, 64, 8]"), stride=16),
    "AttentionUnet": monai("AttentionUnet", "out_channels=1", "channels=[8, 16, 32]", "strides=[2, 2]"),
    "DynUNet": monai(
        "DynUNet",
        "out_channels=2",
        "kernel_size=[3, 3, 3]",
        "strides=[1, 2, 2]",
        "upsample_kernel_size=[2, 2]",
        "filters=[8, 16, 32]",
    ),
    "fcn_resnet50": torchvision("fcn_resnet50"),
    "deeplabv3_mobilenet_v3_large": torchvision("deeplabv3_mobilenet_v3_large"),
    "lraspp_mobilenet_v3_large": torchvision("lraspp_mobilenet_v3_large"),
    "PlainConvUNet": PackageNetwork(
        package="dynamic-network-architectures",
        source="docs/nnunet/network.py:network",
        arguments=("plans=docs/nnunet/plans.json",),
    ),
}
"""Networks that are tested and measured, by name."""


def enliven(segmenter: Segmenter, card: ModelCard) -> None:
    """Change a network with random weights so that it resembles a trained one.

    Normalisations get weights, biases and statistics of their own, and the logits vary over a picture.
    """
    generator = torch.Generator().manual_seed(0)
    hooks = []
    convolutions: list[nn.Conv2d | nn.ConvTranspose2d] = []
    for module in segmenter.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if "Norm" in type(module).__name__ and weight is not None and bias is not None:
            nn.init.uniform_(weight, 0.5, 1.5, generator)
            nn.init.uniform_(bias, -0.3, 0.5, generator)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            hooks.append(module.register_forward_hook(lambda module, *_: convolutions.append(module)))
    pictures = [synthetic_image(*SIZE, card.architecture.in_channels, seed) for seed in range(BATCH)]
    images = torch.from_numpy(np.stack(pictures))
    set_statistics(segmenter, images)
    with torch.no_grad():
        last = convolutions[-1]
        last.weight *= LOGITS / segmenter.logits(images).std(dim=(0, 2, 3)).mean()
        if last.bias is not None:
            last.bias -= segmenter.logits(images).mean(dim=(0, 2, 3))
    for hook in hooks:
        hook.remove()


def set_statistics(segmenter: Segmenter, images: Tensor) -> None:
    """Set the statistics of all batch normalisations to those of some images, uint8 [n, h, w, channels]."""
    norms = [module for module in segmenter.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        segmenter.logits(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def train(segmenter: Segmenter, card: ModelCard, data: Path, steps: int) -> None:
    """Train a network for some steps on the training images of a data set of one class."""
    labels = LabelSpec(classes=card.output.classes)
    records = Records(find_pairs(data, "train"), SampleDecoder(input=card.input, labels=labels))
    classes = card.architecture.classes
    loss = make_loss("bce+dice" if classes == 1 else "ce+dice", classes)
    optimizer = torch.optim.Adam(segmenter.parameters(), lr=1e-3)
    random = np.random.default_rng(0)
    segmenter.train()
    for _ in range(steps):
        chosen = [records[index] for index in random.choice(len(records), BATCH, replace=False)]
        images, truth = (torch.from_numpy(np.stack(part)) for part in zip(*chosen, strict=True))
        optimizer.zero_grad()
        loss(segmenter.logits(images), truth).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    segmenter.eval()
    set_statistics(segmenter, images)  # some packages' statistics follow a hundred times more slowly than the weights


KINDS: Mapping[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("--precision", "fp16"),
    "int8, u8": ("--precision", "int8", "--values", "u8"),
    "for CPUs": ("--target", "cpu"),
}
"""Options of each export of a network, by its name in the table."""


@dataclass(frozen=True, kw_only=True)
class NetworkExport:
    """One export of a network: seconds that it took, and the card and size in bytes of its file, or why there is none.

    `said` is all that `unet-export` printed, with its last line at the end.
    """

    seconds: float
    said: str
    card: ModelCard | None
    size: int

    @property
    def refusal(self) -> str:
        """The reason for which there is no file."""
        return self.said.strip().splitlines()[-1].removeprefix("error: ")


@dataclass(frozen=True, kw_only=True)
class MeasuredNetwork:
    """A network of `NETWORKS` and its exports by the names in `KINDS`; `version` is that of its package."""

    network: PackageNetwork
    version: str
    exports: Mapping[str, NetworkExport]


def measure(data: Path, steps: int, names: Collection[str], display: Display) -> Iterator[tuple[str, MeasuredNetwork]]:
    """Train and export the named networks of `NETWORKS`, one after the other.

    Raises:
        UnetError: the data set cannot be used.
    """
    for name in names:
        network = NETWORKS[name]
        display.note(f"{name}: {shlex.join(['unet-export', 'weights.pth', *network.options])}")
        segmenter, card = network.make()
        train(segmenter, card, data, steps)
        with tempfile.TemporaryDirectory() as folder, tracing_once():
            weights = Path(folder, "weights.pth")
            torch.save(segmenter.network.state_dict(), weights)
            exports = {}
            for kind, options in KINDS.items():
                size = "x".join(map(str, reversed(SIZE)))
                words = [*network.options, "--size", size, *options]
                if kind != "for CPUs":
                    words += ["--data", str(data)]
                exports[kind] = export(weights, Path(folder, f"{kind}.onnx"), words)
                display.note(f"{name}, {kind}: {exports[kind].said.splitlines()[-1]}")
        yield name, MeasuredNetwork(network=network, version=version(network.package), exports=exports)


@contextmanager
def tracing_once() -> Iterator[None]:
    """Let PyTorch trace a network for the first of its exports alone: that takes most of the time of each."""
    traced: list[onnx.ModelProto] = []

    def build_once(*arguments: Any, **named: Any) -> onnx.ModelProto:
        if not traced:
            traced.append(build_graph(*arguments, **named))
        graph = onnx.ModelProto()
        graph.CopyFrom(traced[0])
        return graph

    with mock.patch("export.exporter.build_graph", build_once):
        yield


def export(weights: Path, file: Path, options: Sequence[str]) -> NetworkExport:
    """Run `unet-export` in this process."""
    started = time.perf_counter()
    done = CliRunner().invoke(unet_export, [str(weights), "-o", str(file), *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    written = file.exists()
    return NetworkExport(
        seconds=time.perf_counter() - started,
        said=done.output,
        card=read_model(file)[0] if written else None,
        size=file.stat().st_size if written else 0,
    )
