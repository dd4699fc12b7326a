"""The whole export: load, build, prove, embed, write, and open once as an application will."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from export.graph import build_graph, set_metadata
from export.proof import make_golden, prove
from runtime.card import CARD_KEY, ModelCard
from runtime.errors import OutputError
from runtime.files import prepare, replacing
from runtime.golden import GOLDEN_KEY
from runtime.predictor import Predictor
from unet_core.checkpoint import load_checkpoint
from unet_core.model import Segmenter


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written: its path, its card with the proof, its size in bytes, and the seconds it took.

    `card_is_assumed`: the checkpoint had no card, so its size, normalisation and names are the defaults. `family` is
    the project that it is from, `notes` what a user has to know of the mapping, a line each.
    """

    path: Path
    card: ModelCard
    size: int
    seconds: float
    card_is_assumed: bool
    family: str
    notes: tuple[str, ...]


def export_onnx(checkpoint: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> ExportReport:
    """Write a checkpoint as one ONNX file with card, proof and golden sample.

    Without a `path` the file is written beside the checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ProofError: the graph does not answer as PyTorch does; nothing is written.
        OutputError: the file cannot be written; an older one stays as it was.
    """
    started = time.perf_counter()
    loaded = load_checkpoint(checkpoint)
    target = prepare(path if path is not None else default_path(Path(checkpoint)))
    if target.suffix.lower() != ".onnx":
        raise OutputError(f"{target}: expected a name that ends in .onnx, by which the other commands know it")
    segmenter = Segmenter(loaded.network(), loaded.card).eval()
    model = build_graph(segmenter, loaded.card)
    card = replace(loaded.card, proof=prove(segmenter, model, loaded.card))
    set_metadata(model, {CARD_KEY: card.to_json(), GOLDEN_KEY: make_golden(segmenter, card).to_json()})
    with replacing(target) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        Predictor(temporary, device="cpu")  # refuses a file that an application could not use
    return ExportReport(
        path=target,
        card=card,
        size=target.stat().st_size,
        seconds=time.perf_counter() - started,
        card_is_assumed=loaded.card_is_assumed,
        family=loaded.family,
        notes=loaded.notes,
    )


def default_path(checkpoint: Path) -> Path:
    """Beside the checkpoint, `.onnx` for `.pth` or `.pth.tar`."""
    return checkpoint.with_name(checkpoint.name.removesuffix(".tar")).with_suffix(".onnx")
