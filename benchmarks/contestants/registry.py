"""All contestants, and choosing among them."""

from collections.abc import Collection
from typing import get_args

from benchmarks.contestants.base import Arithmetic, Contestant
from benchmarks.contestants.ncnn import NcnnContestant
from benchmarks.contestants.onnx_runtime import (
    CpuFileContestant,
    PlainContestant,
    PredictorContestant,
)
from benchmarks.contestants.openvino import OpenVinoContestant, OpenVinoPredictorContestant
from benchmarks.contestants.pytorch import ChannelsLastContestant, CompiledContestant, EagerContestant
from runtime.devices.device import Device
from runtime.errors import ConfigError

CONTESTANTS: tuple[type[Contestant], ...] = (
    EagerContestant,
    ChannelsLastContestant,
    CompiledContestant,
    PlainContestant,
    PredictorContestant,
    CpuFileContestant,
    OpenVinoPredictorContestant,
    OpenVinoContestant,
    NcnnContestant,
)
"""All of them, in the order in which they take turns; reports compare with the first that was measured."""


def contestants_on(device: Device) -> tuple[Contestant, ...]:
    """All contestants on the CPU, or all on a GPU, by CUDA and by TensorRT, each in all of its arithmetics."""
    gpu = (Device(kind="cuda", index=device.index), Device(kind="tensorrt", index=device.index))
    return tuple(
        contestant(precision=precision, device=place)
        for place in ((device,) if device.kind == "cpu" else gpu)
        for contestant in CONTESTANTS
        for precision in contestant.precisions.get(place.kind, ())
    )


def select_contestants(
    contestants: Collection[Contestant], *, names: Collection[str] = (), precisions: Collection[Arithmetic] = ()
) -> tuple[Contestant, ...]:
    """Select those with one of the names and one of the precisions; where none are given, all are selected.

    Raises:
        ConfigError: a name or a precision is unknown, or nothing is left.
    """
    for asked, known, kind in (
        (names, {one.name for one in contestants}, "contestant"),
        (precisions, set(get_args(Arithmetic)), "precision"),
    ):
        unknown = [one for one in asked if one not in known]
        if unknown:
            raise ConfigError(f"{kind}: found {unknown[0]!r}, expected one of {', '.join(map(repr, sorted(known)))}")
    selected = tuple(
        one
        for one in contestants
        if (not names or one.name in names) and (not precisions or one.precision in precisions)
    )
    if not selected:
        whose = f"of {', '.join(names)}" if names else "on this device"
        raise ConfigError(f"contestants: found none {whose} in {', '.join(precisions)}, expected one; choose others")
    return selected
