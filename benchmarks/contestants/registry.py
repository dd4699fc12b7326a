"""All peers that a subject is compared with, and choosing among them."""

from collections.abc import Collection
from typing import get_args

from benchmarks.contestants.base import Arithmetic, Contestant
from benchmarks.contestants.ncnn import NcnnContestant
from benchmarks.contestants.onnx_runtime import onnx_contestants
from benchmarks.contestants.openvino import OpenVinoContestant
from benchmarks.contestants.pytorch import torch_contestants
from runtime.devices.device import CPU_DEVICE, Device
from runtime.errors import ConfigError


def contestants_on(device: Device) -> tuple[Contestant, ...]:
    """Those of the CPU, or those of a GPU: by CUDA and by TensorRT."""
    if device.kind == "cpu":
        return (*torch_contestants(device), *onnx_contestants(device), *other_contestants())
    cuda, tensorrt = Device(kind="cuda", index=device.index), Device(kind="tensorrt", index=device.index)
    return (*torch_contestants(cuda), *onnx_contestants(cuda), *onnx_contestants(tensorrt))


def other_contestants() -> tuple[Contestant, ...]:
    """OpenVINO in float32 and with an int8 file, and ncnn, all on the CPU."""
    return OpenVinoContestant(), OpenVinoContestant(precision="int8"), NcnnContestant()


CONTESTANTS = (*contestants_on(CPU_DEVICE), *contestants_on(Device(kind="cuda")))
"""Those of the CPU and of the first GPU."""


def chosen(
    peers: Collection[Contestant], *, names: Collection[str] = (), precisions: Collection[Arithmetic] = ()
) -> tuple[Contestant, ...]:
    """Those with one of the names and precisions; all, where none are given.

    Raises:
        ConfigError: a name is no peer's, a precision is none, or nothing is left.
    """
    for found, known, what in (
        (names, {peer.name for peer in peers}, "peer"),
        (precisions, set(get_args(Arithmetic)), "precision"),
    ):
        unknown = [one for one in found if one not in known]
        if unknown:
            raise ConfigError(f"{what}: found {unknown[0]!r}, expected of {', '.join(map(repr, sorted(known)))}")
    left = tuple(
        peer for peer in peers if (not names or peer.name in names) and (not precisions or peer.precision in precisions)
    )
    if not left:
        whose = f"{', '.join(names)} is" if names else "those that there are on this device is"
        raise ConfigError(f"peers: none of {whose} in {', '.join(precisions)}; choose others")
    return left
