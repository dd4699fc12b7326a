"""Limits of the gates of lower precision, and in words what a file lost. Needs neither PyTorch nor onnx."""

from runtime.card import Gate, ModelCard

FP16_FLIPPED = 1e-4
"""Largest share of pixels (0..1) whose class an fp16 file may change against fp32."""

INT8_FLIPPED = 5e-3
"""The same for an int8 file, where there are no masks to measure on."""

INT8_DICE = 2e-3
"""Largest loss of image Dice of an int8 file, where there are masks."""


def describe_loss(card: ModelCard, gate: Gate) -> str:
    """Say what a file of lower precision lost; continues a sentence that begins with "it"."""
    if no_layer_in_fp16(card, gate):
        return "holds no layer in fp16: all had to stay in fp32"
    flipped = _distinct(gate.flipped, FP16_FLIPPED if card.precision == "fp16" else INT8_FLIPPED, "%")
    source = "real" if gate.images == "data" else "synthetic"
    text = f"answers {flipped} of the pixels of {gate.count} {source} images otherwise than fp32"
    if gate.image_dice is None or gate.image_dice_fp32 is None:
        return text
    text += f", with an image Dice of {gate.image_dice:.4f} instead of {gate.image_dice_fp32:.4f}"
    points = 100 * (gate.image_dice_fp32 - gate.image_dice)
    return text if points <= 0 else f"{text} ({_distinct(points, 100 * INT8_DICE, 'f')} points less)"


def describe_limit(card: ModelCard, gate: Gate) -> str:
    """Say what the file may lose; continues the sentence of `describe_loss`."""
    if no_layer_in_fp16(card, gate):
        return ""
    if card.precision == "int8" and gate.image_dice is not None:
        return f"; allowed are {INT8_DICE * 100:g} points of image Dice"
    return f"; allowed are {FP16_FLIPPED if card.precision == 'fp16' else INT8_FLIPPED:.2%} of the pixels"


def no_layer_in_fp16(card: ModelCard, gate: Gate) -> bool:
    """Return True if an fp16 file failed because nothing in it is fp16: the one reason besides flipped pixels."""
    return card.precision == "fp16" and not gate.passed and gate.flipped <= FP16_FLIPPED


def _distinct(value: float, limit: float, kind: str) -> str:
    """Write a number with four decimals, or more if it would look like its limit."""
    digits = 4
    while value != limit and f"{value:.{digits}{kind}}" == f"{limit:.{digits}{kind}}":
        digits += 1
    return f"{value:.{digits}{kind}}"
