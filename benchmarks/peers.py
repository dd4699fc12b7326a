"""All peers that a subject is compared with, and choosing among them."""

from collections.abc import Collection
from typing import get_args

from benchmarks.peer import Arithmetic, Peer
from benchmarks.peers_onnx import onnx_peers
from benchmarks.peers_other import other_peers
from benchmarks.peers_torch import torch_peers
from runtime.errors import ConfigError
from runtime.providers import Device


def peers_on(device: Device) -> tuple[Peer, ...]:
    """Those of the CPU, or those of a GPU: by CUDA and by TensorRT."""
    if device.kind == "cpu":
        return (*torch_peers(device), *onnx_peers(device), *other_peers())
    cuda, tensorrt = Device(kind="cuda", index=device.index), Device(kind="tensorrt", index=device.index)
    return (*torch_peers(cuda), *onnx_peers(cuda), *onnx_peers(tensorrt))


PEERS = (*peers_on(Device(kind="cpu")), *peers_on(Device(kind="cuda")))
"""Those of the CPU and of the first GPU."""


def chosen(
    peers: Collection[Peer], *, names: Collection[str] = (), precisions: Collection[Arithmetic] = ()
) -> tuple[Peer, ...]:
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
