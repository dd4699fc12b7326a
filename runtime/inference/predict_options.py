"""The options of `Predictor.predict` and their checks: size, tile, overlap, augmentation, threshold, channel order."""

from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, get_args

import numpy as np

from runtime.card import MAX_SIDE, NEVER_PADDED, InputSpec, ModelCard, OutputSpec
from runtime.errors import ConfigError
from runtime.image import ChannelOrder, Decode, Limits
from runtime.inference.tiling import MAX_OVERLAP, OVERLAP
from runtime.inference.tta import Tta
from runtime.support.sizes import parse_size, size_text

MAX_PIXELS = 200_000_000
"""Maximum number of pixels that the network sees at once; each takes some 440 bytes."""

SizeOption = tuple[int, int] | str
"""(height, width) that the network sees, the same as a text "WIDTHxHEIGHT", or "native": the image's own size."""

TileOption = tuple[int, int] | str
"""(height, width) of tiles, or the same as a text "WIDTHxHEIGHT"."""


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """Checked options: an image is fitted as `spec` says, and asked about in tiles of (height, width) or whole.

    `output` is the card's, with the threshold that was asked for. `channels` is the order of an array's channels, and
    `limits` and `decode` are those of files, None for the predictor's. None of them matters to the network, so a batch
    may hold images with different ones.
    """

    spec: InputSpec
    tile: tuple[int, int] | None
    overlap: float
    tta: Tta | None
    output: OutputSpec = field(compare=False)
    channels: ChannelOrder = field(default="RGB", compare=False)
    limits: Limits | None = field(default=None, compare=False)
    decode: Decode | None = field(default=None, compare=False)


class PredictOptions(TypedDict, total=False):
    """The options of `Predictor.predict`."""

    size: SizeOption | None
    tile: TileOption | None
    overlap: float | None
    tta: Tta | None
    threshold: float | None
    channels: ChannelOrder
    limits: Limits | None
    decode: Decode | None


def resolve_options(
    card: ModelCard,
    size: SizeOption | None = None,
    tile: TileOption | None = None,
    overlap: float | None = None,
    tta: Tta | None = None,
    threshold: float | None = None,
    channels: ChannelOrder = "RGB",
    limits: Limits | None = None,
    decode: Decode | None = None,
    **unknown: object,
) -> ResolvedOptions:
    """Check the options of `Predictor.predict`, and fill in those that were not given.

    Raises:
        ConfigError: a size is none, or one that the network or the file does not take, the overlap is outside
            0..`MAX_OVERLAP`, the threshold is invalid or not for this model, `limits` are none, or an augmentation, a
            way to decode or an option is unknown.
    """
    if unknown:
        expected = ", ".join(PredictOptions.__annotations__)
        raise ConfigError(f"{next(iter(unknown))}: is no option of predict, expected {expected}")
    size, tile = parse_size(size), parse_size(tile)
    if tile is not None:
        _check_size("tile", tile, "", card.input)
    if overlap is not None and tile is None:
        raise ConfigError(f"overlap: found {overlap!r} without tile, whose neighbours it is of; give tile too")
    overlap = OVERLAP if overlap is None else overlap
    if not isinstance(overlap, int | float | np.floating) or not 0 <= overlap <= MAX_OVERLAP:
        raise ConfigError(f"overlap: found {overlap!r}, expected 0 to {MAX_OVERLAP}, a share of the tile")
    if tta is not None and tta not in get_args(Tta):
        raise ConfigError(f"tta: found {tta!r}, expected {', '.join(map(repr, get_args(Tta)))} or None")
    if channels not in get_args(ChannelOrder):
        raise ConfigError(f"channels: found {channels!r}, expected 'RGB', or 'BGR' for arrays as OpenCV makes them")
    if channels != "RGB" and card.input.channels == "raw":
        raise ConfigError(f"channels: found {channels!r}, this model takes the channels of arrays as they are")
    if limits is not None and not isinstance(limits, Limits):
        raise ConfigError(f"limits: found {limits!r}, expected runtime.Limits, or None")
    if decode is not None:
        check_decode(decode, ", or None")
    output = card.output if threshold is None else card.output.with_threshold(threshold)
    spec = card.input
    native = isinstance(size, str) and size == "native"
    if native and tile is None and not spec.padded and spec.stride > 1:
        raise ConfigError(
            f"size: found 'native', expected (height, width), multiples of {spec.stride}, {NEVER_PADDED}; or give tile"
        )
    if size is not None and not native:
        _check_size("size", size, ", or 'native'", card.input)
    if spec.fixed_size is not None:
        _check_fixed(spec.fixed_size, size, tile, tta)
        # With tiles it is they that have the size of the file, not the picture.
        spec = spec if tile is None else replace(spec, fixed_batch=None)
    if native:
        spec = replace(spec, fit="native", scale=1.0)
    elif size is None and tile is not None:
        spec = replace(spec, fit="native")
    elif size is not None and not isinstance(size, str):
        fit = "stretch" if spec.fit == "native" else spec.fit
        spec = replace(spec, size=(int(size[0]), int(size[1])), fit=fit, scale=1.0)
    cut = None if tile is None or isinstance(tile, str) else (tile[0], tile[1])
    return ResolvedOptions(
        spec=spec, tile=cut, overlap=overlap, tta=tta, output=output, channels=channels, limits=limits, decode=decode
    )


def check_decode(decode: object, other: str = "") -> None:
    """Raise a ConfigError if `decode` is no way to decode."""
    if decode not in get_args(Decode):
        raise ConfigError(f"decode: found {decode!r}, expected {' or '.join(map(repr, get_args(Decode)))}{other}")


def _check_fixed(fixed: tuple[int, int], size: SizeOption | None, tile: TileOption | None, tta: Tta | None) -> None:
    """Raise a ConfigError if the options would show pictures of other sizes to a file that takes one size only."""
    takes = f"the file takes pictures of {size_text(fixed)} (width x height) only"
    if tile is not None and tuple(tile) != fixed:
        raise ConfigError(f"tile: found {as_text(tile)}, {takes}; give that, or leave tile out")
    if size is not None and tile is None and (isinstance(size, str) or tuple(size) != fixed):
        raise ConfigError(f"size: found {as_text(size)}, {takes}; leave size out")
    if tta == "d4" and fixed[0] != fixed[1]:
        raise ConfigError(f"tta: found 'd4', which turns pictures, and {takes}; give 'flip', or leave tta out")


def _check_size(name: str, size: object, other: str, spec: InputSpec) -> None:
    if (
        not isinstance(size, tuple | list)
        or len(size) != 2
        or not all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in size)
        or not all(1 <= side <= MAX_SIDE for side in size)
    ):
        raise ConfigError(f"{name}: found {size!r}, expected (height, width) or 'WxH', each 1 to {MAX_SIDE}{other}")
    least = spec.min_size
    if size[0] < least[0] or size[1] < least[1]:
        raise ConfigError(f"{name}: found {as_text(size)}, expected at least {size_text(least)} (width x height)")
    if not spec.padded and (size[0] % spec.stride or size[1] % spec.stride):
        raise ConfigError(f"{name}: found {as_text(size)}, expected multiples of {spec.stride}, {NEVER_PADDED}")
    if size[0] * size[1] > MAX_PIXELS:
        raise ConfigError(f"{name}: found {as_text(size)}, expected at most {MAX_PIXELS} pixels, which take some 90 GB")


def as_text(size: Any) -> str:
    """Write (height, width) as "WIDTHxHEIGHT", and a text as Python does."""
    return repr(size) if isinstance(size, str) else size_text((size[0], size[1]))
