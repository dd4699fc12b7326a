"""ONNX files of thin networks, without the proof's minutes: the card says what the test wants."""

from dataclasses import replace
from functools import cache

import onnx
import torch
from networks import make_card, make_network
from onnx.helper import set_model_props

from export.graph import build_graph
from export.precision.calibration import calibrate
from export.precision.int8 import quantisable, to_int8, values_to_calibrate
from export.proof import make_golden
from runtime.card import CARD_KEY, Bf16Permission, Gate, Parity, Proof, ProofRow, Training
from runtime.model_file.golden import GOLDEN_KEY, golden_image, synthetic_image
from unet_core.model import Segmenter
from unet_core.reporting.progress import Display


@cache
def _built(size, fixed_batch=None, **config):
    network = make_network(**config)
    _balance(network)
    card = make_card(network, size)
    card = replace(card, input=replace(card.input, fixed_batch=fixed_batch))
    segmenter = Segmenter(network, card).eval()
    return build_graph(segmenter, card), card, make_golden(segmenter, card, candidates=0)


def _balance(network):
    """Make every class the answer somewhere."""
    image = golden_image(network.config.in_channels)
    with torch.inference_mode():
        logits = network(torch.from_numpy(image).float().permute(2, 0, 1)[None] / 255)
        network.final_conv.bias -= logits.mean(dim=(0, 2, 3))


def gate_of(passed=True, **changes):
    fields = {"images": "data", "count": 8, "flipped": 2e-5, "image_dice": None, "image_dice_fp32": None, "kept": ()}
    return Gate(**(fields | changes), passed=passed)


def permission_of(passed=True, max_flipped=5e-4, **changes):
    """Make a permission of bf16 whose gate has these fields."""
    known = {"golden_error": 0.01, "max_abs_error": 0.02, "provider": "OpenVINO 2026.4.1 in bf16"}
    return Bf16Permission(gate=gate_of(passed, **changes), max_flipped=max_flipped, **known)


def write_onnx(
    path,
    *,
    size=(32, 48),
    fixed_batch=None,
    precision="fp32",
    target="any",
    gate=None,
    graph=None,
    of_card=None,
    bf16=None,
    **config,
):
    """Write a file and return its card; `of_card` maps the card, `config` are fields of `UNetConfig`."""
    built, card, golden = _built(size, fixed_batch, **config)
    row = ProofRow(
        shape=(1, *size),
        images="synthetic",
        parity=Parity(max_abs_error=3e-7, flipped=0.0, iou=1.0, flip_distance=0.0),
    )
    proof = Proof(
        provider="CPUExecutionProvider",
        versions={"onnxruntime": "1.31.1"},
        tolerance=1e-4 if precision == "fp32" else None,
        rows=(row,),
        golden_error=3e-7 if precision == "fp32" else 0.01,
        gate=gate or (None if precision == "fp32" else gate_of()),
    )
    card = replace(
        card,
        precision=precision,
        target=target,
        proof=proof,
        training=Training(epochs=3, data="f00d", metrics={"image_dice": 0.97}),
    )
    card = card if of_card is None else of_card(card)
    model = onnx.ModelProto()
    model.CopyFrom(graph or built)
    set_model_props(model, {CARD_KEY: card.to_json(), GOLDEN_KEY: replace(golden, bf16=bf16).to_json()})
    path.write_bytes(model.SerializeToString())
    return card


def int8_graph(values):
    """The int8 graph of the default thin network, calibrated on noise."""
    exact, card, _ = _built((32, 48))
    layers = quantisable(exact, values)
    pictures = [synthetic_image(*card.input.size, 3, seed) for seed in range(2)]
    ranges = calibrate(exact, values_to_calibrate(exact, layers, values), pictures, Display(quiet=True)).mean
    return to_int8(exact, layers, ranges, values)
