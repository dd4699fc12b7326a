"""Checkpoints: weights together with their card, read without executing anything that is in the file.

`model.pth` holds {"state_dict", "card"}; `my_checkpoint.pth.tar` adds what a run needs to go on. The tutorial's
{"state_dict", "optimizer"}, and bare state dicts with the same keys, load too: their dimensions follow from the shapes.
"""

import hashlib
import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.card import InputSpec, ModelCard, OutputSpec, UNetConfig
from runtime.errors import CheckpointError, ModelError
from runtime.files import replacing
from unet_core.model import UNet

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file held: weights on the CPU, the card, and all other entries.

    `card_is_assumed`: the file had no card, so what shapes do not tell (size, normalisation, names) is the default.
    """

    state_dict: StateDict
    card: ModelCard
    extra: Mapping[str, Any]
    card_is_assumed: bool = False

    def network(self) -> UNet:
        """The network with these weights, on the CPU in evaluation mode."""
        network = UNet(self.card.architecture)
        network.load_state_dict(dict(self.state_dict))
        return network.eval()


def save_checkpoint(path: str | os.PathLike[str], state_dict: StateDict, card: ModelCard, **extra: Any) -> None:
    """Write weights and card, and whatever else a run needs to go on, atomically.

    Raises:
        OutputError: it cannot be written; an older file stays as it was.
    """
    content = {"state_dict": dict(state_dict), "card": card.to_json(), **extra}
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise OSError(None, "PyTorch could not write all of it; the disk may be full") from error


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of this library, of the tutorial, or a bare state dict with the tutorial's keys.

    Raises:
        CheckpointError: missing, damaged, not a U-Net's, or made of more than plain weights (which is not executed).
    """
    content = _read(Path(path))
    state_dict = content.get("state_dict", content)
    if not isinstance(state_dict, dict) or not all(map(_is_weight, state_dict.items())):
        raise CheckpointError(f"{path}: holds no state dict (names and tensors); expected a U-Net's checkpoint")
    config = _config_of(state_dict, path)
    _check_keys(state_dict, config, path)
    card = _stored_card(content["card"], path) if "card" in content else foreign_card(state_dict, config, Path(path))
    if card.architecture != config:
        raise CheckpointError(f"{path}: its card says {card.architecture}, its weights are {config}; it is damaged")
    if card.weights_sha256 != weights_sha256(state_dict):
        raise CheckpointError(f"{path}: its weights are not those that its card names; it is damaged")
    extra = {key: value for key, value in content.items() if key not in ("state_dict", "card")}
    return Checkpoint(
        state_dict=state_dict,
        card=card,
        extra={} if content is state_dict else extra,
        card_is_assumed="card" not in content,
    )


def _is_weight(item: tuple[object, object]) -> bool:
    name, value = item
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _read(path: Path) -> dict[str, Any]:
    if not os.path.exists(path):  # noqa: PTH110 - unlike Path.exists it takes any name
        raise CheckpointError(f"{path}: no such file; train one with: python -m unet_core.train")
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, expected a checkpoint such as {path / 'model.pth'}")
    if not path.stat().st_size:
        raise CheckpointError(f"{path}: is empty (0 bytes), expected a checkpoint")
    if path.suffix.lower() == ".onnx":
        raise CheckpointError(f"{path}: is an ONNX file, expected the checkpoint that it was exported from")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is not a checkpoint of plain weights, so it was not executed; save it with "
            "torch.save(model.state_dict(), ...)"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch and zipfile raise many types on damaged files
        raise CheckpointError(
            f"{path}: is damaged, cut off or no checkpoint of PyTorch; copy or save it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dictionary of weights")
    return content


def _stored_card(text: object, path: str | os.PathLike[str]) -> ModelCard:
    try:
        return ModelCard.from_json(text if isinstance(text, str) else "")
    except ModelError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _config_of(state_dict: StateDict, path: str | os.PathLike[str]) -> UNetConfig:
    """Read the dimensions off the shapes of the weights."""
    try:
        widths: list[int] = []
        while f"downs.{len(widths)}.conv.0.weight" in state_dict:
            widths.append(state_dict[f"downs.{len(widths)}.conv.0.weight"].shape[0])
        return UNetConfig(
            in_channels=state_dict["downs.0.conv.0.weight"].shape[1],
            classes=state_dict["final_conv.weight"].shape[0],
            widths=tuple(widths),
            up="transpose" if "ups.0.weight" in state_dict else "bilinear",
        )
    except (KeyError, IndexError) as error:
        found = ", ".join(list(state_dict)[:3]) or "nothing"
        raise CheckpointError(
            f"{path}: is not this U-Net's: found the keys {found}, expected downs.0.conv.0.weight to final_conv.bias"
        ) from error
    except ModelError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_keys(state_dict: StateDict, config: UNetConfig, path: str | os.PathLike[str]) -> None:
    with torch.device("meta"):
        expected = {key: value.shape for key, value in UNet(config).state_dict().items()}
    found = {key: value.shape for key, value in state_dict.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        details = "; ".join(
            f"{key}: {_shape(found.get(key))}, expected {_shape(expected.get(key))}" for key in wrong[:3]
        )
        raise CheckpointError(f"{path}: {len(wrong)} weights do not fit this U-Net: {details}")
    bad = next((key for key, value in state_dict.items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise CheckpointError(f"{path}: {bad} holds NaN or infinite weights; use an earlier checkpoint")


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))


def foreign_card(state_dict: StateDict, config: UNetConfig, path: Path) -> ModelCard:
    """The card of weights that came without one: everything that shapes do not tell is the default."""
    several = config.classes > 1
    output = OutputSpec(
        classes=tuple(f"class {index}" for index in range(config.classes)) if several else OutputSpec().classes,
        activation="softmax" if several else "sigmoid",
    )
    return ModelCard(
        name=path.stem[:200],
        producer=producer(),
        architecture=config,
        input=input_spec(config),
        output=output,
        weights_sha256=weights_sha256(state_dict),
    )


def input_spec(config: UNetConfig, size: tuple[int, int] = InputSpec.size) -> InputSpec:
    """The default input for a network: colour or grey, images divided by 255."""
    if config.in_channels == 3:
        return InputSpec(size=size, stride=config.stride)
    return InputSpec(size=size, channels="L", mean=(0.0,), std=(1.0,), stride=config.stride)


def producer() -> dict[str, str]:
    """Versions that made a card."""
    return {"unet-deploy": version("unet-deploy"), "torch": torch.__version__}


def version(distribution: str) -> str:
    """Version of an installed distribution, or "unknown" in a bare checkout."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def weights_sha256(state_dict: StateDict) -> str:
    """Hash over names, types, shapes and values: equal weights give equal hashes, whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
