"""Options of an export, and the refusal of those that contradict one another. Needs neither PyTorch nor onnx."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from runtime.card import MAX_FIXED_BATCH, MAX_SIDE, NEVER_PADDED, Fit, FixedShape, ModelCard, Precision, Target
from runtime.errors import ConfigError
from runtime.image_files.limits import LIMITS, Limits
from runtime.support.sizes import size_text
from runtime.support.validation import FieldChecks
from unet_core.model_options import NETWORK_OPTIONS, CardChanges, NetworkOptions, card_changes, network_options

if TYPE_CHECKING:
    from unet_core.data.pairs import Layout

OPSET = 20
"""The newest ONNX opset that both TensorRT 10 and ONNX Runtime support well."""

OPSETS = (18, 23)
"""First and last opset that can be asked for: the oldest that PyTorch's exporter writes, the newest that is tested."""

Values = Literal["s8", "u8"]
"""Type of the values between the layers of an int8 file: signed for TensorRT, unsigned for CPUs."""

Allowed = Literal["bf16"]
"""Arithmetic that devices may compute a file in, where they are faster so."""

Int8For = Literal["cpu", "tensorrt"]
"""Place where an int8 file will run."""

VALUES_FOR: Mapping[Int8For, Values] = {"cpu": "u8", "tensorrt": "s8"}
"""Type of the values for each place where an int8 file runs."""

MASK_OPTIONS = ("masks", "ignore_index", "class_offset", "mask_threshold", "colours")
CHECK_OPTIONS = ("checkpoint_of", "device")
EXPORT_OPTIONS = (
    *("precision", "target", "tune", "data", "raw", "opset", "fixed_size", "keep", "int8_for", "values", "force"),
    *("allow", "max_flipped", "limits"),
)
"""Options of the command line by what they are for, under the names of their Python arguments."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of one export; `export.export_onnx` describes each.

    Raises:
        ConfigError: an option is unknown, or contradicts another one.
    """

    precision: Precision = "fp32"
    target: Target = "any"
    tune: bool = False
    data: str | os.PathLike[str] | None = None
    layout: "Layout | None" = None
    ignore_index: int | None = None
    skip_bad: bool = False
    raw: bool = False
    opset: int = OPSET
    fixed_size: FixedShape | None = None
    changes: CardChanges = field(default_factory=CardChanges)
    keep: Collection[str] = ()
    int8_for: Int8For | None = None
    values: Values | None = None
    force: bool = False
    allow: Allowed | None = None
    max_flipped: float | None = None
    limits: Limits = LIMITS

    def __post_init__(self) -> None:
        precision, target, values = self.precision, self.target, self.values
        if precision not in get_args(Precision):
            raise ConfigError(f"--precision {precision}: expected {', '.join(get_args(Precision))}")
        if self.raw and precision != "fp32":
            raise ConfigError(f"--raw: writes fp32 only; leave out --precision {precision}")
        if self.keep and precision == "fp32":
            raise ConfigError("--keep: an fp32 file keeps all layers; give --precision fp16 or int8")
        if self.force and precision == "fp32":
            raise ConfigError("--force: an fp32 file that differs from the network is never written; leave it out")
        if values is not None and values not in get_args(Values):
            raise ConfigError(f"--values {values}: expected {' or '.join(get_args(Values))}")
        if values is not None and precision != "int8":
            raise ConfigError(f"--values {values}: is for int8 files; give --precision int8, or leave it out")
        place = self.int8_for
        if place is not None and place not in get_args(Int8For):
            raise ConfigError(f"--for {place}: expected {' or '.join(get_args(Int8For))}")
        if place is not None and precision != "int8":
            raise ConfigError(f"--for {place}: is for int8 files; give --precision int8, or leave it out")
        if place is not None and values not in (None, VALUES_FOR[place]):
            raise ConfigError(f"--for {place}: has the values {VALUES_FOR[place]}; leave out --values {values}")
        if precision == "int8" and self.data is None:
            raise ConfigError("--precision int8: needs real images to calibrate on; give --data FOLDER")
        if target not in get_args(Target):
            raise ConfigError(f"--target {target}: expected {' or '.join(get_args(Target))}")
        if target == "cpu" and (self.raw or precision != "fp32"):
            other = "--raw" if self.raw else f"--precision {precision}"
            raise ConfigError(f"--target cpu: writes fp32 with a card; leave out {other}")
        if self.tune and target != "cpu":
            raise ConfigError("--tune: chooses layers for --target cpu; add that, or leave --tune out")
        self._check_allow()
        check_opset(self.opset)
        if self.fixed_size is not None:
            self._check_fixed_size(self.fixed_size)

    @property
    def int8_place(self) -> Int8For:
        """Place where the int8 file will run: as given, else TensorRT if that runs on this machine, else a CPU."""
        if self.allow is not None:
            return "cpu"
        if self.int8_for is not None:
            return self.int8_for
        if self.values is not None:
            return next(place for place, values in VALUES_FOR.items() if values == self.values)
        from runtime.devices.availability import unavailable_reason  # ONNX Runtime, which --help does without
        from runtime.devices.device import Device

        return "cpu" if unavailable_reason(Device(kind="tensorrt")) else "tensorrt"

    def ends(self, network: NetworkOptions) -> NetworkOptions:
        """Return the options of a network, which need take no other size than the file's if that takes one only."""
        return network if self.fixed_size is None else replace(network, only_size=self.fixed_size[1:])

    def _check_allow(self) -> None:
        """Raise a ConfigError if bf16 is to be allowed and the file would never be computed in it, or not judged."""
        if self.allow is None:
            if self.max_flipped is not None:
                raise ConfigError("--max-flipped: goes with --allow bf16; leave it out")
            return
        given = f"--allow {self.allow}"
        if self.allow not in get_args(Allowed):
            raise ConfigError(f"{given}: expected {', '.join(get_args(Allowed))}")
        if self.raw or self.target == "cpu":
            raise ConfigError(
                f"{given}: {'--raw' if self.raw else '--target cpu'} writes no file for it; leave out one of the two"
            )
        if self.precision == "fp16":
            raise ConfigError(f"{given}: is for fp32 and int8 files; leave it out, or --precision fp16")
        if self.int8_for == "tensorrt" or self.values == "s8":
            raise ConfigError(f"{given}: an int8 file for TensorRT never runs in bf16; leave it out, or give --for cpu")
        if self.data is None:
            raise ConfigError(f"{given}: needs real images to judge the answers on; give --data FOLDER")
        if self.max_flipped is not None:
            FieldChecks(ConfigError).number("max_flipped", self.max_flipped, 0, 1)

    def _check_fixed_size(self, shape: FixedShape) -> None:
        limits, given = (MAX_FIXED_BATCH, MAX_SIDE, MAX_SIDE), f"--fixed-size {fixed_size_text(shape)}"
        if len(shape) != 3 or not all(1 <= side <= most for side, most in zip(shape, limits, strict=True)):
            raise ConfigError(
                f"{given}: expected a batch of 1 to {MAX_FIXED_BATCH}, height and width of 1 to {MAX_SIDE}"
            )
        size = self.changes.size
        if size is not None and size != shape[1:]:
            raise ConfigError(
                f"{given} (batch x height x width): --size says {size[1]}x{size[0]} (width x height); leave --size out"
            )
        if self.changes.fit == "native":
            raise ConfigError(f"{given}: has one size for all images, and --fit native none; leave one of them out")


def fixed_size_text(shape: FixedShape) -> str:
    """Write (batch, height, width) as the command line takes it."""
    return "x".join(map(str, shape))


def with_fixed_size(card: ModelCard, shape: FixedShape | None, *, raw: bool = False) -> ModelCard:
    """Return the card of a file that takes one shape only: images are fitted to its height and width.

    Images that would keep their own size ("native") are stretched, as `Predictor.predict` does with a `size`.

    Raises:
        ConfigError: the network does not take that size.
    """
    if shape is None:
        return card
    batch, height, width = shape
    spec, given = card.input, f"--fixed-size {fixed_size_text(shape)}"
    if height < spec.min_size[0] or width < spec.min_size[1]:
        raise ConfigError(
            f"{given} (batch x height x width): the network takes pictures of at least {size_text(spec.min_size)} "
            "(width x height)"
        )
    if (raw or not spec.padded) and (height % spec.stride or width % spec.stride):
        reason = NEVER_PADDED if not spec.padded else "since --raw pads nothing"
        raise ConfigError(f"{given}: expected multiples of {spec.stride} for height and width, {reason}")
    fit: Fit = "stretch" if spec.fit == "native" else spec.fit
    return replace(card, input=replace(spec, size=(height, width), fit=fit, scale=1.0, fixed_batch=batch))


def check_opset(opset: int) -> None:
    """Raise a ConfigError if the opset is out of `OPSETS`."""
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ConfigError(f"--opset {opset}: expected {OPSETS[0]} to {OPSETS[1]}")


def check_keep(keep: Collection[str], layers: Sequence[str], able: Collection[str]) -> None:
    """Raise a ConfigError if a layer to keep is not one of `layers`, or none of the `able` ones is left to convert."""
    if not able:
        raise ConfigError("--precision: the network has no layer that could be converted; give --precision fp32")
    for layer in keep:
        if layer not in layers:
            raise ConfigError(f"--keep {layer}: no such layer; expected some of {', '.join(layers)}")
    if set(able) <= set(keep):
        raise ConfigError(f"--keep: names all of {', '.join(able)}; leave out some, or give --precision fp32")


def options_to_export(given: Mapping[str, Any]) -> ExportOptions:
    """Make `ExportOptions` of what a user gave `unet-export CHECKPOINT`: values by name, without those left out.

    `layout`, `ignore_index` and `skip_bad` are not set: how masks are read depends on the folder of the checkpoint.

    Raises:
        ConfigError: options contradict one another.
    """
    for name in CHECK_OPTIONS:
        if name in given:
            raise ConfigError(f"{_flag(name)}: goes with --check; leave it out")
    network_options(given)
    if "network" in given and "pairs" in given:
        raise ConfigError("--pairs: tells how weights without a network are read; leave it out, or --network")
    if "triton_name" in given and "triton" not in given:
        raise ConfigError("--triton-name: goes with --triton; leave it out")
    if "onnxruntime_web" in given and "web" not in given:
        raise ConfigError("--onnxruntime-web: goes with --web; leave it out")
    if given.get("raw") and given.keys() & {"card", "triton", "web"}:
        raise ConfigError("--raw: has neither card nor golden sample for --card, --triton or --web; leave it out")
    options = ExportOptions(
        changes=card_changes(given),
        **{name: given[name] for name in EXPORT_OPTIONS if name in given},
    )
    for name in MASK_OPTIONS:
        if name in given and options.data is None:
            raise ConfigError(f"{_flag(name)}: goes with --data; leave it out")
    return options


def refuse_to_check(given: Mapping[str, Any]) -> None:
    """Raise a ConfigError if an option was given to `unet-export --check FILE` that has no meaning there."""
    strange = sorted(given.keys() - {*CHECK_OPTIONS, *NETWORK_OPTIONS, "pairs", "data", "limits"})
    if strange:
        raise ConfigError(f"{_flag(strange[0])}: has no meaning with --check; leave it out")
    network_options(given)
    if "network" in given and "pairs" in given:
        raise ConfigError("--pairs: tells how weights without a network are read; leave it out, or --network")
    for name in ("network", "pairs", "weights"):
        if name in given and "checkpoint_of" not in given:
            raise ConfigError(f"--{name}: is for a checkpoint to compare with; give --checkpoint too")


def _flag(name: str) -> str:
    """Spell a Python argument as an option of the command line."""
    return "--for" if name == "int8_for" else f"--{name.removesuffix('_of').replace('_', '-')}"
