"""A second proof of an exported file: of its form, its card, its golden sample and its answers."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx

from export.pairs import load_with_pairs
from export.precision.gate import FP16_FLIPPED, INT8_FLIPPED
from export.proof import (
    MAX_ERROR,
    NOT_FINITE,
    PROOF_PICTURES,
    cases,
    depends_on_batch,
    expected_answers,
    network_run,
    proof_rows,
    raw_run,
)
from export.samples import load_pictures
from runtime.card import RAW_KEY, Bf16Permission, FixedShape, ModelCard, ProofRow
from runtime.devices.availability import device_name
from runtime.devices.registry import golden_tolerance
from runtime.errors import ConfigError, ModelError, ProofError
from runtime.image import LIMITS, Limits
from runtime.model_file.digest import check_digest
from runtime.model_file.golden import BF16_ROUNDING, NetworkFunction
from runtime.model_file.graph_validator import check_model
from runtime.model_file.metadata import read_metadata
from runtime.predictor import Predictor
from unet_core.checkpoint import Checkpoint
from unet_core.model import Segmenter
from unet_core.model_options import CardChanges, NetworkOptions
from unet_core.networks.checkpoint import open_checkpoint_of
from unet_core.reporting.progress import Display

GRAPH_SIZES = {"image": ("batch", "height", "width", None), "probability": ("batch", None, "height", "width")}
"""Names of the free sizes of a graph's input and output; None stands for a fixed size."""

RAW_SIZES = {"image": ("batch", None, "height", "width"), "logits": ("batch", None, "height", "width")}
"""The same of a raw export."""

FIXED_FIELDS = ("size", "fit", "fixed_batch")
"""Fields of a card's input that `--fixed-size` may change."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Result of a check: card, device, error of the golden sample there, digest, and parity with `reference`.

    `of_network`: the reference is the network that the file was exported from.
    `arithmetic` is that of `runtime.devices.report.Report`.
    `golden_error` and `golden_limit` are None for a raw export, which has no golden sample. `rows` are empty if there
    was nothing to compare with; `limits` are the largest errors allowed in them, and `faults` say what is wrong with
    each, "" where nothing is.
    """

    path: Path
    card: ModelCard
    device: str
    golden_error: float | None
    golden_limit: float | None
    integrity: str
    reference: str
    of_network: bool = False
    arithmetic: str = ""
    rows: tuple[ProofRow, ...] = ()
    limits: tuple[float, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def max_abs_error(self) -> float:
        """The largest error of all rows, and the smallest tolerance that would have passed."""
        return max((row.parity.max_abs_error for row in self.rows), default=0.0)


def check_file(
    path: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    device: str | int = "cpu",
    network: NetworkOptions | None = None,
    pairs: str | os.PathLike[str] | None = None,
    limits: Limits = LIMITS,
    display: Display | None = None,
) -> CheckReport:
    """Check an exported file on a device: against its checkpoint, or on a GPU against itself on the CPU.

    `network` makes the checkpoint's network where that is not one of this library; its code is run. It also says
    which of the checkpoint's weights were taken. `pairs` tell how a checkpoint without a network is read. `limits`
    bound the images in `data`.

    Raises:
        ModelError: the file is damaged, was changed since its export, refers to other files, breaks the graph's
            contract, or has no valid card.
        DeviceError: the device does not run here.
        ConfigError: `data` without anything to compare with, or a raw export without its checkpoint.
        CheckpointError, DataError: as `load_checkpoint` and `load_pictures`.
        ProofError: card or weights differ from the checkpoint's, or answers differ by more than the tolerance.
    """
    file, display = Path(path), display or Display(quiet=True)
    integrity, metadata = check_digest(file), read_metadata(file)
    is_raw = RAW_KEY in metadata
    fixed = check_form(file, RAW_SIZES if is_raw else GRAPH_SIZES)
    if is_raw and (checkpoint is None or device_name(device) != "cpu"):
        raise ConfigError(
            f"{file}: is a raw export, without golden sample; give --checkpoint, and --device cpu or none"
        )
    predictor = None if is_raw else Predictor(file, device)
    card = ModelCard.from_json(metadata[RAW_KEY]) if predictor is None else predictor.card
    if fixed != card.input.fixed_shape:
        takes, says = (shape or "any" for shape in (fixed, card.input.fixed_shape))
        raise ModelError(
            f"{file}: its graph takes batches of {takes} (batch, height, width), its card says {says}; export it again"
        )
    run = raw_run(onnx.load(file), card) if predictor is None else predictor.run
    reference: NetworkFunction | None = None
    name, rows, shown = "nothing", tuple[ProofRow, ...](), card
    if checkpoint:
        loaded = _matching_checkpoint(file, card, checkpoint, network, pairs, display)
        # An author's network may take no pictures as small as those that a reading of its weights takes.
        ours, theirs, (height, width) = card.input.min_size, loaded.card.input.min_size, card.input.size
        least = min(height, max(ours[0], theirs[0])), min(width, max(ours[1], theirs[1]))
        shown = replace(card, input=replace(card.input, min_size=least))
        reference = network_run(Segmenter(loaded.network(), card).eval())
        name = {
            "module": f"PyTorch with {checkpoint}",
            "pairs": f"the reading of {checkpoint} that fits {pairs}",
            "reading": f"this library's reading of {checkpoint}",
        }[loaded.reference]
    elif predictor is not None and predictor.report.device != "cpu":
        reference, name = Predictor(file, "cpu").run, "the same file on the CPU"
    elif data is not None:
        gpu = "" if card.target == "cpu" else ", or --device cuda"
        raise ConfigError(f"--data: there is nothing to compare with; give --checkpoint{gpu}")
    if reference is not None:
        pictures = [] if data is None else load_pictures(data, card, PROOF_PICTURES, limits=limits, display=display)
        rows = tuple(proof_rows(run, expected_answers(reference, cases(shown, pictures)), card.output))
    where = "cpu" if predictor is None else predictor.report.device
    kind = where.partition(":")[0]
    bf16 = card.bf16 if predictor is not None and "bf16" in predictor.report.arithmetic else None
    base = golden_tolerance(card, kind) + (0.0 if bf16 is None else BF16_ROUNDING * bf16.max_abs_error)
    if card.precision == "fp32" and kind == "cpu":
        base = MAX_ERROR if card.proof is None or card.proof.tolerance is None else card.proof.tolerance
    allowed = tuple(row_limit(card, row, base, of_network=checkpoint is not None) for row in rows)
    report = CheckReport(
        path=file,
        card=card,
        device=where,
        golden_error=None if predictor is None else predictor.report.golden_error,
        golden_limit=None if predictor is None else predictor.report.golden_limit,
        integrity=integrity.told,
        reference=name,
        of_network=checkpoint is not None,
        arithmetic="" if predictor is None else predictor.report.arithmetic,
        rows=rows,
        limits=allowed,
        faults=tuple(
            row_fault(card, row, limit, name, of_network=checkpoint is not None, bf16=bf16)
            for row, limit in zip(rows, allowed, strict=True)
        ),
    )
    if depends_on_batch(run, card, None if report.device == "cpu" else base):
        raise ProofError(f"{file}: an image's answer depends on the other images in its batch", report)
    for fault in filter(None, report.faults):
        raise ProofError(f"{file}: {fault}", report)
    return report


def _matching_checkpoint(
    file: Path,
    card: ModelCard,
    checkpoint: str | os.PathLike[str],
    network: NetworkOptions | None,
    pairs: str | os.PathLike[str] | None,
    display: Display,
) -> Checkpoint:
    """Load the checkpoint, and refuse it if card or weights differ; only the threshold may."""
    ends, proof = network or NetworkOptions(), card.proof
    if pairs is not None:
        several = None if card.output.activation == "sigmoid" else card.output.activation
        changes = CardChanges(probabilities=several, mean=card.input.mean, std=card.input.std)
        loaded = load_with_pairs(Path(checkpoint), pairs, display, changes, weights=ends.weights)
    elif not ends.source and proof is not None and proof.reference == "pairs":
        raise ConfigError(f"{file}: was proved by pairs of inputs and outputs; give --pairs, as for the export")
    else:
        loaded = open_checkpoint_of(card, file, Path(checkpoint), ends)
    if proof is not None and proof.reference == "reading" and loaded.reference != "reading":
        return loaded  # a reading is proved afterwards: names and order of the weights may differ, answers may not
    if loaded.card.weights_sha256 != card.weights_sha256:
        choice = next((f"; {note}" for note in loaded.notes if "--weights" in note), "")
        raise ProofError(f"{file}: was not exported from {checkpoint}, which has other weights{choice}")
    parts = ("architecture",) if loaded.card_is_assumed else ("architecture", "input", "output", "training")
    ours, theirs = (asdict(replace(one, proof=None)) for one in (card, loaded.card))
    threshold = ours["output"].pop("threshold"), theirs["output"].pop("threshold")
    for name in FIXED_FIELDS if card.input.fixed_shape is not None else ():
        del ours["input"][name], theirs["input"][name]
    for part in parts:
        if ours[part] != theirs[part]:
            raise ProofError(f"{file}: its card has the {part} {ours[part]}, the checkpoint's {theirs[part]}")
    if threshold[0] != threshold[1] and not loaded.card_is_assumed:
        display.note(f"the card's threshold is {threshold[0]:g}, the checkpoint's {threshold[1]:g}")
    return loaded


def row_limit(card: ModelCard, row: ProofRow, base: float, *, of_network: bool) -> float:
    """Return the largest error that the device and, against the network, the file's precision explain."""
    if not of_network or card.precision == "fp32" or card.proof is None:
        return base
    alike = [one for one in card.proof.rows if (one.shape, one.images) == (row.shape, row.images)]
    return base + max(one.parity.max_abs_error for one in alike or card.proof.rows)


def row_fault(
    card: ModelCard,
    row: ProofRow,
    limit: float,
    reference: str,
    *,
    of_network: bool,
    bf16: Bf16Permission | None = None,
) -> str:
    """Say what is wrong with the answers of a row, which may be in `bf16`; "" if nothing is."""
    error, proof = row.parity.max_abs_error, card.proof
    if error > limit or row.parity == NOT_FINITE:
        misread = proof is not None and proof.reference == "reading" and of_network
        advice = "; if its weights were read in the wrong way, export them again by --network or --pairs" * misread
        return (
            f"is off by {error:.2g} from {reference} at (batch, height, width) {row.shape}, expected at most "
            f"{limit:.2g}{advice}"
        )
    gate = bf16.gate if bf16 is not None else proof.gate if proof is not None else None
    if not of_network or gate is None or row.images == "synthetic":
        return ""
    usual = INT8_FLIPPED if card.precision == "int8" else FP16_FLIPPED
    most = 2 * gate.flipped + (usual if bf16 is None or bf16.max_flipped is None else bf16.max_flipped)
    if row.parity.flipped <= most:
        return ""
    return f"flips {row.parity.flipped:.4%} of the pixels of an image in --data, expected at most {most:.4%}"


def check_form(path: Path, sizes: Mapping[str, tuple[str | None, ...]] = GRAPH_SIZES) -> FixedShape | None:
    """Check the graph without running it; `sizes` are the names of its free sizes by input and output.

    Returns (batch, height, width) if they are not free but fixed, else None.

    Raises:
        ModelError: as `check_model`, or the file is not valid ONNX, or its inputs or outputs differ.
    """
    check_model(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors, which have no public type in onnx
        raise ModelError(f"{path}: is not an ONNX file ({error}); export it again") from error
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of several types, none documented
        raise ModelError(f"{path}: is not valid ONNX ({' '.join(str(error).split())[:300]})") from error
    found = {
        value.name: tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output)
    }
    free = {name: tuple(size if isinstance(size, str) else None for size in shape) for name, shape in found.items()}
    if free == sizes:
        return None
    fixed = {
        (label, size)
        for name, labels in sizes.items()
        for label, size in zip(labels, found.get(name, ()), strict=False)
        if label is not None
    }
    named = dict(fixed)
    if free != {name: (None,) * len(labels) for name, labels in sizes.items()} or len(fixed) != len(named):
        raise ModelError(f"{path}: found inputs and outputs {found}, expected {dict(sizes)}; export it again")
    return named["batch"], named["height"], named["width"]
