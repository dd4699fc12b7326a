"""Weights of encoders: from files of every kind, and by the library's download, of which a stand-in is the hub."""

import json

import pytest
import torch
from encoders import ENCODER
from safetensors.torch import save_file

from runtime.card import InputSpec, ModelCard, OutputSpec, SmpConfig
from runtime.errors import CheckpointError, ConfigError
from unet_core.checkpoint import save_checkpoint, weights_sha256
from unet_core.networks.encoder_weights import IMAGENET, started
from unet_core.smp_networks import library, make_network

CONFIG = SmpConfig(name="Unet", encoder="resnet18", options={"encoder_depth": 3, "decoder_channels": (8, 8, 4)})
TIMM = SmpConfig(name="Unet", encoder=ENCODER, options={"encoder_depth": 3, "decoder_channels": (8, 8, 4)})
THEIRS = "(ImageNet's, as torchvision and timm use them; the file does not tell)"


@pytest.fixture(scope="module")
def weights():
    """An encoder's weights with running statistics that no initialisation gives."""
    torch.manual_seed(7)
    values = make_network(CONFIG).get_submodule("encoder").state_dict()
    return {name: value + 0.5 if name.endswith("running_mean") else value for name, value in values.items()}


def assert_weights(network, weights):
    found = network.get_submodule("encoder").state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_a_file_of_torchvision_with_its_classifier(weights, tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(weights | {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}, path)
    found = started(CONFIG, str(path))
    assert_weights(found.network, weights)
    assert (found.mean, found.std) == IMAGENET
    assert found.note == (
        f"encoder resnet18: weights {path}, mean 0.485,0.456,0.406, std 0.229,0.224,0.225 {THEIRS}; left out of the "
        "file: fc.weight, fc.bias"
    )


def test_mean_and_std_of_a_settings_file_beside_it_whatever_their_range(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    settings = {"mean": [127.5, 51, 0], "std": [51, 25.5, 255], "input_range": [0, 255], "input_space": "RGB"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    found = started(CONFIG, str(tmp_path / "model.safetensors"))
    assert_weights(found.network, weights)
    assert (found.mean, found.std) == ((0.5, 0.2, 0.0), (0.2, 0.1, 1.0))


def test_mean_and_std_of_timms_settings_file(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    settings = {"architecture": "tf_resnet18", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 1]}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    found = started(CONFIG, str(tmp_path / "model.safetensors"))
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.5, 0.25, 1.0))
    assert found.note.endswith(f"std 0.5,0.25,1 (from {tmp_path / 'config.json'})")


@pytest.mark.parametrize(
    "content", ["[]", "5", '{"pretrained_cfg": ["mean"]}', '{"mean": 0.5, "std": 0.5}', "{", "[" * 99999]
)
def test_a_settings_file_of_another_kind_tells_nothing(weights, tmp_path, content):
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    found = started(CONFIG, str(tmp_path / "model.safetensors"))
    assert (found.mean, found.std) == IMAGENET
    assert found.note.endswith(f"std 0.229,0.224,0.225 {THEIRS}")


def test_a_whole_network_of_ours_brings_its_encoder_and_its_cards_mean(weights, tmp_path):
    network = make_network(CONFIG)
    network.get_submodule("encoder").load_state_dict(weights)
    card = ModelCard(
        name="net",
        producer={},
        architecture=CONFIG,
        input=InputSpec(size=(64, 64), stride=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        output=OutputSpec(),
        weights_sha256=weights_sha256(network.state_dict()),
    )
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), card)
    found = started(SmpConfig(name="FPN", encoder="resnet18"), str(tmp_path / "model.pth"))
    assert_weights(found.network, weights)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.note.endswith("std 0.4,0.5,0.6 (from its card)")


def test_grey_images_see_the_sum_of_the_colours_filters(weights, tmp_path):
    torch.save(weights, tmp_path / "colours.pth")
    grey = SmpConfig(name="Unet", encoder="resnet18", in_channels=1, options=CONFIG.options)
    found = started(grey, str(tmp_path / "colours.pth"))
    first = found.network.get_submodule("encoder").state_dict()["conv1.weight"]
    torch.testing.assert_close(first, weights["conv1.weight"].sum(1, keepdim=True))
    assert found.mean == pytest.approx((0.449,))
    assert found.std == pytest.approx((0.226,))


def test_a_file_of_timm_has_names_without_the_librarys_prefix(tmp_path):
    values = make_network(TIMM).get_submodule("encoder").state_dict()
    torch.save({name.removeprefix("model."): value for name, value in values.items()}, tmp_path / "timm.pth")
    assert_weights(started(TIMM, str(tmp_path / "timm.pth")).network, values)
    grey = SmpConfig(name="Unet", encoder=ENCODER, in_channels=1, options=TIMM.options)
    with pytest.raises(ConfigError) as caught:
        started(grey, str(tmp_path / "timm.pth"))
    assert str(caught.value) == (
        f"--encoder-weights {tmp_path / 'timm.pth'}: goes with --channels RGB for timm's encoders; give that, or none"
    )


def test_files_that_do_not_fit_are_told(weights, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({name: value for name, value in weights.items() if name != "layer4.1.conv2.weight"}, path)
    with pytest.raises(CheckpointError) as caught:
        started(CONFIG, str(path))
    message = f"--encoder-weights {path}: does not fit the encoder resnet18; 1 missing: layer4.1.conv2.weight"
    assert str(caught.value) == message
    torch.save(weights | {"layer1.0.conv1.weight": weights["layer1.0.conv1.weight"] * float("nan")}, path)
    with pytest.raises(CheckpointError) as caught:
        started(CONFIG, str(path))
    assert str(caught.value) == (
        f"--encoder-weights {path}: layer1.0.conv1.weight holds NaN or infinite weights; use another file"
    )
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="is damaged, or no checkpoint of plain weights, and was not executed"):
        started(CONFIG, str(path))
    with pytest.raises(ConfigError) as caught:
        started(CONFIG, "gone.pth")
    assert str(caught.value) == "--encoder-weights gone.pth: no such file"


def test_without_weights_values_are_scaled_alone():
    found = started(TIMM, "none")
    assert (found.mean, found.std, found.note) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for Hugging Face's hub: its files are in a folder, and those asked for are in `asked`."""
    asked = []

    def download(repository, filename, revision):
        asked.append((repository, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(library().encoders, "hf_hub_download", download)
    return asked


def test_the_library_downloads_weights_by_name(hub, weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}))
    found = started(CONFIG, "imagenet")
    assert_weights(found.network, weights)
    assert found.note == "encoder resnet18: weights imagenet, mean 0.5,0.4,0.3, std 0.1,0.2,0.3"
    assert ("smp-hub/resnet18.imagenet", "model.safetensors") in hub


def test_weights_that_no_encoder_has_are_told_before_a_download(hub):
    with pytest.raises(ConfigError) as caught:
        started(CONFIG, "imagnet")
    assert str(caught.value) == (
        "--encoder-weights imagnet: resnet18 has imagenet, ssl, swsl; give one of these, a file, or none"
    )
    assert hub == []


def test_a_hub_that_is_not_reachable_is_told_with_the_way_out(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known. Retry later.")

    monkeypatch.setattr(library().encoders, "hf_hub_download", unreachable)
    with pytest.raises(ConfigError) as caught:
        started(CONFIG, "imagenet")
    assert str(caught.value) == (
        "--encoder-weights imagenet: cannot be downloaded from smp-hub/resnet18.imagenet at Hugging Face's hub "
        "(ConnectionError: Name or service not known); where it is not reachable, give model.safetensors from there as "
        "--encoder-weights FILE, or none"
    )


@pytest.mark.parametrize("count", [2, 3, 5, 6])
def test_more_channels_have_the_mean_of_the_colour_whose_filters_they_have(weights, tmp_path, count):
    """The library gives them those of red, green and blue in turn, so a picture of grey answers as in colours."""
    torch.save(weights, tmp_path / "colours.pth")
    many = SmpConfig(name="Unet", encoder="resnet18", in_channels=count, options=CONFIG.options)
    found = started(many, str(tmp_path / "colours.pth"))
    assert found.mean == tuple((IMAGENET[0] * 2)[:count])
    assert found.std == tuple((IMAGENET[1] * 2)[:count])
    filters = found.network.get_submodule("encoder").state_dict()["conv1.weight"] * (count / 3)
    values = (torch.full((count,), 0.3) - torch.tensor(found.mean)) / torch.tensor(found.std)
    colours = (torch.full((3,), 0.3) - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1])
    theirs = weights["conv1.weight"] * colours[:, None, None]
    for index in range(count):
        torch.testing.assert_close(filters[:, index] * values[index], theirs[:, index % 3])
