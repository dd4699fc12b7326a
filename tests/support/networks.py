"""Thin networks whose BatchNorm statistics are not those of a fresh network, so that nothing passes by symmetry."""

import torch

from runtime.card import ModelCard, OutputSpec, UNetConfig
from unet_core.checkpoint import input_spec, weights_sha256
from unet_core.model import UNet


def make_network(seed=0, **config):
    torch.manual_seed(seed)
    network = UNet(UNetConfig(**({"widths": (4, 8)} | config)))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(0.1, 0.6)
    network.final_conv.weight.data *= 4
    return network.eval()


def make_card(network, size=(32, 48)):
    config = network.config
    several = config.classes > 1
    return ModelCard(
        name="thin",
        producer={"tests": "1"},
        architecture=config,
        input=input_spec(config, size),
        output=OutputSpec(
            classes=tuple(f"c{index}" for index in range(config.classes)) if several else ("car",),
            activation="softmax" if several else "sigmoid",
        ),
        weights_sha256=weights_sha256(network.state_dict()),
    )
