"""Run a U-Net that `unet-export` wrote, on TensorRT, CUDA or the CPU, without PyTorch.

    >>> import runtime
    >>> result = runtime.predict("car.jpg", model="model.onnx")
    >>> result.mask            # uint8 [height, width] at the image's own size
    >>> result.save("mask.png")

A name is loaded at its first use, so `import runtime` is fast.

ONNX Runtime's telemetry is off unless the environment variable ORT_DISABLE_TELEMETRY is set. It would write an id and a
database into the user's cache folder and send them over the network.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from runtime.card import ModelCard as ModelCard
    from runtime.errors import BusyError as BusyError
    from runtime.errors import CheckpointError as CheckpointError
    from runtime.errors import ClosedError as ClosedError
    from runtime.errors import ConfigError as ConfigError
    from runtime.errors import DataError as DataError
    from runtime.errors import DeviceError as DeviceError
    from runtime.errors import DeviceWarning as DeviceWarning
    from runtime.errors import ImageError as ImageError
    from runtime.errors import ImageMemoryError as ImageMemoryError
    from runtime.errors import ImageWarning as ImageWarning
    from runtime.errors import ModelError as ModelError
    from runtime.errors import NotFiniteError as NotFiniteError
    from runtime.errors import OutputError as OutputError
    from runtime.errors import ProofError as ProofError
    from runtime.errors import UnetError as UnetError
    from runtime.image_files.limits import Limits as Limits
    from runtime.inference.batcher import Batching as Batching
    from runtime.options import ProviderOptions as ProviderOptions
    from runtime.predictor import Predictor as Predictor
    from runtime.predictor import predict as predict
    from runtime.result import Segmentation as Segmentation
    from runtime.result import Times as Times

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported

_ERRORS = (
    "BusyError",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DeviceWarning",
    "ImageError",
    "ImageMemoryError",
    "ImageWarning",
    "ModelError",
    "NotFiniteError",
    "OutputError",
    "ProofError",
    "UnetError",
)

_HOMES = {
    "ModelCard": "card",
    "Predictor": "predictor",
    "predict": "predictor",
    "Segmentation": "result",
    "Times": "result",
    "Batching": "inference.batcher",
    "Limits": "image_files.limits",
    "ProviderOptions": "options",
    **dict.fromkeys(_ERRORS, "errors"),
}

__all__ = [  # written out, since type checkers read it; tests hold it to _HOMES
    "Batching",
    "BusyError",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DeviceWarning",
    "ImageError",
    "ImageMemoryError",
    "ImageWarning",
    "Limits",
    "ModelCard",
    "ModelError",
    "NotFiniteError",
    "OutputError",
    "Predictor",
    "ProofError",
    "ProviderOptions",
    "Segmentation",
    "Times",
    "UnetError",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("runtime.support.version").installed_version()
    elif name in _HOMES:
        value = getattr(import_module(f"runtime.{_HOMES[name]}"), name)
    elif name == "distributed":  # a module that is called by its full name
        value = import_module("runtime.distributed")
    else:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOMES)
