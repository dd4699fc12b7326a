"""A model card in Markdown with YAML front matter, made from the card in an ONNX file."""

import hashlib
import shlex
from collections.abc import Iterable
from pathlib import Path

from export.precision.gate import describe_limit, describe_loss, no_layer_in_fp16
from runtime.card import NEVER_PADDED, ModelCard, UNetConfig
from runtime.errors import one_line
from runtime.image import MAX_CHANNELS as MAX_RESIZED
from runtime.support.sizes import batch_text, size_text

FRONT_MATTER = """\
---
library_name: onnx
pipeline_tag: image-segmentation
tags:
- onnx
- unet
- segmentation
# license: to be filled in by whoever publishes this model; see the section License below
---
"""

LICENSE = """\
## License

**To be filled in**, here and in the first lines of this file. The exporter knows neither the license of the training
data nor that of the weights.
"""


def model_card(card: ModelCard, file: Path) -> str:
    """Return the Markdown for an exported file with this card."""
    gate = None if card.proof is None else card.proof.gate
    warning = ""
    if gate is not None and not gate.passed:
        limit = describe_limit(card, gate)
        warning = (
            f"> **Warning: this {card.precision} file failed its gate and was written all the same.** It "
            f"{describe_loss(card, gate)}{limit and f'; {limit}'}. Prefer the fp32 file.\n"
        )
    parts = [FRONT_MATTER, f"# {as_code(card.name)}\n", warning, facts(card, file), contract(card)]
    parts += [usage(card, file), training_section(card), proof_section(card), LICENSE]
    return "\n".join(part for part in parts if part)


def facts(card: ModelCard, file: Path) -> str:
    """Describe the file: size, hash, precision, architecture, versions."""
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    names = ", ".join(map(as_code, card.output.classes))
    answer = f"the probabilities of {len(card.output.classes)} classes at each pixel: {names}"
    if card.output.activation == "sigmoid":
        answer = f"the probability of {names} at each pixel"
    network, architecture = card.architecture, as_code(card.architecture.summary)
    if isinstance(network, UNetConfig):
        architecture = f"U-Net, widths {', '.join(map(str, network.widths))}, up {network.up}"
    rows = [
        ("file", as_code(file.name)),
        ("size", f"{file.stat().st_size / 1e6:.1f} MB"),
        ("sha256", f"`{digest}`"),
        ("precision", card.precision),
        *([("written for", "CPUs")] if card.target == "cpu" else []),
        ("architecture", architecture),
        ("trained at", f"{size_text(card.input.size)} (width x height)"),
        ("made with", ", ".join(f"{as_code(name)} {as_code(text)}" for name, text in card.producer.items())),
    ]
    kind = "U-Net" if isinstance(network, UNetConfig) else "network"
    text = f"A {kind} that gives {answer} of an image. One ONNX file, with normalisation inside.\n\n"
    return text + card_table(("", ""), rows)


def contract(card: ModelCard) -> str:
    """Describe input and output: names, types, shapes, how images are fitted, how a class is decided."""
    channels, classes = card.architecture.in_channels, card.architecture.classes
    sizes: tuple[str, ...] = ("batch", "height", "width")
    free = "Batch, height and width are free."
    if card.input.fixed_shape is not None:
        batch, *_ = sizes = tuple(map(str, card.input.fixed_shape))
        free = f"The file takes batches of {batch} at this size only."
    fits = {
        "stretch": f"Resize images to {size_text(card.input.size)} (width x height), whatever their aspect ratio.",
        "letterbox": f"Resize images to fit into {size_text(card.input.size)} (width x height), keeping their aspect "
        "ratio, centred between bars of the mean colour.",
        "native": "Images go in at their own size."
        if card.input.scale == 1
        else f"Resize both sides of an image to {card.input.scale:g} of their length, rounded down.",
    }
    threshold = f"{card.output.threshold:g}"
    decision = {
        "sigmoid": f"A pixel has the class if its probability is above {threshold}.",
        "softmax": "A pixel has the class whose probability is highest; they sum to 1.",
        "sigmoids": f"A pixel has each class whose probability is above {threshold}: none, one or several.",
    }[card.output.activation]
    kind = f"{channels} channels" if card.input.channels == "raw" else card.input.channels
    rows = [
        ("input", "`image`", "uint8", ", ".join((*sizes, str(channels))), f"{kind}, 0 to 255"),
        ("output", "`probability`", "float32", ", ".join((sizes[0], str(classes), *sizes[1:])), "0 to 1"),
    ]
    if card.input.levels is not None:
        black, white = card.input.levels
        rows[0] = (*rows[0][:-1], f"{kind}, 0 to 255, from stored values {black} to {white}")
    listed = "\n".join(f"{index}. {as_code(name)}" for index, name in enumerate(card.output.classes))
    if card.input.fixed_shape is None and not card.input.padded and card.input.stride > 1:
        free = f"The batch is free. Height and width have to be multiples of {card.input.stride}, {NEVER_PADDED}."
    if card.input.fixed_shape is None and max(card.input.min_size) > 1:
        free += f" The smallest picture is {size_text(card.input.min_size)} (width x height)."
    return (
        f"## Input and output\n\n{card_table(('', 'name', 'type', 'shape', 'values'), rows)}\n"
        f"{free} {fits[card.input.fit]} Resize the probabilities back to the image's size, "
        f"and decide then. {decision}\n\nClasses, in the order of the output's channels:\n\n{listed}\n"
    )


def usage(card: ModelCard, file: Path) -> str:
    """Show how to call the file, with this library and without it."""
    for_cpus, suffix = card.target == "cpu", "tif" if card.output.overlapping else "png"
    bits = 16 if (card.input.levels or (0, 255))[1] > 255 else 8
    if card.input.channels == "raw":
        return f"""\
## How to use it

With the runtime of unet-deploy, which needs no PyTorch. It takes TIFF, .npy and .npz files of so many channels, too:

```python
import runtime

runtime.predict("image.npy", model={file.name!r}{', device="cpu"' if for_cpus else ""}).save("mask.{suffix}")
```

or, for many images:

```sh
unet-predict {shlex.quote(file.name)} images/ -o masks{" --device cpu" if for_cpus else ""}
```

With ONNX Runtime and OpenCV:

```python
{plain_script(card, file.name)}```

Both give the same mask for {bits}-bit images that are not smaller than the trained size.
"""
    return f"""\
## How to use it

With the runtime of unet-deploy, which needs no PyTorch:

```python
import runtime

runtime.predict("image.jpg", model={file.name!r}{', device="cpu"' if for_cpus else ""}).save("mask.{suffix}")
```

or, for many images:

```sh
unet-predict {shlex.quote(file.name)} images/ -o masks{" --device cpu" if for_cpus else ""}
```

With ONNX Runtime, OpenCV and Pillow:

```python
{plain_script(card, file.name)}```

Both give the same mask for {bits}-bit images that are not smaller than the trained size.
"""


def raw_array(card: ModelCard) -> str:
    """Describe the arrays that a network of raw channels takes."""
    channels = card.architecture.in_channels
    return "uint8 [height, width]" if channels == 1 else f"uint8 [height, width, {channels}]"


def plain_script(card: ModelCard, name: str) -> str:
    """Return Python code that writes mask.png for image.jpg with the file `name`, without this library.

    Classes that overlap are the pages of mask.tif.
    """
    (height, width), channels = card.input.size, card.architecture.in_channels
    grey, raw = channels == 1, card.input.channels == "raw"
    libraries = ["cv2", "numpy as np", "onnxruntime"]
    read = f'image = np.asarray(ImageOps.exif_transpose(Image.open("image.jpg")).convert("{card.input.channels}"))'
    if raw:
        read = f'image = np.load("image.npy")  # {raw_array(card)}'
    black, white = card.input.levels or (0, 255)
    deep = white > 255  # values of 16 bits, of which Pillow would give 8
    if deep and not raw:
        read = 'image = cv2.imread("image.png", cv2.IMREAD_UNCHANGED)'
    if card.input.levels is not None:
        read += f"\nimage = np.clip((image.astype(int) - {black}) * 255 // {white - black}, 0, 255).astype(np.uint8)"
    if deep and not raw:
        colours = "image = np.dstack([image] * 3) if image.ndim == 2 else image[:, :, 2::-1]"
        read += f"\n{colours}" + '\nimage = np.asarray(Image.fromarray(image).convert("L"))' * grey
    pillow = [f"from PIL import Image{'' if raw else ', ImageOps'}"]
    lines = [*(f"import {name}" for name in libraries), *pillow, "", read]
    part = "probability[0]"

    def resized(size: str) -> str:
        if channels <= MAX_RESIZED:
            return f"cv2.resize(image, {size}, interpolation=cv2.INTER_AREA)  # INTER_LINEAR for smaller images"
        plane = f"cv2.resize(plane, {size}, interpolation=cv2.INTER_AREA)"
        return f"np.dstack([{plane} for plane in cv2.split(image)])  # INTER_LINEAR for smaller images"

    if card.input.fit == "stretch":
        lines.append(f"fitted = {resized(f'({width}, {height})')}")
    elif card.input.fit == "native" and card.input.scale == 1:
        lines.append("fitted = image")
    elif card.input.fit == "native":
        sides = ", ".join(f"max(1, int({card.input.scale!r} * image.shape[{axis}]))" for axis in (1, 0))
        lines.append(f"fitted = {resized(f'({sides})')}")
    else:
        bars = [min(max(round(255 * mean), 0), 255) for mean in card.input.mean]
        canvas = f"({height}, {width}), {bars[0]}" if grey else f"({height}, {width}, {channels}), {bars}"
        lines += [
            f"scale = min({height} / image.shape[0], {width} / image.shape[1])",
            "h, w = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))",
            f"top, left = ({height} - h) // 2, ({width} - w) // 2",
            f"fitted = np.full({canvas}, np.uint8)",
            f"fitted[top : top + h, left : left + w] = {resized('(w, h)')}",
        ]
        part = "probability[0][:, top : top + h, left : left + w]"
    batch, count = "fitted[None, :, :, None]" if grey else "fitted[None]", card.input.fixed_batch or 1
    if count > 1:
        batch = f"np.repeat({batch}, {count}, axis=0)"
    lines += [
        f'session = onnxruntime.InferenceSession({name!r}, providers=["CPUExecutionProvider"])',
        f'(probability,) = session.run(["probability"], {{"image": {batch}}})  # [{count}, classes, height, width]',
        f"planes = [cv2.resize(plane, image.shape[1::-1], interpolation=cv2.INTER_LINEAR) for plane in {part}]",
    ]
    if card.output.overlapping:
        lines += [
            f"masks = (np.stack(planes) > {card.output.threshold!r}).astype(np.uint8) * 255",
            "pages = [Image.fromarray(mask) for mask in masks]",
            'pages[0].save("mask.tif", save_all=True, append_images=pages[1:])  # a page for each class',
        ]
        return "\n".join(lines) + "\n"
    if card.output.activation == "sigmoid":
        lines.append(f"mask = (planes[0] > {card.output.threshold!r}).astype(np.uint8) * 255")
    else:
        kind = "uint8" if len(card.output.classes) <= 256 else "uint16"
        lines.append(f"mask = np.argmax(planes, axis=0).astype(np.{kind})")
    lines.append('Image.fromarray(mask).save("mask.png")')
    return "\n".join(lines) + "\n"


def training_section(card: ModelCard) -> str:
    """Give epochs, fingerprint of the data, and metrics."""
    if card.training is None:
        return "## Training\n\nNothing is known about it.\n"
    rows = [(as_code(name), f"{value:.4f}") for name, value in sorted(card.training.metrics.items())]
    epochs = "epoch" if card.training.epochs == 1 else "epochs"
    known = f"{card.training.epochs} {epochs} on data with the fingerprint {as_code(card.training.data)}."
    return f"## Training\n\n{known} Metrics of the validation, in fp32:\n\n{card_table(('metric', 'value'), rows)}"


def proof_section(card: ModelCard) -> str:
    """Give the parity with PyTorch and the figures of the gate."""
    proof = card.proof
    if proof is None:
        return ""
    limit = "" if proof.tolerance is None else f"; the export allows {proof.tolerance:g}"
    compared = "This file's answers against"
    if card.precision == "fp16":
        compared = (
            "A CPU computes an fp16 file in fp32, so these are the answers of a graph that rounds to fp16 as this file "
            "does on a GPU, against"
        )
    whose = "PyTorch's"
    if proof.reference == "reading":
        whose = (
            "those of this library's reading of a checkpoint that holds weights and no network (names cannot show "
            "activation, concatenation order, padding or interpolation)"
        )
    elif proof.reference == "pairs":
        whose = "those of a reading of its checkpoint that gave its author's outputs for its author's inputs (pairs)"
    versions = ", ".join(f"{as_code(name)} {as_code(text)}" for name, text in proof.versions.items())
    rows = [
        (
            batch_text(row.shape),
            row.images,
            f"{row.parity.max_abs_error:.1e}",
            f"{row.parity.flipped:.4%}",
            f"{row.parity.iou:.6f}",
            f"{row.parity.flip_distance:.1e}",
        )
        for row in proof.rows
    ]
    names = ("batch of width x height", "images", "largest error", "pixels flipped", "mask IoU", "flip distance")
    text = (
        f"## Proof\n\n{compared} {whose}, on {as_code(proof.provider)} with {versions}. The largest "
        f"error of a probability is {proof.max_abs_error:.1e}{limit}.\n\n{card_table(names, rows)}"
    )
    if proof.gate is not None:
        gate = proof.gate
        kept = "" if no_layer_in_fp16(card, gate) else ", ".join(map(as_code, gate.kept))
        text += f"\n### Gate\n\n**{'Passed' if gate.passed else 'Failed'}.** The file {describe_loss(card, gate)}.\n"
        text += f"\nLayers that stayed in fp32: {kept}.\n" if kept else ""
    if card.bf16 is not None:
        text += (
            "\n### bf16\n\n**Permitted.** With OpenVINO, unet-deploy computes this file in bf16 on CPUs that have it "
            f"(`ProviderOptions(bf16=False)` refuses that). Judged on {as_code(card.bf16.provider)}, it then "
            f"{describe_loss(card, card.bf16.gate)}; a probability of the proof's pictures is off by at most "
            f"{card.bf16.max_abs_error:.1e}.\n"
        )
    return text


def card_table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Lay out a table; `rows` have a cell for each name."""
    lines = [names, ("---",) * len(names), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def as_code(text: str) -> str:
    """Quote text from outside as code, so that nothing in it is read as Markdown or HTML, in a table or elsewhere."""
    readable = one_line(text).encode(errors="replace").decode()
    return "`" + readable.replace("`", "'").replace("|", "/") + "`"
