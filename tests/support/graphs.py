"""Exported graphs that tests share: building one takes seconds. Nobody may change them."""

from dataclasses import replace
from functools import cache

import onnx
from networks import make_card, make_network

from export.graph import build_graph, build_raw_graph
from unet_core.model import Segmenter

DEEP = {"widths": (2, 3, 4, 5, 6), "classes": 3, "in_channels": 1}
ARCHITECTURES = (
    {},
    {"widths": (3, 5, 9), "up": "bilinear", "classes": 2},
    {"widths": (5,), "up": "bilinear-wide", "in_channels": 1},
    DEEP,
)
"""Each way up, one and several classes, colour and grey, one to five poolings."""


@cache
def segmenter_of(**config):
    """A thin network with its card, whose mean and std are not those that change nothing."""
    network = make_network(**config)
    card, channels = make_card(network), network.config.in_channels
    normalised = replace(card.input, mean=(0.5, 0.4, 0.3)[:channels], std=(0.2, 0.25, 0.3)[:channels])
    card = replace(card, input=normalised)
    return Segmenter(network, card).eval(), card


@cache
def graph_of(**config):
    return build_graph(*segmenter_of(**config))


@cache
def raw_graph_of(**config):
    return build_raw_graph(*segmenter_of(**config))


def copy_of(model):
    """A graph like it, to be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
