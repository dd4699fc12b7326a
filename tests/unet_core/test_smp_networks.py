"""Networks of segmentation-models-pytorch: made by its names alone, and refused by name where it has none."""

import sys

import pytest
import torch

from runtime.card import SmpConfig
from runtime.errors import ConfigError
from unet_core.smp_networks import library, make_network, shapes_of


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0"])  # the second one cannot be made without memory
def test_shapes_are_those_of_the_network(encoder):
    config = SmpConfig(name="FPN", encoder=encoder, in_channels=1 if encoder == "resnet18" else 3, classes=2)
    expected = {name: value.shape for name, value in make_network(config).state_dict().items()}
    assert shapes_of(config) == expected
    assert expected["segmentation_head.0.weight"] == torch.Size([2, 128, 1, 1])


def test_the_network_is_the_librarys_own_with_its_options():
    config = SmpConfig(name="Linknet", encoder="tu-test_resnet", classes=2, options={"encoder_depth": 3})
    torch.manual_seed(3)
    found = make_network(config)
    torch.manual_seed(3)
    expected = library().Linknet("tu-test_resnet", encoder_depth=3, encoder_weights=None, classes=2)
    assert type(found) is type(expected)
    picture = torch.rand(1, 3, 64, 32)
    assert torch.equal(found.eval()(picture), expected.eval()(picture))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"encoder": "resnet35"},
            "--encoder resnet35: is no encoder of segmentation-models-pytorch; the nearest are resnet50, resnet34; "
            "tu-NAME is timm's NAME",
        ),
        (
            {"options": {"depth": 4}},
            "--network-arg depth: is no option of smp.Unet; found encoder_depth, decoder_use_norm, decoder_channels, "
            "decoder_attention_type, decoder_interpolation",
        ),
        (
            {"options": {"decoder_channels": (8,)}},
            "--network smp.Unet: segmentation-models-pytorch refuses the encoder resnet34 or an option (ValueError: "
            "Model depth is 5, but you provide `decoder_channels` for 1 blocks.); give another --encoder or "
            "--network-arg",
        ),
        (
            {"encoder": "tu-nothing"},
            "--network smp.Unet: segmentation-models-pytorch refuses the encoder tu-nothing (RuntimeError: Unknown "
            "model (nothing)); give another --encoder or --network-arg",
        ),
    ],
)
def test_what_the_library_does_not_have_is_told_by_our_options(settings, message):
    with pytest.raises(ConfigError) as caught:
        make_network(SmpConfig(name="Unet", **settings))
    assert str(caught.value) == message


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ConfigError) as caught:
        make_network(SmpConfig(name="Unet"))
    assert str(caught.value) == (
        "--network smp: needs segmentation-models-pytorch, which cannot be imported (import of "
        "segmentation_models_pytorch halted; None in sys.modules); install unet-deploy with its extra [encoders]"
    )


@pytest.mark.parametrize("name", ["Unet", "DeepLabV3Plus"])  # the latter makes strides dilations
def test_an_encoder_that_pads_by_the_images_size_pads_alike(name):
    config = SmpConfig(name=name, encoder="tu-tf_efficientnet_lite0")
    torch.manual_seed(0)
    ours = make_network(config).eval()
    theirs = getattr(library(), name)(config.encoder, encoder_weights=None, classes=1).eval()
    theirs.load_state_dict(ours.state_dict())
    names = {type(module).__name__ for module in theirs.modules()}
    assert "Conv2dSame" in names and "Conv2dSame" not in {type(module).__name__ for module in ours.modules()}
    for size in ((32, 32), (64, 96), (160, 224)):
        images = torch.randn(1, 3, *size)
        with torch.inference_mode():
            assert torch.equal(ours(images), theirs(images))
