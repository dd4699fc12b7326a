"""The whole export: load, build, convert, prove, embed, write, and open once as an application will."""

import json
import os
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import get_args

import onnx

from export.changes import CardChanges
from export.graph import OPSET, build_graph, build_raw_graph, set_metadata
from export.precision import Converted, Source, fp16, int8
from export.proof import (
    MAX_ERROR,
    Run,
    cases,
    compare,
    graph_run,
    make_golden,
    neighbours_matter,
    network_run,
    versions,
)
from export.quantise import Values
from export.raw import raw_run
from export.samples import Samples, load_samples
from runtime.card import CARD_KEY, RAW_KEY, ModelCard, Precision, Proof
from runtime.errors import ConfigError, OutputError, ProofError
from runtime.files import prepare, replacing, write_text
from runtime.golden import GOLDEN_KEY, synthetic_image
from runtime.predictor import Predictor
from runtime.providers import PROVIDER
from unet_core.checkpoint import load_checkpoint
from unet_core.display import Display
from unet_core.model import Segmenter

PROOF_PICTURES = 8
"""Real pictures that are rows of the proof."""

SYNTHETIC_PICTURES = 8
"""Pictures that stand in where there are no real ones."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written: its path, its card with the proof, its size in bytes, and the seconds it took.

    `card_is_assumed`: the checkpoint had no card, so its size, normalisation and names are the defaults. `family` is
    the project that it is from, `notes` what a user has to know, a line each.
    """

    path: Path
    card: ModelCard
    size: int
    seconds: float
    card_is_assumed: bool
    family: str
    notes: tuple[str, ...]


def export_onnx(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    precision: Precision = "fp32",
    data: str | os.PathLike[str] | None = None,
    raw: bool = False,
    opset: int = OPSET,
    changes: CardChanges | None = None,
    keep: Collection[str] = (),
    values: Values = "s8",
    force: bool = False,
    display: Display | None = None,
) -> ExportReport:
    """Write a checkpoint as one ONNX file with card, proof and golden sample.

    Args:
        checkpoint: of this library or of a project in `unet_core.foreign`; .pth, .pth.tar or .safetensors.
        path: the .onnx file; by default beside the checkpoint, with what is special about it in its name.
        precision: "fp32", or "fp16" or "int8", which must pass a gate on `data`.
        data: folder of real images, see `load_samples`; int8 is calibrated on it.
        raw: write the bare network (float32 NCHW -> logits), which `Predictor` does not take; fp32 only.
        opset: of ONNX, within `export.graph.OPSETS`.
        changes: what a checkpoint without a card does not tell.
        keep: layers that stay in fp32 whatever they cost.
        values: of int8: "s8" for TensorRT, "u8" for CPUs.
        force: write an fp16 or int8 file also where it fails its gate; the card says so.
        display: where progress and notes are shown; by default nowhere.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: options that contradict each other.
        DataError: the images cannot be used.
        ProofError: the graph does not answer as PyTorch does, or fails its gate; nothing is written but what was
            found, in `refusal_path`.
        OutputError: the file cannot be written; an older one stays as it was.
    """
    started = time.perf_counter()
    display = display or Display(quiet=True)
    _check_options(precision, data, raw=raw, keep=keep)
    loaded = load_checkpoint(checkpoint)
    card = (changes or CardChanges()).applied(loaded.card, assumed=loaded.card_is_assumed)
    card = replace(card, precision=precision)
    target = _target(path, Path(checkpoint), "raw" if raw else precision)
    samples = None if data is None else load_samples(data, card, display=display)
    segmenter = Segmenter(loaded.network(), card).eval()
    if raw:
        model = build_raw_graph(segmenter, card, opset)
        converted, run = None, raw_run(model, card)
    else:
        exact = build_graph(segmenter, card, opset)
        converted = _converted(exact, card, samples, keep, values, display)
        model, run = (exact, graph_run(exact)) if converted is None else (converted.model, converted.run)
    card = replace(card, proof=_prove(card, segmenter, run, samples, converted))
    _judge(card, run, converted, target, force=force)
    _write(model, card, segmenter, target, raw=raw)
    return ExportReport(
        path=target,
        card=card,
        size=target.stat().st_size,
        seconds=time.perf_counter() - started,
        card_is_assumed=loaded.card_is_assumed,
        family=loaded.family,
        notes=loaded.notes,
    )


def _check_options(
    precision: Precision, data: str | os.PathLike[str] | None, *, raw: bool, keep: Collection[str]
) -> None:
    if precision not in get_args(Precision):
        raise ConfigError(f"--precision {precision}: expected {', '.join(get_args(Precision))}")
    if raw and precision != "fp32":
        raise ConfigError(f"--raw: is fp32; leave out --precision {precision}")
    if keep and precision == "fp32":
        raise ConfigError("--keep: an fp32 file keeps all layers; give --precision fp16 or int8")
    if precision == "int8" and data is None:
        raise ConfigError("--precision int8: is calibrated on real images; give --data FOLDER")


def _target(path: str | os.PathLike[str] | None, checkpoint: Path, kind: str) -> Path:
    target = prepare(default_path(checkpoint, kind) if path is None else path)
    if target.suffix.lower() != ".onnx":
        raise OutputError(f"{target}: expected a name that ends in .onnx, by which the other commands know it")
    return target


def default_path(checkpoint: Path, kind: str = "fp32") -> Path:
    """Beside the checkpoint: model.onnx, model.fp16.onnx, model.int8.onnx or model.raw.onnx."""
    stem = checkpoint.with_name(checkpoint.name.removesuffix(".tar")).with_suffix("").name
    return checkpoint.with_name(f"{stem}.onnx" if kind == "fp32" else f"{stem}.{kind}.onnx")


def refusal_path(target: Path) -> Path:
    """Where the card of an export that was refused is kept, with its proof."""
    return target.with_suffix(".refused.json")


def _converted(
    exact: onnx.ModelProto,
    card: ModelCard,
    samples: Samples | None,
    keep: Collection[str],
    values: Values,
    display: Display,
) -> Converted | None:
    if card.precision == "fp32":
        return None
    source = _source(card, samples)
    if card.precision == "fp16":
        return fp16(exact, card, source, keep, display)
    return int8(exact, card, source, keep, values, display)


def _source(card: ModelCard, samples: Samples | None) -> Source:
    if samples is not None:
        calibration = [samples.calibration[index][0] for index in range(len(samples.calibration))]
        return Source(pictures=list(samples.pictures()), calibration=calibration, images="data", samples=samples)
    pictures = [
        synthetic_image(*card.input.size, card.architecture.in_channels, seed) for seed in range(SYNTHETIC_PICTURES)
    ]
    return Source(pictures=pictures, calibration=pictures, images="synthetic")


def _prove(
    card: ModelCard, segmenter: Segmenter, run: Run, samples: Samples | None, converted: Converted | None
) -> Proof:
    pictures = [] if samples is None else list(islice(samples.pictures(), PROOF_PICTURES))
    rows = compare(run, network_run(segmenter), cases(card, pictures), card.output)
    return Proof(
        provider=PROVIDER["cpu"],
        versions=versions(),
        tolerance=MAX_ERROR if converted is None else None,
        rows=tuple(rows),
        golden_error=min(make_golden(segmenter, card).error(run), 1.0),
        gate=None if converted is None else converted.gate,
    )


def _judge(card: ModelCard, run: Run, converted: Converted | None, target: Path, *, force: bool) -> None:
    """Stop an export that is not the network or fails its gate, and keep what was found."""
    proof = card.proof
    assert proof is not None
    reason = ""
    if neighbours_matter(run, card):
        reason = "an image's answer depends on the other images in its batch"
    elif proof.tolerance is not None and proof.max_abs_error > proof.tolerance:
        bad = max(proof.rows, key=lambda row: row.parity.max_abs_error)
        reason = (
            f"at (batch, height, width) {bad.shape} it is off by {bad.parity.max_abs_error:.2g}, expected at most "
            f"{proof.tolerance:g}"
        )
    elif converted is not None and not converted.gate.passed and not force:
        reason = f"{converted.refusal()}; --force writes it all the same"
    if reason:
        write_text(refusal_path(target), json.dumps(asdict(card), indent=2, sort_keys=True) + "\n")
        raise ProofError(f"{target}: not written, the {card.precision} graph is not the network: {reason}", card)


def _write(model: onnx.ModelProto, card: ModelCard, segmenter: Segmenter, target: Path, *, raw: bool) -> None:
    if raw:
        set_metadata(model, {RAW_KEY: card.to_json()})
    else:
        set_metadata(model, {CARD_KEY: card.to_json(), GOLDEN_KEY: make_golden(segmenter, card).to_json()})
    with replacing(target) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        if not raw:
            Predictor(temporary, device="cpu")  # refuses a file that an application could not use
    refusal_path(target).unlink(missing_ok=True)
