"""Checkpoints of other projects' U-Nets: recognised by the names of their weights, and mapped onto ours exactly.

    tutorial       github.com/aladdinpersson/Machine-Learning-Collection, whose names are ours
    milesial       github.com/milesial/Pytorch-UNet
    mateuszbuda    github.com/mateuszbuda/brain-segmentation-pytorch
    usuyama        github.com/usuyama/pytorch-unet

A family is an entry of `FAMILIES`: the names of its layers and the meaning of its output. Depth, widths, channels and
classes are read from the shapes; then every weight has to fit. To add a family, add an entry.
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from runtime.card import MAX_DEPTH, Activation, OutputSpec, Probabilities, UNetConfig, Up, default_classes
from runtime.errors import CheckpointError, ModelError
from unet_core.model import UNet
from unet_core.weight_files.finder import COUNTER, LISTED, MASK_VALUES, StateDict

INDICES = ("0", "1", "3", "4")
"""Indices of convolution, norm, convolution and norm in our blocks."""

NEUTRAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1 - nn.BatchNorm2d(1).eps, COUNTER: 0}
"""Values of a BatchNorm that changes nothing: it divides by sqrt(running_var + eps) = 1."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Weights as `UNet(config)` takes them, in float32.

    With `is_ambiguous` neither the weights nor their project tell whether the `classes` exclude one another, and
    `activation` is a guess. `odd_sizes` is what the project does to sizes that are no multiples of the stride, `advice`
    says how to come nearer to its programs. `up_first` tells as which order of concatenation the weights were read.
    `notes` are lines that a user has to know.
    """

    family: str
    state_dict: StateDict
    config: UNetConfig
    activation: Activation
    classes: tuple[str, ...]
    up_first: bool = False
    is_ambiguous: bool = False
    odd_sizes: str = ""
    advice: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """The names, the order and the meaning of the layers in a project's U-Net.

    `telltale` matches the start of keys that only this family has. Templates contain {level}, counted from 0 at the
    top, {number}, counted from 1, {step} of the decoder, counted from 1 at the bottom, {even} and {odd}, its places in
    our `ups`, and {part}: one of `parts`, the family's names of convolution, norm, convolution and norm in a block
    (empty: the block has no such layer). An empty `top` or `bottleneck` has the name of the first or last `down`.
    `up_first` is True if the decoder concatenates [up, skip]. `several` is the activation of several classes in the
    project's own programs, or None if it has none. `odd_sizes` completes "its own code ... where a side is no multiple
    of the stride". `advice` says by which options the use of a checkpoint comes nearer to the project's programs.
    """

    name: str
    telltale: str
    parts: tuple[str, str, str, str] = INDICES
    top: str = ""
    down: str
    bottleneck: str = ""
    transposed: str = ""
    decoder: str
    final: str
    ups: tuple[Up, ...]
    up_first: bool = False
    several: Probabilities | None
    one_class: str = ""
    odd_sizes: str = ""
    advice: str = ""
    notes: tuple[str, ...] = ()

    def key(self, ours: str, depth: int) -> str:
        """Return the family's name for our key in a network of `depth` levels; "" if it has no such layer."""
        *layer, entry = ours.split(".")
        part = dict(zip(INDICES, self.parts, strict=True)).get(layer[-1], "")
        level, template = depth, self.final
        match layer:
            case ["bottleneck", *_]:
                template = self.bottleneck or self.down
            case ["downs", place, *_]:
                level = int(place)
                template = self.down if level else self.top or self.down
            case ["ups", place, *rest]:
                level = depth - 1 - int(place) // 2
                template = self.decoder if rest else self.transposed
        if not part and "{part}" in template:
            return ""
        step = depth - level
        name = template.format(level=level, number=level + 1, step=step, even=2 * step - 2, odd=2 * step - 1, part=part)
        return f"{name}.{entry}"

    def biases(self, ours: StateDict, depth: int) -> dict[str, str]:
        """Return our norms, each with the family's name for a bias of the convolution before it."""
        layers = [key.removesuffix(".weight") for key in ours if key.endswith((".conv.0.weight", ".conv.3.weight"))]
        return {f"{layer[:-1]}{int(layer[-1]) + 1}": self.key(f"{layer}.bias", depth) for layer in layers}

    def misfit(self, reason: str) -> CheckpointError:
        """Make the error for a checkpoint that has the family's keys and is not its network."""
        return CheckpointError(f"looks like {self.name}'s U-Net, but {reason}")


FAMILIES = (
    Family(
        name="the tutorial",
        telltale=r"(downs\.\d+|ups\.\d+|bottleneck)\.conv\.|final_conv\.",
        down="downs.{level}.conv.{part}",
        bottleneck="bottleneck.conv.{part}",
        transposed="ups.{even}",
        decoder="ups.{odd}.conv.{part}",
        final="final_conv",
        ups=("transpose", "bilinear", "bilinear-wide"),
        several=None,
        one_class=OutputSpec.classes[0],
        odd_sizes="resizes maps on the way up",
    ),
    Family(
        name="milesial",
        telltale=r"inc\.|outc\.|down\d+\.(maxpool_conv|mpconv)\.|up\d+\.conv\.(double_)?conv\.",
        top="inc.double_conv.{part}",
        down="down{level}.maxpool_conv.1.double_conv.{part}",
        transposed="up{step}.up",
        decoder="up{step}.conv.double_conv.{part}",
        final="outc.conv",
        ups=("transpose", "bilinear"),
        several="softmax",
        odd_sizes="pads maps on the way up with zeros",
        advice="its programs show the network images at half of their own size, as --fit native --scale 0.5 does",
    ),
    Family(
        name="mateuszbuda",
        telltale=r"encoder\d+\.enc|decoder\d+\.dec|upconv\d+\.|bottleneck\.bottleneck",
        parts=("conv1", "norm1", "conv2", "norm2"),
        down="encoder{number}.enc{number}{part}",
        bottleneck="bottleneck.bottleneck{part}",
        transposed="upconv{number}",
        decoder="decoder{number}.dec{number}{part}",
        final="conv",
        ups=("transpose",),
        up_first=True,
        several="sigmoids",
        notes=("trained on values normalised per volume, which a card cannot express: here they are divided by 255",),
        advice="its programs pad images to squares, as --fit letterbox does; give --mean and --std of your volumes",
    ),
    Family(
        name="usuyama",
        telltale=r"dconv_(down|up)\d+\.",
        parts=("0", "", "2", ""),
        down="dconv_down{number}.{part}",
        decoder="dconv_up{number}.{part}",
        final="conv_last",
        ups=("bilinear-wide",),
        up_first=True,
        several="sigmoids",
        notes=("has no BatchNorm: layers were added that change nothing until it is trained further",),
    ),
)


def recognise(state_dict: Mapping[str, Any], up_first: bool | None = None) -> Mapped:
    """Map a state dict of one of the `FAMILIES` onto ours; `up_first` overrides the family's own.

    The mapping is exact: biases of convolutions before a norm go into its running mean, and where the decoder
    concatenates [up, skip], input channels change places. Other floating types become float32.

    Raises:
        CheckpointError: no family has such keys, or some do not fit the family's network, or are not finite.
    """
    weights: StateDict = {key: value for key, value in state_dict.items() if key != MASK_VALUES}
    types = {value.dtype for value in weights.values() if value.is_floating_point()} - {torch.float32}
    weights = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    family = find_family(weights)
    if up_first is not None:
        family = replace(family, up_first=up_first)
    if family.name == "milesial" and is_older_milesial(weights):
        raise CheckpointError(
            "is milesial's U-Net from before March 2020, whose layers after upsampling are narrower than today's; "
            "it is exported with the code of that time: unet-export --network FILE.py:UNet"
        )
    try:
        config = read_config(family, weights)
    except ModelError as error:
        raise family.misfit(str(error).removeprefix("card field ")) from error
    with torch.device("meta"):
        ours = UNet(config).state_dict()
    check_weights(family, weights, ours, len(config.widths))
    activation: Activation = "sigmoid" if config.classes == 1 else family.several or "softmax"
    classes = default_classes(config.classes, activation)
    if config.classes == 1 and family.one_class:
        classes = (family.one_class,)
    notes = list(family.notes)
    if types:
        found = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        notes.append(f"weights stored as {found} are float32 here")
    values = state_dict.get(MASK_VALUES)
    if isinstance(values, list) and config.classes > 1:
        notes.append(f"in its masks the classes {', '.join(classes)} had the values {reprlib.repr(values)}")
    return Mapped(
        family=family.name,
        state_dict=map_weights(family, weights, ours, config),
        config=config,
        activation=activation,
        classes=classes,
        up_first=family.up_first,
        is_ambiguous=config.classes > 1 and family.several is None,
        odd_sizes=family.odd_sizes,
        advice=family.advice,
        notes=tuple(notes),
    )


def matches(family: Family, weights: StateDict) -> int:
    """Count the keys that show that weights are of a family; 0 if these are less than half of all."""
    count = sum(re.match(family.telltale, key) is not None for key in weights)
    return count if 2 * count >= len(weights) else 0


def is_known(weights: StateDict) -> bool:
    """Return True if some family has such keys."""
    return any(matches(family, weights) for family in FAMILIES)


def find_family(weights: StateDict) -> Family:
    """Return the family whose telltale matches the most keys.

    Raises:
        CheckpointError: no family has most of the keys.
    """
    if not is_known(weights):
        known = ", ".join(family.name for family in FAMILIES)
        found = ", ".join(map(key_text, list(weights)[:3])) or "nothing"
        raise CheckpointError(
            f"is not a U-Net that is known here ({known}): found the keys {found}; other networks are exported with "
            "the code that makes them: unet-export --network FILE.py:NAME"
        )
    return max(FAMILIES, key=lambda family: matches(family, weights))


def is_older_milesial(weights: StateDict) -> bool:
    """Return True for milesial's U-Net from before March 2020: its upsampling keeps all channels.

    Layers had other names until November 2019. Then blocks after upsampling narrow in their first convolution, which
    later only the variant with transposed convolutions does, whose upsampling halves the channels.
    """
    if any(re.match(r"inc\.conv\.|down\d+\.mpconv\.|up\d+\.conv\.conv\.", key) for key in weights):
        return True
    up, first, second = (
        weights.get(f"up1.{name}.weight") for name in ("up", "conv.double_conv.0", "conv.double_conv.3")
    )
    if first is None or second is None or first.dim() != 4 or second.dim() != 4:
        return False
    if up is not None:
        return up.dim() == 4 and up.shape[0] == up.shape[1]
    return first.shape[0] == second.shape[0] < first.shape[1] // 2


def read_config(family: Family, weights: StateDict) -> UNetConfig:
    """Read the dimensions of the network from the shapes of its weights.

    Raises:
        CheckpointError: a weight is missing, or is not that of a convolution.
        ModelError: the dimensions are out of bounds.
    """

    def size(layer: str, depth: int = 0, axis: int = 0) -> int:
        key = family.key(f"{layer}.weight", depth)
        value = weights.get(key)
        if value is None or value.dim() != 4:
            found = "none" if value is None else shape_text(key, value)
            raise family.misfit(f"1 key does not fit: {key}: {found}, expected a weight of 4 dimensions")
        return value.shape[axis]

    in_channels = size("downs.0.conv.0", axis=1)
    blocks = [{family.key(f"downs.{n}.conv.{index}.weight", 0) for index in INDICES} for n in range(MAX_DEPTH + 2)]
    lowest = max(level for level, block in enumerate(blocks) if block & weights.keys())
    widths = [size(f"downs.{level}.conv.0") for level in range(lowest + 1)]
    if not family.bottleneck:
        widths.pop()
    depth = len(widths)
    up: Up = family.ups[0]
    transposed = {family.key(f"ups.{2 * step}.weight", depth) for step in range(depth)}
    if len(family.ups) > 1 and not transposed & weights.keys():
        may_be_wide = depth and "bilinear-wide" in family.ups
        up = "bilinear-wide" if may_be_wide and size("bottleneck.conv.3", depth) == 2 * widths[-1] else "bilinear"
    return UNetConfig(in_channels=in_channels, classes=size("final_conv"), widths=tuple(widths), up=up)


def check_weights(family: Family, weights: StateDict, ours: StateDict, depth: int) -> None:
    """Check that a family's weights are those of our network, by name, shape and type, and finite.

    Convolutions before norms have biases all or none. Counters may be missing.

    Raises:
        CheckpointError: they are not; the message names the first keys that do not fit.
    """
    names = {key: family.key(key, depth) for key in ours}
    present = (key for key, name in names.items() if name and (name in weights or not key.endswith(COUNTER)))
    biases = {name: ours[f"{norm}.bias"] for norm, name in family.biases(ours, depth).items()}
    needed = biases if not all(names.values()) or biases.keys() & weights.keys() else {}
    shapes = {names[key]: ours[key] for key in present} | needed
    expected = {key: str(list(value.shape)) for key, value in shapes.items()}
    found = {key: shape_text(key, value) for key, value in weights.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        count = f"{len(wrong)} keys do" if len(wrong) > 1 else "1 key does"
        shown = [
            key
            for keys in ([key for key in wrong if key in expected], [key for key in wrong if key not in expected])
            for key in keys[:LISTED]
        ]
        lines = [f"{key_text(key)}: {found.get(key, 'none')}, expected {expected.get(key, 'none')}" for key in shown]
        lines += ["..."] * (len(shown) < len(wrong))
        raise family.misfit(f"{count} not fit: {'; '.join(lines)}")
    bad = next((key for key, value in weights.items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise CheckpointError(f"{bad} holds NaN or infinite weights; use an earlier checkpoint")


def shape_text(key: str, value: Tensor) -> str:
    """Write a weight's shape, and its type if it is unusual for such a weight."""
    usual = value.dtype == torch.int64 if key.endswith(COUNTER) else value.is_floating_point()
    return str(list(value.shape)) if usual else f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def key_text(key: str) -> str:
    """Write a key within a line, however long or odd it is."""
    return key if key.isprintable() and len(key) <= 100 else reprlib.repr(key)


def map_weights(family: Family, weights: StateDict, ours: StateDict, config: UNetConfig) -> StateDict:
    """Return the family's weights under our keys: biases folded, missing norms and counters neutral, skips first."""
    depth = len(config.widths)
    result = {}
    for key, value in ours.items():
        found = weights.get(family.key(key, depth))
        result[key] = torch.full_like(value, NEUTRAL[key.rpartition(".")[2]], device="cpu") if found is None else found
    for norm, name in family.biases(ours, depth).items():
        bias = weights.get(name)
        if bias is not None and family.key(f"{norm}.bias", depth):
            result[f"{norm}.running_mean"] = result[f"{norm}.running_mean"] - bias
        elif bias is not None:
            result[f"{norm}.bias"] = bias
    if family.up_first:
        for step, width in enumerate(reversed(config.widths)):
            key = f"ups.{2 * step + 1}.conv.0.weight"
            result[key] = torch.cat([result[key][:, -width:], result[key][:, :-width]], dim=1)
    return result
