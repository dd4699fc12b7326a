"""Proving again what an exported file claims: its form, its card, its golden sample, and its answers."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.proof import MAX_ERROR, Run, answered, cases, compare, neighbours_matter, network_run
from export.samples import load_pictures
from runtime.card import RAW_KEY, ModelCard, ProofRow
from runtime.errors import ConfigError, ModelError, ProofError
from runtime.golden import golden_tolerance
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

    @property
    def max_abs_error(self) -> float:
        """The largest error of all rows, and the smallest tolerance that would have passed."""
        return max((row.parity.max_abs_error for row in self.rows), default=0.0)


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
        ConfigError: `data` without anything to compare with.
        CheckpointError, DataError: as `load_checkpoint` and `load_pictures`.
        ProofError: other weights than the checkpoint's, or answers that differ by more than the tolerance.
    """
    file = Path(path)
    if RAW_KEY in read_metadata(file):
        raise ModelError(f"{file}: is a raw export, which has no golden sample; export it again from its checkpoint")
    check_form(file)
    predictor = Predictor(file, device)
    reference = _reference(file, predictor, checkpoint)
    if data is not None and reference is None:
        raise ConfigError("--data: there is nothing to compare with; give --checkpoint, or --device cuda")
    report = CheckReport(
        path=file,
        card=predictor.card,
        device=predictor.report.device,
        golden_error=predictor.report.golden_error,
        reference="nothing" if reference is None else reference.name,
        tolerance=_tolerance(predictor, of_network=checkpoint is not None),
        rows=() if reference is None else _rows(predictor, reference.run, data, display),
    )
    if neighbours_matter(predictor.run, predictor.card):
        raise ProofError(f"{file}: an image's answer depends on the other images in its batch", report)
    if report.max_abs_error > report.tolerance:
        raise ProofError(
            f"{file}: is off by {report.max_abs_error:.2g} from {report.reference}, expected at most "
            f"{report.tolerance:.2g}",
            report,
        )
    return report


@dataclass(frozen=True)
class _Reference:
    """Whose answers are right, and what to call it."""

    run: Run
    name: str


def _reference(file: Path, predictor: Predictor, checkpoint: str | os.PathLike[str] | None) -> _Reference | None:
    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint)
        if loaded.card.weights_sha256 != predictor.card.weights_sha256:
            raise ProofError(f"{file}: was not exported from {checkpoint}, whose weights are others")
        segmenter = Segmenter(loaded.network(), predictor.card).eval()
        return _Reference(network_run(segmenter), f"PyTorch with {checkpoint}")
    if predictor.report.device != "cpu":
        return _Reference(Predictor(file, "cpu").run, "the same file on the CPU")
    return None


def _tolerance(predictor: Predictor, *, of_network: bool) -> float:
    """What the device and its arithmetic may differ by, and from the network, what the file's precision loses."""
    card, kind = predictor.card, predictor.report.device.partition(":")[0]
    limit = MAX_ERROR if card.precision == "fp32" and kind == "cpu" else golden_tolerance(card, kind)
    if of_network and card.precision != "fp32" and card.proof is not None:
        limit += card.proof.max_abs_error
    return limit


def _rows(
    predictor: Predictor, reference: Run, data: str | os.PathLike[str] | None, display: Display | None
) -> tuple[ProofRow, ...]:
    card = predictor.card
    pictures = [] if data is None else load_pictures(data, card, PICTURES, display=display)
    return tuple(compare(predictor.run, answered(reference, cases(card, pictures)), card.output))


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
