"""A folder of save_pretrained is taken with the class that the user names, and without it the message names it."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from runtime.errors import CheckpointError, ConfigError
from unet_core.checkpoint import load_checkpoint
from unet_core.model_options import CardChanges, NetworkOptions
from unet_core.networks.checkpoint import open_checkpoint
from unet_core.weight_files.pretrained_folder import open_folder

CODE = """
import torch


def Net(width, encoder_weights="imagenet", classes=1, bias=True):
    assert encoder_weights is None, "this would fetch weights"
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 1, bias=bias), torch.nn.Conv2d(width, classes, 1))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as segmentation_models_pytorch writes it, of the network in net.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    folder = tmp_path / "my net"
    folder.mkdir()
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.Conv2d(5, 2, 1))
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {"_model_class": "Unet", "width": 5, "classes": 2, "encoder_weights": "imagenet"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_arguments_are_those_in_the_folder_and_nothing_is_fetched(folder):
    loaded = open_checkpoint(folder, NetworkOptions(source="net.py:Net"), CardChanges())
    assert loaded.card.architecture.classes == 2 and loaded.card.name == "my net"
    assert loaded.notes == (f"the arguments of the network are those in {folder / 'config.json'}",)
    assert torch.equal(loaded.network().network[0].weight, load(folder)["0.weight"])


def load(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_arguments_of_the_user_go_before(folder):
    options = NetworkOptions(source="net.py:Net", arguments={"bias": False})
    with pytest.raises(CheckpointError, match=r"does not fit the network; 1 not in the network: 0\.bias"):
        open_checkpoint(folder, options, CardChanges())


def test_weights_of_transformers_bring_no_arguments(folder):
    (folder / "config.json").write_text('{"architectures": ["Segformer"], "model_type": "segformer", "width": 5}')
    assert open_folder(folder) == (folder / "model.safetensors", {})
    with pytest.raises(ConfigError, match=r"missing 1 required positional argument: 'width'"):
        open_checkpoint(folder, NetworkOptions(source="net.py:Net"), CardChanges())


def test_without_the_class_the_command_is_told(folder):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert str(caught.value) == (
        f"{folder}: is a folder of segmentation_models_pytorch, as save_pretrained writes it; name its class, which "
        f"takes its arguments from config.json: unet-export '{folder}' --network segmentation_models_pytorch:Unet"
    )
    (folder / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"is a folder as save_pretrained writes it; .* --network package\.module"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["Unet; rm -rf ~ #", "$(id)", "", ["Unet"], "a.b", "Unet\n"])
def test_a_class_that_is_no_name_is_never_in_the_command(folder, name):
    (folder / "config.json").write_text(json.dumps({"_model_class": name}))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert str(caught.value).endswith(f": unet-export '{folder}' --network segmentation_models_pytorch:NAME")


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON ("), ("[1]", "holds a list, expected names and values")])
def test_a_damaged_config_is_told(folder, text, said):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        open_folder(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: {said}")


def test_folders_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder without model\.safetensors and pytorch_model\.bin; give a"):
        open_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a folder, expected a checkpoint such as .*model\.pth"):
        load_checkpoint(tmp_path)


def test_the_folder_of_the_package_itself(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch", reason="needs segmentation-models-pytorch")
    from export.cli import main

    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(16, 8, 8)).eval()
    network.save_pretrained(tmp_path / "smp")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "smp")
    program, *arguments = str(caught.value).partition(": unet-export ")[2].split()
    done = CliRunner().invoke(main, [program, *arguments, "--size", "64x64"])
    assert done.exit_code == 0, done.output
    assert "equals PyTorch within" in done.stdout and (tmp_path / "smp.onnx").exists()
