"""Turn a checkpoint into one ONNX file that carries its card and its proof: `unet-export model.pth`."""

from typing import TYPE_CHECKING, Any

import runtime  # noqa: F401  settles ONNX Runtime's environment, before any module here loads it

if TYPE_CHECKING:
    from export.exporter import ExportReport as ExportReport
    from export.exporter import export_onnx as export_onnx
    from unet_core.model_options import CardChanges as CardChanges
    from unet_core.model_options import NetworkOptions as NetworkOptions

__all__ = ["CardChanges", "ExportReport", "NetworkOptions", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    from export import exporter

    return getattr(exporter, name)
