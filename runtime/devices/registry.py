"""All kinds of device in one table, and opening a session on any of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from runtime.card import ModelCard
from runtime.devices.backend import Backend, SessionRequest
from runtime.devices.cpu import CPU
from runtime.devices.cuda import CUDA
from runtime.devices.device import Device
from runtime.devices.openvino import OPENVINO
from runtime.devices.session import Note, Session
from runtime.devices.tensorrt import TENSORRT
from runtime.model_file.golden import Golden, allowed_error, tf32_tolerance
from runtime.options import ProviderOptions
from runtime.support.cpu_count import available_threads

BACKENDS: Mapping[str, Backend] = {backend.kind: backend for backend in (TENSORRT, CUDA, OPENVINO, CPU)}
"""Every backend by its kind, best first: device="auto" tries them in this order."""

PROVIDER: Mapping[str, str] = {kind: backend.provider for kind, backend in BACKENDS.items()}
"""Name of each kind's execution provider; ONNX Runtime's, but for OpenVINO."""


def golden_tolerance(card: ModelCard, kind: str, golden: Golden | None = None, *, bf16: bool = False) -> float:
    """Return the largest |p - golden| that passes on a kind of device; less if the file's sample knows its rounding.

    With `bf16` the device computes in it, as the card permits.
    """
    backend = BACKENDS[kind]
    if backend.on_cpu or golden is None:
        return allowed_error(backend.tolerance, card, bf16=bf16)
    return allowed_error(tf32_tolerance(golden.tf32_error, backend.tolerance), card)


def open_session(
    path: Path,
    device: Device,
    card: ModelCard,
    options: ProviderOptions,
    *,
    note: Note,
    threads: int | None = None,
    check: Callable[[Session], None] | None = None,
    graph_digest: str = "",
) -> Session:
    """Open a model's file on a device; the arguments are the fields of `SessionRequest`.

    Raises:
        DeviceError: the model would run somewhere else, in whole or in a part that matters, or its engine cannot be
            kept.
        ConfigError: the options do not fit the model.
        Exception: what `check` or ONNX Runtime raises.
    """
    request = SessionRequest(
        path=path,
        device=device,
        card=card,
        options=options,
        threads=threads or available_threads(),
        note=note,
        check=check,
        graph_digest=graph_digest,
    )
    return BACKENDS[device.kind].open(request)


def must_build(path: Path, device: Device, card: ModelCard, options: ProviderOptions, graph_digest: str = "") -> bool:
    """Return True if opening this device takes minutes, for an engine that nobody has built yet.

    Raises:
        ConfigError: another device would serve by CUDA graphs meanwhile, and a build breaks their capture.
    """
    request = SessionRequest(path=path, device=device, card=card, options=options, threads=1, graph_digest=graph_digest)
    return BACKENDS[device.kind].must_build(request)
