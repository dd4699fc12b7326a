"""The gate that a file of lower precision has to pass: its limits, its rules, and in words what a file lost.

Needs neither PyTorch nor onnx.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from runtime.card import Bf16Permission, Gate, ModelCard, UNetConfig

FP16_FLIPPED = 1e-4
"""Largest share of pixels (0..1) whose class an fp16 file may change against fp32."""

INT8_FLIPPED = 5e-3
"""The same for an int8 file, where there are no masks to measure on."""

INT8_DICE = 2e-3
"""Largest loss of image Dice of an int8 file, where there are masks."""

MEANINGFUL_DICE = 0.1
"""Smallest image Dice of fp32 that can show what a precision loses; it also has to be half of training's."""

FEW_PICTURES = 8
"""Number of pictures below which a gate says little."""

PrecisionCost = tuple[float, float]
"""Cost of a set of layers in fp16 or int8: share of flipped pixels (0..1), mean |p - p of fp32|."""


def fp16_is_good(gate: Gate, layers: Collection[str]) -> bool:
    """Return True if an fp16 file lost no more than allowed, and not all of its layers stayed in fp32."""
    return gate.flipped <= FP16_FLIPPED and set(gate.kept) != set(layers)


def int8_is_good(gate: Gate) -> bool:
    """Return True if an int8 file lost no more than allowed: image Dice if there are masks, else flipped pixels."""
    if gate.image_dice is None or gate.image_dice_fp32 is None:
        return gate.flipped <= INT8_FLIPPED
    return gate.image_dice_fp32 - gate.image_dice <= INT8_DICE


def bf16_is_good(gate: Gate, limit: float | None) -> bool:
    """Return True if bf16 flips no more than `limit` (0..1) of the pixels, or None: loses no more than int8 may."""
    return int8_is_good(gate) if limit is None else gate.flipped <= limit


def doubt_of(gate: Gate, card: ModelCard, seen: Collection[object]) -> str | None:
    """Say why the images can show nothing, if so; `seen` are fp32's answers as of `export.proof.answers_in`."""
    if gate.images == "data" and len(seen) == card.output.planes:
        same = "the same classes" if card.output.overlapping else "one class"
        return f"the network answers {same} everywhere on the images of --data, so they show nothing; give others"
    if not shows_nothing(card, gate):
        return None
    trained = dice_in_training(card)
    known = f", in training {trained:.4f}" if trained else ""
    advice = "give images and masks of what the network was trained for"
    if card.training is None and isinstance(card.architecture, UNetConfig):  # of other projects, known by their keys
        advice += "; if they are, its weights may be read in the wrong way, see --network and --pairs"
    return (
        f"the image Dice of fp32 on --data is {gate.image_dice_fp32:.4f}{known}, so it cannot show what is lost; "
        f"{advice}"
    )


def shows_nothing(card: ModelCard, gate: Gate) -> bool:
    """Return True if the image Dice of fp32 is too low to show what a precision loses."""
    if gate.image_dice_fp32 is None:
        return False
    return gate.image_dice_fp32 < least_dice(card)


def least_dice(card: ModelCard) -> float:
    """Return the smallest image Dice of fp32 that shows something: half of training's, and `MEANINGFUL_DICE`."""
    return max(MEANINGFUL_DICE, dice_in_training(card) / 2)


def dice_in_training(card: ModelCard) -> float:
    """Return the image Dice (0..1) that the network had in training, 0 if it is not known."""
    return card.training.metrics.get("image_dice", 0.0) if card.training else 0.0


@dataclass(frozen=True, kw_only=True)
class JudgedFigure:
    """A figure of a gate as people read it; `limit` is empty if it is not judged."""

    name: str
    found: str
    limit: str
    passed: bool


def judged_figures(card: ModelCard, gate: Gate, limit: float | None = None) -> list[JudgedFigure]:
    """List the figures that a file of lower precision is judged by, with their limits.

    `limit` is the largest share (0..1) of flipped pixels, if it is not that of the card's precision.
    """
    dice, dice_fp32 = gate.image_dice, gate.image_dice_fp32
    by_dice = card.precision == "int8" and dice is not None and limit is None
    most = limit if limit is not None else FP16_FLIPPED if card.precision == "fp16" else INT8_FLIPPED
    figures = [
        JudgedFigure(
            name="pixels flipped against fp32",
            found=_distinct(gate.flipped, most, "%"),
            limit="" if by_dice else f"at most {most:.4%}",
            passed=by_dice or gate.flipped <= most,
        )
    ]
    if dice is not None and dice_fp32 is not None:
        least = least_dice(card)
        figures += [
            JudgedFigure(
                name="image Dice of fp32",
                found=f"{dice_fp32:.4f}",
                limit=f"at least {least:.4f}",
                passed=dice_fp32 >= least,
            ),
            JudgedFigure(
                name="image Dice lost",
                found=_distinct(dice_fp32 - dice, INT8_DICE, "f"),
                limit=f"at most {INT8_DICE:.4f}" if by_dice else "",
                passed=not by_dice or dice_fp32 - dice <= INT8_DICE,
            ),
        ]
    if card.precision == "fp16" and gate.layers is not None:
        figures.append(
            JudgedFigure(
                name="layers in fp16",
                found=f"{gate.layers - len(gate.kept)} of {gate.layers}",
                limit="at least 1",
                passed=not no_layer_in_fp16(card, gate),
            )
        )
    if not gate.passed and all(figure.passed for figure in figures):
        figures.append(JudgedFigure(name="different answers of fp32", found="1", limit="at least 2", passed=False))
    return figures


def notes_on_images(gate: Gate) -> tuple[str, ...]:
    """Note if the gate had no real images, or few."""
    if gate.images == "synthetic":
        return ("judged on synthetic pictures, since there are no real ones; give --data",)
    if gate.count < FEW_PICTURES:
        return (f"judged on {gate.count} real image{'s' * (gate.count > 1)}, which is little; give more in --data",)
    return ()


def describe_refusal(
    gate: Gate, layers: Collection[str], costs: Sequence[tuple[str, PrecisionCost]], doubt: str | None
) -> str:
    """Say why a copy with these layers failed its gate; `costs` and `doubt` are those of `Converted`."""
    if set(gate.kept) == set(layers):
        found = "all layers had to stay in fp32"
    elif doubt:
        return doubt
    else:
        found = f"it flips {gate.flipped:.4%} of the pixels"
    if gate.image_dice is not None and gate.image_dice_fp32 is not None:
        found += f" and takes the image Dice from {gate.image_dice_fp32:.4f} to {gate.image_dice:.4f}"
    worst = ", ".join(f"{layer} flips {flipped:.3%}" for layer, (flipped, _) in costs[:3])
    return found + (f"; alone, {worst}" if worst else "")


def bf16_refusal(permission: Bf16Permission, doubt: str | None) -> str:
    """Say why bf16 is not permitted, and how to get a file; `doubt` is why the images show nothing, if so."""
    gate, limit = permission.gate, permission.max_flipped
    if doubt:
        return f"bf16 is not permitted: {doubt}"
    found = f"it flips {gate.flipped:.4%} of the pixels"
    if gate.image_dice is not None and gate.image_dice_fp32 is not None:
        found += f" and takes the image Dice from {gate.image_dice_fp32:.4f} to {gate.image_dice:.4f}"
    allowed = f"{INT8_DICE * 100:g} points of image Dice" if limit is None else f"{limit:.4%} of the pixels"
    if limit is None and gate.image_dice is None:
        allowed = f"{INT8_FLIPPED:.2%} of the pixels"
    enough = math.ceil(1e4 * gate.flipped) / 1e2
    return (
        f"bf16 loses too much: {found}, allowed are {allowed}; leave --allow bf16 out, or permit this loss by "
        f"--max-flipped {enough:g}%"
    )


def describe_loss(card: ModelCard, gate: Gate) -> str:
    """Say what a file of lower precision lost; continues a sentence that begins with "it"."""
    if no_layer_in_fp16(card, gate):
        return "holds no layer in fp16: all had to stay in fp32"
    flipped = _distinct(gate.flipped, INT8_FLIPPED if card.precision == "int8" else FP16_FLIPPED, "%")
    source = "real" if gate.images == "data" else "synthetic"
    text = f"answers {flipped} of the pixels of {gate.count} {source} images otherwise than fp32"
    if gate.image_dice is None or gate.image_dice_fp32 is None:
        return text
    text += f", with an image Dice of {gate.image_dice:.4f} instead of {gate.image_dice_fp32:.4f}"
    points = 100 * (gate.image_dice_fp32 - gate.image_dice)
    return text if points <= 0 else f"{text} ({_distinct(points, 100 * INT8_DICE, 'f')} points less)"


def describe_limit(card: ModelCard, gate: Gate) -> str:
    """Say what the file may lose, or that its images cannot show it; empty if no layer is in fp16."""
    if no_layer_in_fp16(card, gate):
        return ""
    if not exceeds_limit(card, gate):
        return "the images cannot show what is lost"
    if card.precision == "int8" and gate.image_dice is not None:
        return f"allowed are {INT8_DICE * 100:g} points of image Dice"
    return f"allowed are {FP16_FLIPPED if card.precision == 'fp16' else INT8_FLIPPED:.2%} of the pixels"


def exceeds_limit(card: ModelCard, gate: Gate) -> bool:
    """Return True if a file lost more than allowed, on images that can show it.

    Any other gate that failed, but for that of an fp16 file without a layer in fp16, had images that show nothing.
    """
    if shows_nothing(card, gate):
        return False
    return gate.flipped > FP16_FLIPPED if card.precision == "fp16" else not int8_is_good(gate)


def no_layer_in_fp16(card: ModelCard, gate: Gate) -> bool:
    """Return True if all layers of an fp16 file stayed in fp32, so that nothing in it is fp16."""
    network, layers = card.architecture, gate.layers
    if layers is None and isinstance(network, UNetConfig):
        layers = network.convolutions
    return card.precision == "fp16" and len(gate.kept) == layers


def _distinct(value: float, limit: float, kind: str) -> str:
    """Write a number with four decimals, or more if it would look like its limit."""
    digits = 4
    while value != limit and f"{value:z.{digits}{kind}}" == f"{limit:.{digits}{kind}}":
        digits += 1
    return f"{value:z.{digits}{kind}}"
