"""Exports of the part `which`: of trained networks, and of networks with random weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases.image_files import write_jpeg
from benchmarks.cases.networks import enliven
from export.exporter import export_onnx
from runtime.card import ModelCard, UNetConfig
from runtime.errors import ConfigError
from runtime.image_files.limits import Limits
from unet_core.checkpoint import save_checkpoint, weights_sha256
from unet_core.model import Segmenter, UNet
from unet_core.reporting.progress import Display

DEPTH = 4
"""Number of levels of networks with random weights, each of twice as many channels as the one above it."""

PICTURES = 8
"""Number of synthetic pictures that they are calibrated on."""


def export(
    base: int,
    checkpoint: Path | None,
    like: ModelCard,
    path: Path,
    arguments: Mapping[str, Any],
    data: Path | None,
    limits: Limits,
    display: Display,
) -> Path:
    """Export a checkpoint, even if it fails its gate, or a network with random weights; return the file's path.

    Raises:
        UnetError: the errors of `export_onnx`.
    """
    arguments = {"force": "precision" in arguments, **arguments}
    if checkpoint is None:
        checkpoint = path.with_name("random.pth")
        if not checkpoint.exists():
            save_random(base, like, checkpoint)
        if "allow" in arguments:  # what random weights lose in bf16 says nothing
            arguments |= {"max_flipped": 1.0}
        data = synthetic_folder(path.parent / "pictures", like)
    if "precision" in arguments or "allow" in arguments:
        arguments |= {"data": data, "limits": limits}
    return export_onnx(checkpoint, path, display=display, **arguments).path


def save_random(base: int, like: ModelCard, checkpoint: Path) -> None:
    """Save a U-Net with random weights, of a width, and otherwise as the card says.

    Raises:
        ConfigError: the card's network is no U-Net of this library.
    """
    if not isinstance(like.architecture, UNetConfig):
        raise ConfigError(f"which: takes U-Nets of this library, and the model is a {like.architecture.summary}")
    torch.manual_seed(0)
    architecture = replace(like.architecture, widths=tuple(base * 2**level for level in range(DEPTH)))
    network = UNet(architecture).eval()
    card = replace(
        like,
        architecture=architecture,
        input=replace(like.input, stride=2**DEPTH),
        weights_sha256=weights_sha256(network.state_dict()),
        training=None,
        proof=None,
        bf16=None,
    )
    enliven(Segmenter(network, card).eval(), card)  # or it would answer one class everywhere
    card = replace(card, weights_sha256=weights_sha256(network.state_dict()))
    save_checkpoint(checkpoint, network.state_dict(), card)


def synthetic_folder(folder: Path, like: ModelCard) -> Path:
    """Make a folder of synthetic pictures of the trained size."""
    if not folder.exists():
        folder.mkdir()
        for index in range(PICTURES):
            write_jpeg(folder / f"{index}.jpg", like.input.size, like.input.channels, seed=index)
    return folder
