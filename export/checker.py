"""Proving again what an exported file claims: its form, its card, its golden sample, and its answers."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import onnx

from export.proof import MAX_ERROR, cases, compare, neighbours_matter, network_run
from export.samples import load_samples
from runtime.card import ModelCard, ProofRow
from runtime.errors import ConfigError, ModelError, ProofError
from runtime.golden import TOLERANCE
from runtime.metadata import read_metadata
from runtime.predictor import Predictor
from unet_core.checkpoint import load_checkpoint
from unet_core.display import Display
from unet_core.model import Segmenter

PICTURES = 8
"""Real pictures that are compared."""

SIZES = {"image": ("batch", "height", "width", None), "probability": ("batch", None, "height", "width")}
"""Names of the free sizes of the graph's input and output."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What was found: the card, the device, the golden sample's error there, and parity with `reference`.

    `rows` are empty where there was nothing to compare with.
    """

    path: Path
    card: ModelCard
    device: str
    golden_error: float
    reference: str
    tolerance: float
    rows: tuple[ProofRow, ...]


def check_file(
    path: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    display: Display | None = None,
) -> CheckReport:
    """Check an exported file on a device: against its checkpoint, or, on a GPU, against itself on the CPU.

    Raises:
        ModelError: the file is damaged, refers to other files, breaks the graph's contract, or has no valid card.
        DeviceError: the device does not run here.
        CheckpointError, DataError: as `load_checkpoint` and `load_samples`.
        ProofError: other weights than the checkpoint's, or answers that differ by more than the tolerance.
    """
    file = Path(path)
    read_metadata(file)
    check_form(file)
    predictor = Predictor(file, device)
    card, kind = predictor.card, predictor.report.device.partition(":")[0]
    reference, name = None, "nothing"
    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint)
        if loaded.card.weights_sha256 != card.weights_sha256:
            raise ProofError(f"{file}: was not exported from {checkpoint}, whose weights are others")
        reference, name = network_run(Segmenter(loaded.network(), card).eval()), f"PyTorch with {checkpoint}"
    elif kind != "cpu":
        reference, name = Predictor(file, "cpu").run, "the same file on the CPU"
    if data is not None and reference is None:
        raise ConfigError("--data: there is nothing to compare with; give --checkpoint, or --device cuda")
    # What was lost with the precision is lost here too.
    tolerance = MAX_ERROR if kind == "cpu" else TOLERANCE[kind]
    if card.precision != "fp32" and card.proof is not None:
        tolerance += 2 * card.proof.max_abs_error
    rows: list[ProofRow] = []
    if reference is not None:
        samples = None if data is None else load_samples(data, card, display=display)
        pictures = [] if samples is None else list(islice(samples.pictures(), PICTURES))
        rows = compare(predictor.run, reference, cases(card, pictures), card.output)
    report = CheckReport(
        path=file,
        card=card,
        device=predictor.report.device,
        golden_error=predictor.report.golden_error,
        reference=name,
        tolerance=tolerance,
        rows=tuple(rows),
    )
    if neighbours_matter(predictor.run, card):
        raise ProofError(f"{file}: an image's answer depends on the other images in its batch", report)
    worst = max((row.parity.max_abs_error for row in rows), default=0.0)
    if worst > tolerance:
        raise ProofError(f"{file}: is off by {worst:.2g} from {name}, expected at most {tolerance:.2g}", report)
    return report


def check_form(path: Path) -> None:
    """Check the graph without running it.

    Raises:
        ModelError: it refers to other files, is no valid ONNX, or has other inputs or outputs than the contract says.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors, which have no public type in onnx
        raise ModelError(f"{path}: is not an ONNX file ({error}); export it again") from error
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(
                f"{path}: keeps {tensor.name!r} in another file, which was not opened; expected one file, as "
                "unet-export writes it"
            )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of several types, none documented
        raise ModelError(f"{path}: is no valid ONNX ({' '.join(str(error).split())[:300]})") from error
    found = {value.name: _sizes(value) for value in (*model.graph.input, *model.graph.output)}
    if {
        name: tuple(size if isinstance(size, str) else None for size in sizes) for name, sizes in found.items()
    } != SIZES:
        raise ModelError(f"{path}: found inputs and outputs {found}, expected {SIZES}; export it again")


def _sizes(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    return tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a file: weights, sparse ones, and those in attributes of nodes, also of inner graphs."""
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
                waiting += [attribute.g, *attribute.graphs]
