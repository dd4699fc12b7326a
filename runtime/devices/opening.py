"""Opening a session on a device, and proving that it runs there."""

from pathlib import Path
from typing import Any

import onnxruntime

from runtime.card import ModelCard
from runtime.devices.device import PROVIDER, Device
from runtime.devices.placement import misplaced_nodes, node_placement
from runtime.devices.provider_options import provider_chain, session_options
from runtime.devices.session import Check, Note, Session
from runtime.errors import ConfigError, DeviceError, ModelError
from runtime.options import ProviderOptions
from runtime.support.cpu_count import available_threads

SIGNATURE = [("image", "tensor(uint8)", 4), ("probability", "tensor(float)", 4)]
"""Name, type and number of axes of what a graph takes and gives."""


def open_session(
    path: Path,
    device: Device,
    card: ModelCard,
    options: ProviderOptions,
    *,
    note: Note,
    threads: int | None = None,
    check: Check | None = None,
) -> Session:
    """Open a model on a device and, with `check`, replay its golden sample there; `note` is told of builds.

    Raises:
        DeviceError: it would run somewhere else, in whole or in a part that matters, or its engine cannot be kept.
        ConfigError: the options do not fit the model.
        Exception: what `check` or ONNX Runtime raises.
    """
    threads = threads or available_threads()

    def infer(chain: list[tuple[str, dict[str, str]]]) -> Any:
        return open_inference(path, device, chain, session_options(threads, options))

    if device.kind == "tensorrt":
        from runtime.devices.tensorrt import open_tensorrt

        return open_tensorrt(path, device, card, options, infer, note, check)
    if device.kind == "cuda":
        from runtime.devices.cuda import CudaSession

        session: Session = CudaSession(infer(provider_chain(device, card, options)), device, card, options)
    else:
        session = Session(infer(provider_chain(device, card, options)), device, card)
    if check is not None:
        check(session.run)
    return session


def open_inference(path: Path, device: Device, chain: list[tuple[str, dict[str, str]]], options: Any) -> Any:
    """An `onnxruntime.InferenceSession` that runs on `device`, and is known to.

    Raises:
        DeviceError: it would run somewhere else, in whole or in a part that matters.
        ModelError: its inputs and outputs are not those of `unet-export`.
    """
    chosen = PROVIDER[device.kind]
    inference = onnxruntime.InferenceSession(str(path), options, providers=chain, enable_fallback=0)
    if chosen not in inference.get_providers():
        raise DeviceError(f"device {device}: ONNX Runtime opened the model on {inference.get_providers()[0]} instead")
    found = [(item.name, item.type, len(item.shape)) for item in (*inference.get_inputs(), *inference.get_outputs())]
    if found != SIGNATURE:
        raise ModelError(f"{path}: found the inputs and outputs {found}, expected {SIGNATURE}; export it again")
    strays = misplaced_nodes(node_placement(inference), chosen)
    if strays:
        raise DeviceError(f"device {device}: {sum(strays.values())} nodes would run elsewhere: {dict(strays)}")
    return inference


def must_build(path: Path, device: Device, card: ModelCard, options: ProviderOptions) -> bool:
    """Whether opening this device takes minutes, for a TensorRT engine that nobody has built yet.

    Raises:
        ConfigError: another device would serve by CUDA graphs meanwhile, and a build breaks their capture.
    """
    if device.kind != "tensorrt":
        return False
    if options.cuda_graphs and options.background:
        raise ConfigError(
            "cuda_graphs: found True with background=True, and building a TensorRT engine breaks the capture of CUDA "
            "graphs; give background=False, or device='cuda'"
        )
    from runtime.devices.tensorrt import is_built

    return not is_built(path, device, card, options)
