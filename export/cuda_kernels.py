"""Operators for which ONNX Runtime's CUDA provider has no kernel, so that a GPU does not run the whole file.

Of ONNX Runtime 1.31, asked operator by operator in tests/export/test_stand_in_kernels.py.
"""

from collections.abc import Mapping

import onnx

LAST_OPSET: Mapping[str, int] = dict.fromkeys(
    ("MaxPool", "InstanceNormalization", "Elu", "Selu", "ThresholdedRelu", "Dropout"), 21
)
"""The last opset of which the provider computes an operator."""

NEVER = frozenset({"Atan", "Celu", "Hardmax", "LpPool", "Mean", "MeanVarianceNormalization", "Tan", "Unique"})
"""Operators that it computes in none of `export.options.OPSETS`."""


def note_on_cuda(model: onnx.ModelProto) -> str | None:
    """Say which operators of a graph keep it from running on device cuda; None if nothing does."""
    opset = next(item.version for item in model.opset_import if item.domain == "")
    found = {node.op_type for node in model.graph.node}
    late = sorted(name for name in found if opset > LAST_OPSET.get(name, opset))
    never = sorted(found & NEVER)
    if not late and not never:
        return None
    advice = "" if never else "; leave --opset out for GPUs"
    given = f"--opset {opset}: " if late else ""
    return (
        f"{given}ONNX Runtime's CUDA provider has no kernel for {', '.join([*late, *never])}, so a part of the network "
        f"would run on the CPU, and device cuda refuses the file{advice}"
    )
